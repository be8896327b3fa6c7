"""From what the user wrote after `--model` to a model, a tokenizer and the facts about them."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from workbench.engine.embedded import EMBEDDED, converted, embedded_gguf
from workbench.engine.speakers import Speaker
from workbench.errors import InputError


@dataclass(frozen=True)
class Loaded:
    """A model and its tokenizer, with what a run records about them."""

    model: Any
    tokenizer: Any
    source: str
    """Folder or hub id that was read."""
    revision: str | None
    notes: tuple[str, ...]
    merged: bool = False
    """Whether an adapter was merged in: then no folder on disk holds these weights."""


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda[:n]` or `mps`. Raises InputError for one this torch does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"  # mps has no float64, which sampling uses
    kind = name.split(":")[0]
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in present:
        raise InputError(f"--device {name}: no such device. Use cpu, cuda or mps.")
    if not present[kind]:
        build = (
            f"this torch is a CPU build ({torch.__version__})"
            if kind == "cuda" and not torch.version.cuda
            else "it is not available here"
        )
        raise InputError(f"--device {name}: {build}. Use --device cpu or install a build for it.")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device, adapter: bool) -> torch.dtype:
    """The dtype weights are held in.

    `auto`: float32, except bfloat16 on a GPU when only an adapter trains. Full training keeps float32 master
    weights on a GPU too (the forward runs under bfloat16 autocast): at a learning rate of 1e-6 an update is smaller
    than half a bfloat16 unit and would be lost.
    """
    if name == "auto":
        return torch.bfloat16 if adapter and device.type == "cuda" else torch.float32
    kinds = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
    if name not in kinds:
        raise InputError(f"--dtype {name}: not a dtype weights are held in. Use auto, float32 or bfloat16.")
    return kinds[name]


def load(
    spec: str, *, dtype: torch.dtype, chat_template: str | None = None, fallback_template: str | None = None
) -> Loaded:
    """Load `spec`: an embedded name, a `.gguf` file, an HF folder, an adapter folder or a hub id.

    `chat_template` replaces the tokenizer's own, `fallback_template` stands in where it has none. An adapter is
    merged into its base, so that "the initial policy" is the model the user pointed at.
    Raises InputError with the way on for everything that can be wrong with the name or the files.
    """
    _quiet()
    notes: list[str] = []
    source, adapter = _resolve(spec, notes)
    model, tokenizer = _read(source, spec, dtype)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    if chat_template is None and not getattr(tokenizer, "chat_template", None):
        chat_template = fallback_template
    if chat_template is not None:
        tokenizer.chat_template = _text(Path(chat_template))
        notes.append(f"chat template from {chat_template}")
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"tokenizer of '{spec}' has no chat template. Give --chat-template FILE or use an -Instruct model."
        )
    revision = getattr(model.config, "_commit_hash", None)
    return Loaded(model, tokenizer, source, revision, tuple(notes), adapter is not None)


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder alone. Raises InputError."""
    _quiet()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"no tokenizer in {folder}. transformers says: {first}. Copy the folder again.") from error


def load_speaker(spec: str, fallback_template: str | None = None) -> Speaker:
    """How a model is spoken to, without its weights. Raises InputError."""
    from transformers import AutoConfig, GenerationConfig

    source, _ = _resolve(spec, [])
    tokenizer = load_tokenizer(source)
    if not getattr(tokenizer, "chat_template", None):
        if fallback_template is None:
            raise InputError(f"tokenizer of '{spec}' has no chat template. Give --chat-template FILE.")
        tokenizer.chat_template = _text(Path(fallback_template))
    facts = SimpleNamespace(config=AutoConfig.from_pretrained(source))
    with contextlib.suppress(OSError):  # not every model has one
        facts.generation_config = GenerationConfig.from_pretrained(source)
    return Speaker.of(facts, tokenizer, spec)


def _quiet() -> None:
    """No bars of other libraries across our own lines; their warnings go to run.log by way of `logging`."""
    from transformers.utils import logging

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _resolve(spec: str, notes: list[str]) -> tuple[str, Path | None]:
    """(what to read, adapter folder to merge or None)."""
    if spec in EMBEDDED:
        notes.append(f"{EMBEDDED[spec][1]}, dequantised from Q4_1")
        return str(converted(embedded_gguf(spec))), None
    path = Path(spec).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"no file {spec} (looked in {path.absolute()}). Give the path of a .gguf file.")
        notes.append(f"dequantised from {path.name}")
        return str(converted(path)), None
    if path.is_dir():
        return _resolve_folder(path, notes)
    if spec.startswith((".", "/", "~")):
        raise InputError(
            f"no folder {spec} (looked in {path.absolute()}; it starts with {spec[0]} so the Hub was not tried)."
        )
    return spec, None


def _resolve_folder(path: Path, notes: list[str]) -> tuple[str, Path | None]:
    adapter = path / "adapter_config.json"
    if adapter.is_file():
        try:
            base = json.loads(_text(adapter)).get("base_model_name_or_path")
        except (ValueError, AttributeError) as error:
            raise InputError(f"{adapter} is not JSON ({error}). Copy the adapter again.") from error
        if not base:
            raise InputError(f"{adapter} names no base model. Add base_model_name_or_path, or give a merged folder.")
        notes.append(f"{path} holds adapter_config.json: a LoRA adapter of {base}; loading {base} and merging it in")
        return _resolve(base, notes)[0], path
    if not (path / "config.json").is_file():
        files = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise InputError(
            f"{path} holds no config.json (it holds: {files}). Give an HF model folder, an adapter folder or a .gguf."
        )
    return str(path), None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} (looked in {path.absolute()}): {error}. Check the path.") from error


def _read(source: str, spec: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_not_loadable(source, spec, error)) from error
    return model, tokenizer


def _not_loadable(source: str, spec: str, error: Exception) -> str:
    if Path(source).is_dir():
        first = str(error).strip().splitlines()[0][:200]
        return (
            f"the folder '{spec}' does not load as a causal LM. transformers says: {first}. "
            "Check its config.json and weights."
        )
    cached = _cached_models()
    close = difflib.get_close_matches(source, cached, n=1, cutoff=0.6)
    hint = f"Closest in your cache: {close[0]}. " if close else ""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return (
            f"model '{spec}' is not in the local cache and HF_HUB_OFFLINE is set. {hint}Unset it, or --model smollm2."
        )
    return (
        f"model '{spec}' could not be read from the Hub. {hint}"
        "Check the spelling and the network, or hf auth login if private."
    )


def _cached_models() -> list[str]:
    with contextlib.suppress(Exception):  # a broken cache must not hide the real message
        from huggingface_hub import scan_cache_dir

        return sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    return []
