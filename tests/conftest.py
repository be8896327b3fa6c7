"""The tiny model every unit test runs on: 2 layers, 64 wide, one token a byte, seeded. Real models serve elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def norms_in_float64() -> None:
    """Let a float64 model be one: transformers' norms compute in float32 whatever they are given.

    Their gradient is rounded where it passes, so sums that are equal would differ by 1e-7 with how a batch is read.
    """
    from torch.nn.functional import rms_norm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    plain = LlamaRMSNorm.forward
    if plain.__name__ != "forward":
        return

    def exact(self, x):
        wide = x.element_size() == 8
        return rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon) if wide else plain(self, x)

    LlamaRMSNorm.forward = exact


def build_tiny(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    template: str | None = TEMPLATE,
    end: str = "<|im_end|>",
    specials: tuple[str, ...] = (),
    **config: object,
) -> Path:
    """Write an HF folder with a byte-level tokenizer and a random Llama; returns the folder.

    `specials` are more special tokens; `end` is the one its completions end with.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *specials]})
    tokenizer.eos_token = end
    if template is not None:
        tokenizer.chat_template = template
    norms_in_float64()
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        **config,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model a session."""
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(tiny_folder: Path):
    """A fresh float64 engine maker: `tiny(adapter=None, refresh=FROZEN, **settings)`."""
    import torch

    from workbench.engine.engine import Engine, EngineSettings
    from workbench.engine.loading import load
    from workbench.parts.refresh import FROZEN

    def make(adapter: str | None = None, refresh=FROZEN, dtype=torch.float64, **settings: object) -> Engine:
        loaded = load(str(tiny_folder), dtype=dtype)
        return Engine(loaded, adapter=adapter, refresh=refresh, settings=EngineSettings(**settings))

    return make


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of shared problem sets and corpora; tests that need it say so where it is absent."""
    folder = os.environ.get("WORKBENCH_CORPORA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("WORKBENCH_CORPORA names no folder: the shared corpora are not at hand")
    return Path(folder)


EXPORTED = ["--model", "model", "--problems", "data.jsonl", "--steps", "2", "--batch", "2", "--lr", "1e-2"]
EXPORTED += ["--max-new-tokens", "8", "--eval-problems", "4", "--eval-tokens", "8", "--eval-every", "1"]
EXPORTED += ["--save-every", "1", "--progress", "quiet"]


@pytest.fixture(scope="session")
def exported_runs(tmp_path_factory) -> Path:
    """A folder with three runs: an adapter, all weights, and the second as it was when it was killed after step 1."""
    import json
    import shutil

    from tests.smoke import problems
    from workbench import opsd

    folder = tmp_path_factory.mktemp("runs")
    build_tiny(folder / "model")
    (folder / "model" / "README.md").write_text("---\ntags: [x]\nlicense: mit\n---\nlicense: gpl\n")
    problems(folder / "data.jsonl", 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, adapter in (("lora", "lora:r=4,alpha=8"), ("full", "none")):
            assert opsd.main([*EXPORTED, "--name", name, "--adapter", adapter]) == 0
    shutil.copytree(folder / "runs" / "full", folder / "runs" / "killed")
    for late in ("final", "checkpoints/step-00000002"):
        shutil.rmtree(folder / "runs" / "killed" / late)
    status = folder / "runs" / "killed" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"phase": "training", "step": 1, "pid": 2**30}))
    return folder
