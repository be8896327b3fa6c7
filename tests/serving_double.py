"""A server that answers vLLM's routes with a small HF model, and can be told to misbehave in every way we know of."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

BLOCK = 128


@dataclass
class Double:
    """One replica. Fields without a comment are misbehaviours."""

    folder: Path
    dtype: torch.dtype = torch.float64
    mode: str = "raw"  # or processed: what its log-probs are
    limit: int = 4096  # tokens it takes
    most_entries: int = 64  # it gives about a token of a prompt; 0: none, and it is no vLLM
    says: str = " 4 + 4 = 8."  # in a chat
    cut: bool = False  # what it says in a chat was cut
    names: bool = False  # it scores tokens that are named: vLLM's V2 model runner
    named: str = ""  # ignored, one row less, others, permuted, shifted, nan, positive, logits, huge, pickled, text
    keep_head: bool = False
    keep_cache: bool = False  # and say that it was reset
    refuse_reset: bool = False  # and say so
    forbid: tuple[str, ...] = ()  # routes that answer 403
    die_after: int | None = None  # completions; then the process is gone
    mix: bool = False
    wrong_length: bool = False
    hang: bool = False
    garbage: str | None = None
    ignore_reload: bool = False
    other_adapter: bool = False
    spoil: dict[str, Any] = field(default_factory=dict)  # overrides fields of the choice

    def __post_init__(self) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype).eval()
        self.model.lm_head.weight = torch.nn.Parameter(self.model.lm_head.weight.detach().clone())  # packed copies
        self.label, self.cache, self.adapters = "default", {}, {}
        self.paused, self.busy, self.closing = threading.Event(), threading.Lock(), threading.Event()
        self.calls: list[tuple[str, Any]] = []
        self.keys: list[str | None] = []
        self.flying, self.most, self.written = 0, 0, 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"double": self}))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def dead(self) -> bool:
        return self.die_after is not None and self.written >= self.die_after

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self) -> Double:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def said(self, route: str) -> list[Any]:
        """The bodies of all calls of a route."""
        return [body for path, body in self.calls if path.split("?")[0] == route]

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.calls.append((path, body))
        route = path.split("?")[0]
        if route in self.forbid:
            return 403, {"error": "not enabled"}
        name = route.strip("/").replace("/", "_")
        return getattr(self, f"do_{name}", lambda _: (404, {"detail": "Not Found"}))(body)

    def do_version(self, _: Any) -> tuple[int, Any]:
        return 200, {"version": "0.32.0"}

    def do_v1_models(self, _: Any) -> tuple[int, Any]:
        base = {"id": "policy", "parent": None, "max_model_len": self.limit, "root": str(self.folder)}
        if not self.most_entries:
            base = {"id": "gpt", "object": "model"}
        return 200, {"data": [base, *({"id": name, "parent": "policy"} for name in self.adapters)]}

    def do_pause(self, _: Any) -> tuple[int, Any]:
        self.paused.set()
        return 200, {"status": "paused"}

    def do_resume(self, _: Any) -> tuple[int, Any]:
        self.paused.clear()
        return 200, {"status": "resumed"}

    def do_collective_rpc(self, body: Any) -> tuple[int, Any]:
        folder = Path(body["kwargs"]["weights_path"])
        tensors = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
        if self.keep_head:
            tensors.pop("lm_head.weight")
        if not self.ignore_reload:  # what is not sent stays what it was
            with self.busy:
                self.model.load_state_dict({k: v.to(self.dtype) for k, v in tensors.items()}, strict=False)
        return 200, {"results": [None]}

    def do_reset_prefix_cache(self, _: Any) -> tuple[int, Any]:
        if not (self.keep_cache or self.refuse_reset):
            self.cache.clear()
        return 200, {"success": not self.refuse_reset}

    def do_update_weight_version(self, body: Any) -> tuple[int, Any]:
        self.old, self.label = self.label, body["new_version"]
        return 200, {"success": True}

    def do_v1_load_lora_adapter(self, body: Any) -> tuple[int, Any]:
        from peft import PeftModel

        if body["lora_name"] in self.adapters:
            return 400, {"error": "already loaded"}
        loaded = PeftModel.from_pretrained(copy.deepcopy(self.model), body["lora_path"]).to(self.dtype).eval()
        self.adapters[body["lora_name"]] = loaded
        return 200, "Success"

    def do_v1_unload_lora_adapter(self, body: Any) -> tuple[int, Any]:
        return (200, "Success") if self.adapters.pop(body["lora_name"], None) else (404, {"error": "unknown"})

    def do_inference_v1_generate(self, body: Any) -> tuple[int, Any]:
        while self.hang or self.paused.is_set():
            if self.closing.wait(0.01):
                return 500, {}
        if self.garbage is not None:
            return 200, self.garbage
        if body["model"] not in ("policy", *self.adapters):
            return 404, {"error": "no such model"}
        if "prompt_logprob_token_ids" in body["sampling_params"]:
            return self._weigh(body["token_ids"], body["sampling_params"])
        self.flying += 1
        self.most = max(self.most, self.flying)
        with self.busy, torch.no_grad():
            self.flying -= 1
            if self.dead:
                return 0, None
            model = self.adapters.get(body["model"], self.model)
            tokens, logprobs = self._write(model, body["model"], body["token_ids"], body["sampling_params"])
            self.written += 1
        n = len(tokens)
        spans = [{"version": self.label, "start": 0, "end": n}]
        if self.mix and n > 1:
            spans = [{"version": self.old, "start": 0, "end": 1}, {"version": self.label, "start": 1, "end": n}]
        content = [{"token_id": t, "logprob": x} for t, x in zip(tokens, logprobs, strict=True)]
        choice = {"index": 0, "token_ids": tokens, "logprobs": {"content": content}, "finish_reason": "stop"}
        choice["logprobs"]["content"] = content[: n - 1] if self.wrong_length else content
        named = next(iter(self.adapters)) if self.other_adapter and self.adapters else body["model"]
        return 200, {"model": named, "choices": [choice | {"weight_versions": spans} | self.spoil]}

    def do_v1_completions(self, body: Any) -> tuple[int, Any]:
        k, prompt = body["prompt_logprobs"], body["prompt"]
        if k > self.most_entries:
            return 400, {"error": f"greater than max allowed: {self.most_entries}"}
        with self.busy, torch.no_grad():
            rows = self.model(input_ids=torch.tensor([prompt])).logits[0].double().log_softmax(-1)
        said: list[Any] = [None]
        for token, row in zip(prompt[1:], rows[:-1], strict=True):
            ids = {token, *row.topk(min(k, len(row))).indices.tolist()}
            said.append({str(i): {"logprob": float(row[i])} for i in sorted(ids)})
        return 200, {"choices": [{"text": "", "prompt_logprobs": said} | self.spoil]}

    def _weigh(self, prompt: list[int], p: dict[str, Any]) -> tuple[int, Any]:
        """What tokens that are named weigh, as vLLM 0.32 answers."""
        if not self.names:
            return 400, {"error": "prompt_logprob_token_ids requires the V2 model runner"}
        _, answer = self.do_v1_completions({"prompt": prompt, "prompt_logprobs": p["prompt_logprobs"]})
        said = answer["choices"][0]["prompt_logprobs"]
        with self.busy, torch.no_grad():
            logits = self.model(input_ids=torch.tensor([prompt])).logits[0, :-1].double()
        rows = (logits if self.named == "logits" else logits.log_softmax(-1))[p["prompt_logprob_start"] :]
        ids = torch.tensor(p["prompt_logprob_token_ids"])
        assert len(ids) == len(rows)
        spoil = {"permuted": lambda x: torch.cat((x[:, :-1].flip(1), x[:, -1:]), 1)}
        spoil |= {"others": lambda x: x.flip(1), "shifted": lambda x: x.roll(1, 0) if len(x) > 1 else x + 1.0}
        spoil |= {"nan": lambda x: x * torch.nan, "positive": lambda x: -x, "one row less": lambda x: x[1:]}
        matrix = spoil.get(self.named, lambda x: x)(rows.gather(1, ids)).float().numpy()
        file = io.BytesIO()
        np.save(file, np.array([[{}]], dtype=object) if self.named == "pickled" else matrix)
        raw = file.getvalue()
        if self.named == "huge":  # a header that promises more than there is
            raw = raw.replace(str(matrix.shape).encode(), b"(99999999999, 9999)"[: len(str(matrix.shape)) + 9])
        encoded = "no base64!" if self.named == "text" else base64.b64encode(raw).decode()
        more = {} if self.named == "ignored" else {"prompt_token_id_logprobs": encoded}
        return 200, {"choices": [{"token_ids": [1]}], "prompt_logprobs": said} | more

    def do_v1_chat_completions(self, body: Any) -> tuple[int, Any]:
        message = {"role": "assistant", "content": self.says}
        return 200, {"choices": [{"message": message, "finish_reason": "length" if self.cut else "stop"} | self.spoil]}

    def _write(self, model: Any, name: str, prompt: list[int], p: dict[str, Any]) -> tuple[list[int], list[float]]:
        draw = torch.Generator().manual_seed(p["seed"] % 2**63)
        past, ids = self._prefix(model, name, prompt)
        tokens, logprobs, ends = [], [], set(p["stop_token_ids"])
        while len(tokens) < p["max_tokens"] and not (tokens and tokens[-1] in ends):
            out = model(input_ids=torch.tensor([ids]), cache=past, use_cache=True)
            past, logits = out.cache, out.logits[0, -1].double()
            raw = logits.log_softmax(-1)
            sampled = raw if p["temperature"] == 0 else _cut((logits / p["temperature"]).log_softmax(-1), p)
            chosen = sampled.argmax() if p["temperature"] == 0 else sampled.exp().multinomial(1, generator=draw)
            tokens.append(int(chosen))
            logprobs.append(float((raw if self.mode == "raw" else sampled)[tokens[-1]]))
            ids = tokens[-1:]
        return tokens, logprobs

    def _prefix(self, model: Any, name: str, prompt: list[int]) -> tuple[Any, list[int]]:
        """Whole blocks of a prompt are read once and kept, whatever happens to the weights meanwhile."""
        whole = (len(prompt) - 1) // BLOCK * BLOCK
        if not whole:
            return None, prompt
        key = (name, tuple(prompt[:whole]))
        if key not in self.cache:
            self.cache[key] = model(input_ids=torch.tensor([prompt[:whole]]), use_cache=True).cache
        return copy.deepcopy(self.cache[key]), prompt[whole:]


def _cut(logp: torch.Tensor, p: dict[str, Any]) -> torch.Tensor:
    order = logp.argsort(descending=True)
    before = logp[order].exp().cumsum(-1) - logp[order].exp()
    kept = order[before < p["top_p"]][: p["top_k"] or len(order)]
    out = torch.full_like(logp, -torch.inf)
    out[kept] = logp[kept]
    return out.log_softmax(-1)


class _Handler(BaseHTTPRequestHandler):
    double: Double

    def do_GET(self) -> None:
        self._respond(None)

    def do_POST(self) -> None:
        self._respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _respond(self, body: Any) -> None:
        double = self.double
        double.keys.append(self.headers["Authorization"])
        status, answer = (0, None) if double.dead else double.answer(self.path, body)
        if not status:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        raw = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        with contextlib.suppress(OSError):  # nobody listens any more
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def soon(holds: Any, seconds: float = 10.0) -> bool:
    """Wait until `holds()`."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(holds())
