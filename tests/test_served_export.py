"""An exported folder in a real server: `make serve-test` names the environment it runs in by SERVE_PYTHON."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from workbench import export

pytestmark = pytest.mark.vllm


@contextlib.contextmanager
def served(folder: Path, log: Path) -> Iterator[str]:
    """A server on loopback that has loaded `folder`, until the end of the block."""
    python = os.environ.get("SERVE_PYTHON")
    if not python:
        pytest.skip("SERVE_PYTHON names no server environment: `make serve-test` does")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "it"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "256"]
    more = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen([*command, "--enforce-eager"], stdout=out, stderr=out, env=os.environ | more)
    try:
        for _ in range(360):
            assert server.poll() is None, log.read_text()[-4000:]
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def test_a_server_gives_the_log_probs_of_the_folder(exported_runs: Path, tmp_path: Path, monkeypatch) -> None:
    """The merged adapter: greedy tokens and their log-probs as transformers computes them from the same folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(exported_runs)
    folder = tmp_path / "merged"
    assert export.main(["runs/lora", "--merged", "--to", str(folder)]) == 0
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("2 + 2 = 4")["input_ids"]
    asked = {"model": "it", "prompt": ids, "max_tokens": 8, "temperature": 0, "logprobs": 0, "ignore_eos": True}
    asked |= {"return_tokens_as_token_ids": True}
    with served(folder, tmp_path / "server.log") as url:
        body = json.dumps(asked).encode()
        request = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
        said = json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]["logprobs"]
    for token, logp in zip(said["tokens"], said["token_logprobs"], strict=True):
        with torch.no_grad():
            mine = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)
        chosen = int(token.removeprefix("token_id:"))
        assert float(mine[chosen]) == pytest.approx(logp, abs=1e-3)
        assert float(mine.max() - mine[chosen]) < 1e-3, "greedy"
        ids = [*ids, chosen]
