"""Whose weights a role uses: how one checkpoint is teacher and student without two checkpoints where possible.

| training | refresh | the teacher is |
|---|---|---|
| any | live | the student's own module, without gradient |
| adapter | frozen | the same module with the adapter switched off: no second copy |
| adapter | every k, EMA | the base weights plus a delta of its own on the adapted layers |
| full | frozen, every k, EMA | a second module |

Under an adapter an average is taken of the *merged* delta: averaging the factors A and B apart gives a teacher that
has moved r^2 where it should have moved r (an error that SDFT implementations ship: arXiv:2601.19897).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from workbench.config import parse_adapter
from workbench.parts.refresh import LIVE
from workbench.records import Refresh


class TeacherWeights(Protocol):
    """The teacher's side of the checkpoint."""

    def module(self) -> contextlib.AbstractContextManager[Any]:
        """The causal LM to run as teacher, for the duration of the context."""
        ...

    def move(self, rate: float) -> None:
        """Teacher <- (1 - rate) * teacher + rate * student."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep; empty while the teacher is the initial policy or the student."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        ...


class Live:
    """The student, as of now."""

    def __init__(self, student: Any) -> None:
        """`student` is the module that trains."""
        self._student = student

    @contextlib.contextmanager
    def module(self) -> Iterator[Any]:
        """The student itself."""
        yield self._student

    def move(self, rate: float) -> None:
        """Nothing to do: it is the student."""

    def tensors(self) -> dict[str, Tensor]:
        """Nothing of its own."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Nothing of its own."""


class Copy:
    """A second module, for full training."""

    def __init__(self, student: Any) -> None:
        """Copies `student` as it is now."""
        self._student = student
        self._teacher = copy.deepcopy(student).requires_grad_(False)
        self._moved = False

    @contextlib.contextmanager
    def module(self) -> Iterator[Any]:
        """The copy."""
        yield self._teacher

    @torch.no_grad()
    def move(self, rate: float) -> None:
        """Average every parameter; rate 1 copies exactly."""
        self._moved = True
        for mine, theirs in zip(self._teacher.parameters(), self._student.parameters(), strict=True):
            mine.copy_(theirs) if rate == 1.0 else mine.lerp_(theirs, rate)

    def tensors(self) -> dict[str, Tensor]:
        """All weights once they have moved."""
        return dict(self._teacher.named_parameters()) if self._moved else {}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite the copy."""
        own = dict(self._teacher.named_parameters())
        for name, value in tensors.items():
            own[name].copy_(value)
        self._moved = bool(tensors)


class AdapterOff:
    """The base model under an adapter, with a delta of its own once it has moved."""

    def __init__(self, student: Any) -> None:
        """`student` is a PEFT model with one active LoRA adapter."""
        self._student = student
        self._layers = {name: m for name, m in student.named_modules() if hasattr(m, "get_delta_weight")}
        self._delta: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def module(self) -> Iterator[Any]:
        """The base, its adapted layers shifted by the teacher's delta while the context lasts.

        Whole weights are swapped, not added and subtracted: rounding would wear the base away.
        """
        base: dict[str, Tensor] = {}
        with self._student.disable_adapter():
            try:
                for name, delta in self._delta.items():
                    weight = self._layers[name].get_base_layer().weight
                    base[name] = weight.data
                    weight.data = weight.data + delta.to(weight.dtype)
                yield self._student.get_base_model()
            finally:
                for name, data in base.items():
                    self._layers[name].get_base_layer().weight.data = data

    @torch.no_grad()
    def move(self, rate: float) -> None:
        """Average the merged deltas; the initial one is zero."""
        for name, layer in self._layers.items():
            theirs = layer.get_delta_weight(layer.active_adapters[0]).float()
            mine = self._delta.get(name)
            self._delta[name] = rate * theirs if mine is None else mine.lerp(theirs, rate)

    def tensors(self) -> dict[str, Tensor]:
        """The deltas, once there are any."""
        return dict(self._delta)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up saved deltas."""
        device = next(self._student.parameters()).device
        self._delta = {name: value.to(device) for name, value in tensors.items()}


def with_lora(model: Any, adapter: str) -> Any:
    """Wrap `model` in a LoRA adapter described as `lora:r=16,alpha=32`. Raises UsageError for another description."""
    from peft import LoraConfig, get_peft_model

    wanted = parse_adapter(adapter)
    assert wanted is not None, "none is no adapter"
    config = LoraConfig(
        r=wanted.rank,
        lora_alpha=wanted.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, config)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:  # the factors keep float32 under a bfloat16 base: small updates would be lost
            parameter.data = parameter.data.float()
    return peft_model


def teacher_weights(student: Any, refresh: Refresh, adapter: bool) -> TeacherWeights:
    """The cheapest arrangement that is exact."""
    if refresh == LIVE:
        return Live(student)
    return AdapterOff(student) if adapter else Copy(student)


def fingerprint(module: Any) -> str:
    """sha256 over all parameters, name by name; equal for equal weights whatever the order they were made in."""
    digest = hashlib.sha256()
    for name, value in sorted(module.named_parameters()):
        data = value.detach().cpu().contiguous()
        digest.update(name.encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
