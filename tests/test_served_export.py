"""An exported folder in a real server. Run by `make serve-test`."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
import torch

from tests.vllm_server import running
from workbench import export, opsd

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


STEP = "--steps 1 --name lora --adapter lora:r=4 --batch 2 --max-new-tokens 16 --eval-problems 0 --progress quiet"


def test_a_server_gives_the_log_probs_of_the_folder(tmp_path: Path, monkeypatch) -> None:
    """The embedded model's merged adapter: greedy tokens and their log-probs as transformers computes them from it.

    The tests' own model has heads too narrow for this server.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    assert opsd.main(STEP.split()) == 0
    folder = tmp_path / "merged"
    assert export.main(["runs/lora", "--merged", "--to", str(folder)]) == 0
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("2 + 2 = 4")["input_ids"]
    asked = {"prompt": ids, "max_tokens": 8, "temperature": 0, "logprobs": 0, "ignore_eos": True}
    asked |= {"return_tokens_as_token_ids": True}
    with running(folder, 8914, "--max-model-len", "256") as url:
        models = json.load(urllib.request.urlopen(f"{url}/v1/models", timeout=60))["data"]
        body = json.dumps(asked | {"model": models[0]["id"]}).encode()
        request = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
        said = json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]["logprobs"]
    for token, logp in zip(said["tokens"], said["token_logprobs"], strict=True):
        with torch.no_grad():
            mine = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)
        chosen = int(token.removeprefix("token_id:"))
        assert float(mine[chosen]) == pytest.approx(logp, abs=1e-3)
        assert float(mine.max() - mine[chosen]) < 1e-3, "greedy"
        ids = [*ids, chosen]
