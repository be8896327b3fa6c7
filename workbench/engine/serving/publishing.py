"""Weights as a folder that a server reloads: complete, untied, and there at once or not at all."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from workbench.disk import sync
from workbench.engine.embedded import forget_quantisation
from workbench.engine.heads import base_model
from workbench.errors import ResourceError

SHARD = 4 << 30
"""Bytes of one file of weights; no more than one file's tensors are in memory beside the model."""


class Publisher:
    """Writes the versions of one model below one folder; old ones are removed by `retire`."""

    def __init__(self, folder: Path, student: Any) -> None:
        """`student` is the module that trains, with an adapter or without: its configuration, never its tensors."""
        self.folder, self._student = folder.absolute(), student

    @property
    def adapter(self) -> bool:
        """Whether versions are adapters."""
        return hasattr(self._student, "peft_config")

    def publish(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Path:
        """`folder/<version>`, complete: written under another name, synced to the disk, renamed.

        Raises ResourceError when the disk is full.
        """
        target = self.folder / str(version)
        try:
            with appearing(target) as fresh:
                if self.adapter:
                    self._write_adapter(weights, fresh)
                else:
                    write_untied(self._student, weights, fresh)
        except OSError as error:
            raise ResourceError(
                f"weights {version} could not be written to {self.folder} ({error}). The server reads them from there. "
                "Free some disk, or use another --output."
            ) from error
        return target

    def retire(self, keep: Iterable[int]) -> None:
        """Remove every version but these."""
        names = {str(version) for version in keep}
        for path in self.folder.iterdir():
            if path.name not in names:
                shutil.rmtree(path, ignore_errors=True)

    def _write_adapter(self, weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
        """PEFT's own format: the name of the adapter is no part of a tensor's name."""
        from safetensors.torch import save_file

        name, config = next(iter(self._student.peft_config.items()))
        tensors = {n.replace(f".{name}.", "."): _plain(t) for n, t in weights}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        plain = copy.copy(config)
        plain.inference_mode = True
        plain.save_pretrained(str(folder))


def write_untied(model: Any, weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """A model's folder of (HF name, whole tensor), with its output layer written out even where it is tied.

    A server keeps packed copies of its weights and renews those it is sent: a tied output layer is sent nothing and
    would stay what it was, while everything else moves on.
    """
    from safetensors.torch import save_file

    base = base_model(model)
    forget_quantisation(base)
    head, source = _tied(base)
    index, size = dict[str, str](), 0
    for number, tensors in enumerate(_shards(_with_head(weights, head, source)), 1):
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
        size += sum(t.numel() * t.element_size() for t in tensors.values())
    facts = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    config = copy.deepcopy(base.config)
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        part.tie_word_embeddings = False
    config.save_pretrained(folder)
    if getattr(base, "generation_config", None) is not None:
        base.generation_config.save_pretrained(folder)


def write_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """A model that a server can start on: untied, with its tokenizer; complete or not there."""
    with appearing(folder) as fresh:
        write_untied(model, model.named_parameters(), fresh)
        tokenizer.save_pretrained(fresh)


def _tied(base: Any) -> tuple[str, str | None]:
    """(name of the output layer's weight, name of the tensor it shares); None where it has its own."""
    output = base.get_output_embeddings()
    module = next(name for name, m in base.named_modules() if m is output)
    source = next((name for name, p in base.named_parameters() if p is output.weight), None)
    head = f"{module}.weight"
    return head, None if source == head else source


def _with_head(weights: Iterable[tuple[str, Tensor]], head: str, source: str | None) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        yield name, tensor
        if name == source:
            yield head, tensor


def _shards(weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Plain tensors, gathered until a file is full."""
    held, size = dict[str, Tensor](), 0
    for name, tensor in weights:
        bytes_ = tensor.numel() * tensor.element_size()
        if held and size + bytes_ > SHARD:
            yield held
            held, size = {}, 0
        held[name] = _plain(tensor)
        size += bytes_
    yield held


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and nobody else's memory: what is written stays what it was."""
    return tensor.detach().to("cpu", copy=True).contiguous()


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder to fill, which is there by one rename once every byte is on the disk; what stood there goes."""
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    for path in fresh.iterdir():
        os.chmod(path, 0o644)  # the server may be another user
        sync(path)
    sync(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    sync(folder.parent)
