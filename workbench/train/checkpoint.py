"""Everything that makes a run continue exactly; a kill or a full disk never costs the last good state.

A checkpoint is a directory `step-<8 digits>` that appears by one rename, once every byte reached the disk:

    NAME.safetensors   the tensors of one part (model, teacher, optimizer ...)
    state.json         all that is not a tensor
    MANIFEST.json      step, sizes, sha256, versions, config hash, and a digest of itself

A flipped bit loads without complaint in every tensor format, so nothing is read before its hash is right,
and nothing here is a pickle. One process writes: hold `lock` around `sweep` and `save`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.disk import sync, write_file
from workbench.errors import InputError
from workbench.train.interrupts import disk_error, free_space
from workbench.train.interrupts import lock as lock
from workbench.train.interrupts import writable as writable

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Raised when an older reader would misread the files. How MANIFEST.json is digested never changes."""

FEWEST_KEPT = 2
"""A checkpoint may rot after it was written: there is always one to fall back on."""

Tree = Any
"""Dicts, lists and tuples of tensors and plain values, nested as they come."""

MANIFEST, STATE = "MANIFEST.json", "state.json"
_STEP = re.compile(r"step-(\d{8,})")
_REPLACED = re.compile(r"\.replaced-(\d+)-\d+")
_PART = re.compile(r"[a-z0-9][a-z0-9_-]*")
_log = logging.getLogger(__name__)


class _RejectedError(Exception):
    """Why a checkpoint must not be loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: every file had the hash its manifest promises."""

    step: int
    folder: Path
    state: Mapping[str, Any]
    config_hash: str
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What the user must be told: newer checkpoints that were rejected, and why."""

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors saved under `name`, on the CPU. Raises InputError where there is no such part."""
        from safetensors.torch import load_file

        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            parts = sorted(other.stem for other in self.folder.glob("*.safetensors"))
            raise InputError(f"{self.folder} holds no '{name}'. It has: {', '.join(parts) or 'nothing'}.")
        return load_file(path)


def save(
    root: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    config_hash: str,
    keep: int = FEWEST_KEPT,
) -> Path:
    """Write one checkpoint and retire old ones. On any failure the ones before it are as they were.

    `tensors` maps a part's name to its tensors, without aliases inside a part; `state` is plain JSON (`pack`
    turns an optimizer's state into both). Raises ResourceError when the disk is full or fails.
    """
    temporary = root / f".tmp-{step}-{os.getpid()}"
    needed = sum(t.numel() * t.element_size() for part in tensors.values() for t in part.values())
    try:
        root.mkdir(parents=True, exist_ok=True)
        if (free := free_space(root)) is not None and free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _write(temporary, tensors, state)
        _seal(temporary, {"format": FORMAT, "step": step, "config": config_hash})
        final = _publish(temporary, root, step)
    except BaseException as error:
        # Also for a second Ctrl-C: the temporary directory must not outlive the attempt.
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise disk_error(f"checkpoint of step {step} not saved", root, error, needed) from error
        raise
    prune(root, keep, trusted=final)
    return final


def newest(root: Path) -> Checkpoint | None:
    """The newest checkpoint whose hashes verify; None where none was ever saved.

    Raises InputError when checkpoints exist and none verifies (a run never restarts silently at step 0), or
    when the newest was written by a later format.
    """
    rejected: list[str] = []
    for folder in _folders(root):
        try:
            manifest = _verified(folder)
            state = json.loads((folder / STATE).read_bytes())
        except (_RejectedError, OSError) as why:
            rejected.append(f"{folder.name}: {why}")
            continue
        notes = tuple(f"checkpoint rejected, falling back to {folder.name}: {line}" for line in rejected)
        return Checkpoint(manifest["step"], folder, state, manifest["config"], manifest["versions"], notes)
    if rejected:
        raise InputError(
            f"none of the {len(rejected)} checkpoints in {root} can be trusted. Their files changed since "
            "they were saved. Start over with --fresh, which moves the run aside and deletes nothing.\n  "
            + "\n  ".join(rejected)
        )
    return None


def at(folder: Path) -> Checkpoint:
    """One checkpoint, verified. Raises InputError where its files are not what was saved."""
    try:
        manifest = _verified(folder)
        state = json.loads((folder / STATE).read_bytes())
    except (_RejectedError, OSError) as why:
        raise InputError(f"{folder} cannot be trusted: {why}. Choose another step of the run.") from why
    return Checkpoint(manifest["step"], folder, state, manifest["config"], manifest["versions"])


def sweep(root: Path, keep: int | None = None) -> list[str]:
    """Clear what a killed process left behind; with `keep` finish its pruning. Returns the names removed."""
    if not root.is_dir():
        return []
    gone = []
    for path in sorted(root.iterdir()):
        replaced = _REPLACED.fullmatch(path.name)
        if replaced and not (home := root / f"step-{int(replaced[1]):08d}").exists():
            path.rename(home)  # killed between the two renames of a replacement: the old one still counts
        elif replaced or path.name.startswith((".tmp-", ".trash-")):
            shutil.rmtree(path, ignore_errors=True)
            gone.append(path.name)
    return gone + (prune(root, keep) if keep is not None else [])


def prune(root: Path, keep: int, trusted: Path | None = None) -> list[str]:
    """Remove checkpoints older than the `keep` newest verified ones; `trusted` was verified by its writing.

    The ones kept are hashed before anything goes: two unreadable copies would be no reserve.
    """
    keep = max(keep, FEWEST_KEPT)
    verified, gone, folders = 0, [], _folders(root)
    for folder in folders if len(folders) > keep else []:
        if verified >= keep:
            gone.append(folder.name)
            _discard(folder)
        elif folder == trusted or rejection(folder) is None:
            verified += 1
    return gone


def rejection(folder: Path) -> str | None:
    """Why a checkpoint must not be loaded; None when every hash is right."""
    try:
        _verified(folder)
    except (_RejectedError, InputError, OSError) as why:
        return str(why)
    return None


def pack(tree: Tree) -> tuple[dict[str, Tensor], Tree]:
    """Split nested dicts, lists and tuples (an optimizer's state) into tensors and JSON that names them."""
    import torch

    tensors: dict[str, Tensor] = {}

    def walk(node: Tree) -> Tree:
        if isinstance(node, torch.Tensor):
            tensors[str(len(tensors))] = node
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(node, Mapping):
            # Pairs, because JSON would turn the integer keys of an optimizer's state into text.
            return {"dict": [[key, walk(value)] for key, value in node.items()]}
        if isinstance(node, (list, tuple)):
            return {type(node).__name__: [walk(value) for value in node]}
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise TypeError(f"cannot pack a {type(node).__name__}: only tensors and plain values are stored.")

    return tensors, walk(tree)


def unpack(skeleton: Tree, tensors: Mapping[str, Tensor]) -> Tree:
    """The inverse of `pack`."""
    if not isinstance(skeleton, dict):
        return skeleton
    ((kind, body),) = skeleton.items()
    if kind == "tensor":
        return tensors[body]
    if kind == "dict":
        return {key: unpack(value, tensors) for key, value in body}
    return (tuple if kind == "tuple" else list)(unpack(value, tensors) for value in body)


def _folders(root: Path) -> list[Path]:
    """Published checkpoints, newest first."""
    found = [(int(m[1]), path) for path in root.glob("step-*") if (m := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    if wrong := [name for name in tensors if not _PART.fullmatch(name)]:
        raise ValueError(f"'{wrong[0]}' cannot name a part: lower-case letters, digits, - and _.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, part in tensors.items():
        path = folder / f"{name}.safetensors"
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in part.items()}, path)
        path.chmod(0o644)  # the library writes 0600: a colleague or a server could not read it
        sync(path)
    write_file(folder / STATE, json.dumps(state).encode("ascii"))


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    """Describe every file in MANIFEST.json, last, and bring the directory itself to the disk."""
    files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    body = facts | {"files": files, "versions": _versions()}
    body["digest"] = _digest(body)
    write_file(folder / MANIFEST, json.dumps(body, indent=1).encode("ascii"))
    sync(folder)


def _publish(temporary: Path, root: Path, step: int) -> Path:
    final, replaced = root / f"step-{step:08d}", root / f".replaced-{step}-{os.getpid()}"
    if final.exists():  # a rejected one that the run has reached again, or a second save of one step
        final.rename(replaced)
    try:
        temporary.rename(final)
    except BaseException:
        if replaced.exists():
            replaced.rename(final)
        raise
    sync(root)
    if replaced.exists():
        _discard(replaced)
    return final


def _discard(folder: Path) -> None:
    """Out of sight by a rename, then deleted: a kill in between leaves no half checkpoint in sight."""
    trash = folder.with_name(f".trash-{folder.name.lstrip('.')}-{os.getpid()}")
    try:
        folder.rename(trash)
    except OSError as error:
        _log.warning("could not remove %s: %s", folder, error)
    shutil.rmtree(trash, ignore_errors=True)


def _verified(folder: Path) -> dict[str, Any]:
    """The manifest, once everything it says is true. Raises _RejectedError; InputError for a later format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        promised = manifest.pop("digest")
    except FileNotFoundError:
        raise _RejectedError(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise _RejectedError(f"{MANIFEST} is damaged") from None
    if promised != _digest(manifest):
        raise _RejectedError(f"{MANIFEST} is damaged")
    if manifest["format"] > FORMAT:
        raise InputError(
            f"{folder} was written by a later workbench. Its format is {manifest['format']}, this one reads "
            f"{FORMAT}; it names {manifest.get('versions')}. Update the workbench."
        )
    if folder.name != f"step-{manifest['step']:08d}":
        raise _RejectedError(f"{MANIFEST} says step {manifest['step']}")
    for name, fact in manifest["files"].items():
        _check_file(folder / name, fact)
    return dict(manifest)


def _check_file(path: Path, fact: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise _RejectedError(f"{path.name} is missing")
    if (size := path.stat().st_size) != fact["size"]:
        raise _RejectedError(f"{path.name} has {size} bytes instead of {fact['size']}")
    if _sha256(path) != fact["sha256"]:
        raise _RejectedError(f"{path.name} has another sha256 than its manifest: its content changed")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("opsd-workbench", "torch", "transformers", "safetensors"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
