"""The trained model as a folder that other programs read, checked by reading it back."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from workbench.engine.embedded import EMBEDDED, forget_quantisation
from workbench.engine.engine import Engine
from workbench.engine.heads import base_model, decoder, head_of
from workbench.errors import InputError

TOLERANCE = 1e-3
"""Largest difference in a logit, as a share of the largest logit, between memory and the folder read back."""


def export(engine: Engine, folder: Path, card: str, *, merge: bool = False) -> Path:
    """Write `final/`: weights, tokenizer, chat template in both places servers look, README; returns the HF folder.

    Full training writes a model folder; an adapter writes `adapter/` in PEFT's format, or with `merge` a model folder
    with the adapter in its weights. Files get mode 0644, which safetensors does not give. Raises InputError when the
    folder read back gives other logits, or an adapter cannot be merged into weights that are held in few bits.
    """
    apart = stays_apart(engine) and not merge
    target = folder / "adapter" if apart else folder
    model = engine.student
    if engine.adapter is not None and not apart:
        refuse_quantised(base_model(model).config)
        model = copy.deepcopy(model).merge_and_unload()
    if not apart:
        forget_quantisation(base_model(model))
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    engine.tokenizer.save_pretrained(target)
    _template_everywhere(target)
    if apart:
        _base_from_anywhere(target)
    for place in {folder, target}:  # PEFT leaves a card of its own, in which nothing is filled in
        (place / "README.md").write_text(card, encoding="utf-8", errors="replace")
    for path in folder.rglob("*"):
        if path.is_file():
            os.chmod(path, 0o644)
    _read_back(engine, target)
    return target


def stays_apart(engine: Engine) -> bool:
    """Whether `final/` is an adapter alone. On a base merged in memory it would name a base that no folder holds."""
    return engine.adapter is not None and not engine.loaded.merged


def _template_everywhere(target: Path) -> None:
    """Older servers read the chat template from tokenizer_config.json, newer ones from chat_template.jinja."""
    jinja, config = target / "chat_template.jinja", target / "tokenizer_config.json"
    if jinja.is_file() and config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        content["chat_template"] = jinja.read_text(encoding="utf-8")
        config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _base_from_anywhere(target: Path) -> None:
    """A base that is a folder is named by its whole path: `model` would be another folder elsewhere, or a hub id."""
    config = target / "adapter_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    base = Path(content["base_model_name_or_path"])
    if base.is_dir():
        content["base_model_name_or_path"] = str(base.resolve())
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


def refuse_quantised(config: Any) -> None:
    """Refuse to merge into weights that are held in few bits. Raises InputError."""
    kind = getattr(config, "quantization_config", None)
    if kind:
        method = kind.get("quant_method") if isinstance(kind, Mapping) else getattr(kind, "quant_method", "quantised")
        raise InputError(
            f"the base holds its weights in few bits ({method}): merging an adapter would round it to them. Nothing "
            "was written. Export the adapter alone, or train on the base in full precision."
        )


def front_matter(facts: Mapping[str, object]) -> str:
    """The YAML block that hubs read: one JSON value a line, which YAML takes as its own."""
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items())
    return "---\n" + "\n".join(lines) + "\n---\n"


def licence_of(model: str, source: str) -> str | None:
    """What the card of the base states as its licence; None where there is no card, or it says nothing."""
    if model in EMBEDDED:
        return "apache-2.0"
    readme: object = Path(source) / "README.md"
    if not Path(source).is_dir():
        from huggingface_hub import try_to_load_from_cache

        readme = try_to_load_from_cache(source, "README.md")
    if not isinstance(readme, str | Path) or not Path(readme).is_file():
        return None
    head = Path(readme).read_text(encoding="utf-8", errors="replace")[:20_000]
    found = re.match(r"---\n(?:.*\n)*?license: *[\"']?([A-Za-z0-9.-]+)", head.partition("\n---")[0] + "\n")
    return found[1] if found else None


def ways_to_use(folder: Path, task: tuple[Path, str] | None = None) -> list[str]:
    """Commands for a folder that `export` wrote, to paste; with a task's folder and name how to score it too."""
    where, base = shlex.quote(str(folder)), ""
    config = folder / "adapter_config.json"
    if config.is_file():
        base = shlex.quote(str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]))
    serve = f"vllm serve {base} --enable-lora --lora-modules trained={where}" if base else f"vllm serve {where}"
    lines = [serve, f"transformers chat {'trained' if base else where} http://localhost:8000"]  # asks that server
    if task is not None:
        model = f"pretrained={base},peft={where}" if base else f"pretrained={where}"
        place = f"--include_path {shlex.quote(str(task[0]))} --tasks {task[1]}"
        lines.append(f"lm_eval run --model hf --model_args {model} --apply_chat_template {place}")
    return lines
