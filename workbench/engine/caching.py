"""Asking a teacher once: rows of a cache from completions behind its prompts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.divergence import Head, Scored, SparseTeacher
from workbench.engine.cache_format import MANIFEST, Identity, Manifest, file_hash, ids_hash, packed
from workbench.engine.engine import Engine
from workbench.engine.roles import fingerprint
from workbench.engine.speakers import Speaker
from workbench.engine.vocabularies import real_size, tokenizer_hash
from workbench.errors import InputError


def identity_of(engine: Engine, *, top_k: int | None, temperature: float, dtype: str) -> Identity:
    """Whose words a cache of this engine's student will hold; `top_k` None: hidden states."""
    return Identity(
        model=engine.loaded.source,
        weights_sha256=fingerprint(engine.student),
        tokenizer_sha256=tokenizer_hash(engine.tokenizer),
        kind="hidden" if top_k is None else "top_k",
        temperature=None if top_k is None else temperature,
        top_k=top_k,
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
    )


@dataclass(frozen=True)
class Asked:
    """The teacher of a cache: how it is spoken to, and how large its head is."""

    speaker: Speaker
    rows: int
    """Of its own head, padding included."""
    width: int
    head: Head | None = None
    """Without padding; None: nobody is there to be asked, log-probs are taken over."""

    @classmethod
    def of(cls, engine: Engine) -> Asked:
        """The model an engine runs as its student."""
        rows = engine.student.get_output_embeddings().weight
        return cls(engine.speaker("student"), len(rows), rows.shape[1], engine.head("student"))


def begin(folder: Path, asked: Asked, identity: Identity) -> Manifest:
    """A new cache with tokenizer and head, or the one in `folder` if the same teacher speaks in it.

    Raises InputError naming the field in which the teacher of an existing cache differs.
    """
    if (folder / MANIFEST).is_file():
        manifest = Manifest.read(folder)
        manifest.identity.refuse(identity, "this teacher")
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    head, tokenizer, head_hash = asked.head, asked.speaker.tokenizer, None
    tokenizer.save_pretrained(folder / "tokenizer")
    if identity.kind == "hidden" and head is not None:
        head_hash = _write_head(folder / "head.safetensors", head)
    manifest = Manifest(
        identity=identity,
        size=real_size(tokenizer),
        rows=asked.rows,
        width=asked.width,
        stop_ids=tuple(sorted(asked.speaker.stop_ids)),
        max_length=asked.speaker.max_length,
        scale=1.0 if head is None else head.scale,
        softcap=None if head is None else head.softcap,
        head_sha256=head_hash,
        written=head is not None,
    )
    manifest.write(folder)
    return manifest


def _write_head(path: Path, head: Head) -> str:
    from safetensors.torch import save_file

    tensors = {"weight": head.weight.detach().contiguous().clone()}
    if head.bias is not None:
        tensors["bias"] = head.bias.detach().contiguous().clone()
    save_file(tensors, str(path))
    os.chmod(path, 0o644)  # safetensors keeps files to their owner
    return file_hash(path)


@torch.no_grad()
def said(
    engine: Engine, identity: Identity, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """What the teacher says about each completion, as the columns of a row. Scored side by side."""
    states = engine.score("student", prompts, completions)
    pieces = torch.split(states, [len(c) for c in completions])
    rows = []
    for prompt, completion, piece in zip(prompts, completions, pieces, strict=True):
        row: dict[str, Any] = {"prompt_sha256": ids_hash(prompt), "tokens": list(completion)}
        if identity.kind == "hidden":
            row["states"] = packed(piece, identity.dtype)
        else:
            assert identity.temperature is not None
            assert identity.top_k is not None
            row |= likeliest(piece, engine.head("student", identity.temperature), completion, identity.top_k)
        rows.append(row)
    return rows


def likeliest(states: Tensor, head: Head, completion: Sequence[int], k: int) -> dict[str, list[Any]]:
    """The k likeliest entries of n rows, the log of the mass outside, and each written token's log-prob, nats.

    The rest is summed over the others, not 1 - sum: a small tail would be rounding. Raises InputError for k > V.
    """
    size = len(head.weight)
    if k >= size:
        raise InputError(f"--top-k {k}: there are {size} tokens. All of them are hidden states: use --hidden.")
    written = torch.tensor(list(completion), dtype=torch.long, device=states.device)
    top = SparseTeacher.of(Scored(states, head), k, written=written)
    assert top.tail_logp is not None
    assert top.entropy is not None
    assert top.target_logp is not None
    per_row = {"tail_logp": top.tail_logp, "entropy": top.entropy, "target_logp": top.target_logp}
    return {name: x.flatten().tolist() for name, x in {"ids": top.ids, "logp": top.logp, **per_row}.items()}
