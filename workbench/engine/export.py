"""The trained model as a folder that other programs read, checked by reading it back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from workbench.engine.embedded import forget_quantisation
from workbench.engine.engine import Engine, base_model, decoder, head_of
from workbench.errors import InputError

TOLERANCE = 1e-3
"""Largest difference in a logit, nats, between the model in memory and the folder read back."""


def export(engine: Engine, folder: Path, card: str) -> Path:
    """Write `final/`: weights, tokenizer, chat template in both places servers look, README; returns the HF folder.

    Full training writes a model folder; an adapter writes `adapter/` in PEFT's format. Files get mode 0644, which
    safetensors does not give. Raises InputError when the folder read back gives other logits.
    """
    target = folder / "adapter" if engine.adapter else folder
    target.mkdir(parents=True, exist_ok=True)
    if not engine.adapter:
        forget_quantisation(base_model(engine.student))
    engine.student.save_pretrained(target)
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
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([engine.tokenizer("2 + 2 = 4")["input_ids"]], device=engine.settings.device)
    states = decoder(engine.student)(input_ids=ids, use_cache=False).last_hidden_state[0]
    mine = head_of(engine.student).logits(states)
    if engine.adapter:
        from peft.utils import load_peft_weights

        read = load_peft_weights(str(target), device="cpu")
        own = {n: p for n, p in engine.student.named_parameters() if p.requires_grad}
        worst = max(
            (
                float((value - own[name.replace(".weight", ".default.weight")].cpu()).abs().max())
                for name, value in read.items()
            ),
            default=float("inf"),
        )
    else:
        again: Any = AutoModelForCausalLM.from_pretrained(target, dtype=next(engine.student.parameters()).dtype)
        theirs = again(input_ids=ids.cpu()).logits[0].float()
        worst = float((theirs - mine.float().cpu()).abs().max())
    if not worst <= TOLERANCE:
        raise InputError(
            f"{target} read back differs by {worst:.2g} nats in a logit. The folder is kept; report it with run.log."
        )


def model_card(title: str, facts: Mapping[str, object], body: str) -> str:
    """README.md of an exported model: YAML front matter that hubs read, then the text."""
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in facts.items())
    return f"---\n{front}\n---\n\n# {title}\n\n{body}\n"
