"""A Hub on loopback: the routes that `huggingface_hub` asks when a folder is sent, and what it was told."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml


class HubDouble(ThreadingHTTPServer):
    """`repos`: name -> private; `files`: name -> content by path; `asked`: (method, path, authorization)."""

    daemon_threads = True

    def __init__(self, **repos: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, bool] = {name.replace("__", "/"): private for name, private in repos.items()}
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.blobs: dict[str, bytes] = {}
        self.refuse = 0
        """A status to answer everything with."""

    def __enter__(self) -> HubDouble:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: HubDouble

    def do_GET(self) -> None:
        self._answer("GET", b"")

    def do_POST(self) -> None:
        self._answer("POST", self._body())

    def do_PUT(self) -> None:
        self.server.blobs[self.path.rsplit("/", 1)[1]] = self._body()
        self._send(200, {})

    def _answer(self, method: str, body: bytes) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append((method, path, self.headers.get("authorization", "")))
        if hub.refuse:
            return self._send(hub.refuse, {"error": f"refused {self.headers.get('authorization', '')}"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            hub.repos[name] = asked.get("private", asked.get("visibility", "public") != "public")
            return self._send(200, {"url": f"{hub.url}/{name}", "id": name})
        if path == "/api/validate-yaml":
            head = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            wrong = [] if "/" in head.get("base_model", "/") else [{"message": "base_model is no id"}]
            return self._send(200, {"errors": wrong, "warnings": []})
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if path.endswith("/info/lfs/objects/batch"):
            return self._send(200, {"objects": [self._upload(o) for o in json.loads(body)["objects"]]})
        if name not in hub.repos:
            return self._send(404, {"error": "no"}, {"X-Error-Code": "RepoNotFound"})
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            kinds = [{"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False} for f in files]
            return self._send(200, {"files": kinds})
        if path.endswith("/commit/main"):
            self._commit(name, [json.loads(line) for line in body.splitlines() if line.strip()])
            return self._send(200, {"commitOid": "0" * 40, "commitUrl": f"{hub.url}/{name}/commit/0", "success": True})
        return self._send(200, {"id": name, "private": hub.repos[name], "sha": "0" * 40, "siblings": [], "tags": []})

    def _upload(self, blob: dict[str, Any]) -> dict[str, Any]:
        return {**blob, "actions": {"upload": {"href": f"{self.server.url}/blob/{blob['oid']}", "header": {}}}}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        stored = self.server.files.setdefault(name, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                stored[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                stored[value["path"]] = self.server.blobs[value["oid"]]

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"
