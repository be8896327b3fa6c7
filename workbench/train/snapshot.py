"""What a checkpoint holds of the engine, and how a fresh engine takes it up again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.engine.engine import Engine
from workbench.engine.replicas import part, whole
from workbench.engine.roles import fingerprint
from workbench.errors import InputError
from workbench.recipe import Recipe
from workbench.train import checkpoint
from workbench.train.checkpoint import Checkpoint, pack, unpack


@dataclass(frozen=True)
class Vault:
    """Where checkpoints go, how many are kept, and which run they belong to."""

    root: Path
    config_hash: str
    keep: int = 2


def save(vault: Vault, engine: Engine, recipe: Recipe, step: int, extra: dict[str, Any]) -> Path:
    """Write a checkpoint: trained weights, optimizer, the teacher where it has moved, and `extra` (plain JSON).

    Nothing random is kept: every draw is a function of the seed, the step and the problem. All ranks save together,
    the first one writes: whole tensors, so that any number of ranks can go on from them.
    """
    own, teacher = engine.parameters(), engine.teacher.tensors()
    optimizer, skeleton = pack(engine.updates.adamw(recipe.optimizer).state_dict()["state"])
    parts = {"model": own, "optimizer": optimizer} | ({"teacher": teacher} if teacher else {})
    tensors = {name: _gathered(engine, held) for name, held in parts.items()}
    if not engine.ranks.first:
        return vault.root
    state = {"optimizer": skeleton, "teacher": bool(teacher), "base": base_fingerprint(engine), **extra}
    state |= {"weights_version": engine.weights_version, "skipped_updates": engine.updates.skipped}
    return checkpoint.save(vault.root, step, tensors, state, config_hash=vault.config_hash, keep=vault.keep)


def restore(engine: Engine, recipe: Recipe, saved: Checkpoint) -> None:
    """Make a fresh engine what it was when `saved` was written.

    Raises InputError when the checkpoint belongs to another model: other names, other shapes, or another base under
    the same adapter.
    """
    restore_weights(engine, saved)
    adamw = engine.updates.adamw(recipe.optimizer)
    state, own = unpack(saved.state["optimizer"], saved.tensors("optimizer")), list(engine.parameters().values())
    state = {k: {n: part(own[int(k)], t) for n, t in row.items()} for k, row in state.items()}
    adamw.load_state_dict(
        {"state": {int(k): v for k, v in state.items()}, "param_groups": adamw.state_dict()["param_groups"]}
    )
    engine.updates.skipped = saved.state["skipped_updates"]


@torch.no_grad()
def restore_weights(engine: Engine, saved: Checkpoint) -> None:
    """Both roles as they were when `saved` was written, without what only training needs. Raises InputError."""
    own, stored = engine.parameters(), saved.tensors("model")
    if own.keys() != stored.keys() or any(own[n].shape != stored[n].shape for n in own):
        odd = sorted(own.keys() ^ stored.keys()) or [n for n in own if own[n].shape != stored[n].shape]
        raise InputError(
            f"{saved.folder} is of another model: {len(odd)} tensors differ (first: {odd[0]}). "
            "Resume with the same --model and --adapter."
        )
    if saved.state["base"] != base_fingerprint(engine):
        raise InputError(
            f"{saved.folder} was trained from other initial weights than --model now gives. "
            "Point --model at the original."
        )
    for name, value in stored.items():
        own[name].copy_(part(own[name], value))
    if saved.state["teacher"]:
        engine.teacher.load(saved.tensors("teacher"))
    engine.serve(saved.state["weights_version"])


def _gathered(engine: Engine, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the first rank, one after the other; none elsewhere. All ranks must ask."""
    kept = {}
    for name, tensor in held.items():
        found = whole(tensor.detach())
        if engine.ranks.first:
            kept[name] = found.cpu() if engine.ranks.size > 1 else found
    return kept


def base_fingerprint(engine: Engine) -> str:
    """sha256 of the weights the run started from; taken once, before the first update."""
    if not engine.initial_fingerprint:
        engine.initial_fingerprint = fingerprint(engine.student)
    return engine.initial_fingerprint


def weights_hash(engine: Engine) -> str:
    """sha256 of what has been trained: equal for a run that was killed and resumed and one that was not."""
    engine.replicas.settle()
    digest = hashlib.sha256(fingerprint(engine.student).encode())
    for name, value in sorted(engine.teacher.tensors().items()):
        digest.update(
            name.encode() + whole(value.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
