"""One server over HTTP: JSON both ways, limits of time, calls that can be cut off, and errors that name the server."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import re
import socket
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from workbench.errors import ServerError, UsageError

LONGEST = 1 << 28
"""Bytes of an answer that are read at most."""
PATIENCE = 600.0
"""Seconds a server may be silent."""


class Cut(Exception):
    """The call was cut off by its line."""


class Line:
    """Calls that are cut off together: the server sees that nobody listens any more, and drops the work."""

    def __init__(self) -> None:
        """No call yet."""
        self._open: set[http.client.HTTPConnection] = set()
        self._mutex, self.is_cut = threading.Lock(), False

    @contextlib.contextmanager
    def holding(self, connection: http.client.HTTPConnection) -> Any:
        """Keep hold of a connection while it is used, connected from the start. Raises Cut after `cut`."""
        connection.connect()
        with self._mutex:
            if self.is_cut:
                raise Cut
            self._open.add(connection)
        try:
            yield
        finally:
            with self._mutex:
                self._open.discard(connection)

    def cut(self) -> None:
        """Every call under way raises `Cut`, and so does every one to come."""
        with self._mutex:
            self.is_cut = True
            for connection in self._open:
                with contextlib.suppress(OSError, AttributeError):  # it has just ended by itself
                    connection.sock.shutdown(socket.SHUT_RDWR)


class Replica:
    """A server at one address. Calls may come from many threads at once; each has its own connection."""

    def __init__(self, url: str, *, key: str | None = None, patience: float = PATIENCE) -> None:
        """`key` is sent as a bearer token and appears in no message. Raises UsageError for what is no address."""
        self._address = parsed(url)
        self.url = f"{self._address.scheme}://{self._address.netloc}{self._address.path}"
        self._key, self.patience = key, patience

    def get(self, path: str) -> Any:
        """The JSON behind a GET. Raises ServerError."""
        return self._json(path, self._call("GET", path, None, Line()))

    def post(self, path: str, body: Mapping[str, Any], line: Line | None = None) -> Any:
        """The JSON behind a POST. Raises ServerError, and Cut where the line was cut."""
        return self._json(path, self._call("POST", path, body, line or Line()))

    def tell(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        """A POST whose answer says nothing beyond its status. Raises ServerError."""
        self._call("POST", path, body or {}, Line())

    def _json(self, path: str, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ServerError(
                f"{self.url}{path} answered no JSON. It begins {text[:60]!r}. Is a vLLM server at this address?"
            ) from error

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None, line: Line) -> str:
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._address.hostname or "", self._address.port, timeout=self.patience)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            with line.holding(connection):
                sent = None if body is None else json.dumps(body)
                connection.request(method, self._address.path + path, sent, headers)
                with connection.getresponse() as answer:
                    text = answer.read(LONGEST + 1)
        except (OSError, http.client.HTTPException, AttributeError) as error:
            if line.is_cut:
                raise Cut from error
            raise ServerError(self._silent(path, error)) from error
        finally:
            connection.close()
        if len(text) > LONGEST:
            raise ServerError(f"{self.url}{path} answered more than {LONGEST} bytes. Nothing asked for is so long.")
        said = text.decode("utf-8", "replace")
        if answer.status >= 300:
            raise ServerError(_refused(self.url, path, answer.status, said))
        return said

    def _silent(self, path: str, error: Exception) -> str:
        where = f"{self.url}{path.split('?')[0]}"
        if isinstance(error, TimeoutError):
            return f"{where} said nothing for {self.patience:g} s. It hangs, or is overloaded. Look at its log."
        what = str(error) or type(error).__name__
        return f"{where} cannot be reached ({what[:120]}). The server is gone or was never there. Start it again."


def parsed(url: str) -> SplitResult:
    """`http://host:port` in its parts, an OpenAI-style `/v1` at its end left out. Raises UsageError."""
    try:
        parts = urlsplit(url.strip().rstrip("/"))
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and parts.username is None
        _ = parts.port  # raises for one that is none
    except ValueError:
        fits = False
    if not fits:
        raise UsageError("that is no server's address. It is http://host:port. Try http://127.0.0.1:8911")
    return parts._replace(path=re.sub(r"/v1$", "", parts.path), fragment="")


def refuse_public(url: str) -> None:
    """Raises UsageError where the address can be reached from outside: weight routes of vLLM ask for no key."""
    host = parsed(url).hostname or ""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise UsageError(f"--server {url}: no address for {host!r} ({error}). Check the name.") from error
    public = [a for a in sorted(found) if ipaddress.ip_address(a.split("%")[0]).is_global]
    if public:
        raise UsageError(
            f"--server {url} is at a public address ({public[0]}). Whoever reaches it can replace its weights and run "
            "code in it: vLLM's weight, pause and rpc routes ask for no key. Serve on 127.0.0.1 or a private network, "
            "and tunnel: ssh -L 8911:127.0.0.1:8911 HOST"
        )


_DEVELOPER = "Start it with VLLM_SERVER_DEV_MODE=1 in its environment."
_ADVICE = {
    "/inference/v1/generate": "Start it with --enable-scale-out.",
    **dict.fromkeys(("/collective_rpc", "/pause", "/resume", "/update_weight_version"), _DEVELOPER),
    "/reset_prefix_cache": _DEVELOPER,
    "/v1/load_lora_adapter": "Start it with --enable-lora, a --max-lora-rank that is large enough, and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment.",
}


def _refused(url: str, path: str, status: int, text: str) -> str:
    said, bare = " ".join(text.split())[:160], path.split("?")[0]
    unknown = status in (403, 404, 405, 501) or bare == "/v1/load_lora_adapter"
    advice = _ADVICE.get(bare, "Look at its log.") if unknown else "Look at its log."
    return f"{url}{bare} answered {status}. It says: {said!r}. {advice}"
