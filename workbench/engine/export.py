"""The trained model as a folder that other programs read, checked by reading it back."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from workbench.engine.embedded import forget_quantisation
from workbench.engine.engine import Engine
from workbench.engine.heads import base_model, decoder, head_of
from workbench.errors import InputError

TOLERANCE = 1e-3
"""Largest difference in a logit, as a share of the largest logit, between memory and the folder read back."""


def export(engine: Engine, folder: Path, card: str) -> Path:
    """Write `final/`: weights, tokenizer, chat template in both places servers look, README; returns the HF folder.

    Full training writes a model folder; an adapter writes `adapter/` in PEFT's format. Files get mode 0644, which
    safetensors does not give. Raises InputError when the folder read back gives other logits.
    """
    apart = engine.adapter is not None and not engine.loaded.merged
    target = folder / "adapter" if apart else folder
    target.mkdir(parents=True, exist_ok=True)
    model = engine.student
    if engine.adapter is not None and not apart:
        # The base is an adapter merged in memory: an adapter on top of it would name a base that no folder holds.
        model = copy.deepcopy(model).merge_and_unload()
    if not apart:
        forget_quantisation(base_model(model))
    model.save_pretrained(target)
    engine.tokenizer.save_pretrained(target)
    _template_everywhere(target)
    (folder / "README.md").write_text(card, encoding="utf-8", errors="replace")
    for path in folder.rglob("*"):
        if path.is_file():
            os.chmod(path, 0o644)
    _read_back(engine, target)
    return target


def _template_everywhere(target: Path) -> None:
    """Older servers read the chat template from tokenizer_config.json, newer ones from chat_template.jinja."""
    jinja, config = target / "chat_template.jinja", target / "tokenizer_config.json"
    if jinja.is_file() and config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        content["chat_template"] = jinja.read_text(encoding="utf-8")
        config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def _read_back(engine: Engine, target: Path) -> None:
    """Load what was written, the way a stranger would, and compare logits."""
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([engine.tokenizer("2 + 2 = 4")["input_ids"]])
    device, dtype = engine.settings.device, next(base_model(engine.student).parameters()).dtype
    states = decoder(engine.student)(input_ids=ids.to(device), use_cache=False).last_hidden_state[0]
    mine = head_of(engine.student).logits(states).float().cpu()
    if (target / "adapter_config.json").is_file():
        from peft import PeftModel

        again: Any = AutoModelForCausalLM.from_pretrained(engine.loaded.source, dtype=dtype)
        again = PeftModel.from_pretrained(again, str(target))
    else:
        again = AutoModelForCausalLM.from_pretrained(target, dtype=dtype)
    worst = float((again(input_ids=ids).logits[0].float() - mine).abs().max())
    if not worst <= TOLERANCE * max(1.0, float(mine.abs().max())):
        raise InputError(
            f"{target} read back differs by {worst:.2g} in a logit. What was written is not what was trained. "
            "The folder is kept; report it with run.log."
        )


def model_card(title: str, facts: Mapping[str, object], body: str) -> str:
    """README.md of an exported model: YAML front matter that hubs read, then the text."""
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in facts.items())
    return f"---\n{front}\n---\n\n# {title}\n\n{body}\n"
