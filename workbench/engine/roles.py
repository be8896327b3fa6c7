"""Whose weights a role uses: how one checkpoint is teacher and student without two checkpoints where possible.

| training | refresh | the teacher is |
|---|---|---|
| any | live | the student's own module, without gradient |
| adapter | frozen | the same module with the adapter switched off: no second copy |
| adapter | every k, EMA | the base weights plus a delta of its own on the adapted layers |
| full | frozen, every k, EMA | a second module |
| any | frozen | another model (`--teacher`), or nobody whom one could run: a cache, texts |

Under an adapter an average is taken of the *merged* delta: averaging the factors A and B apart gives a teacher that
has moved r^2 where it should have moved r (an error that SDFT implementations ship: arXiv:2601.19897).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from workbench.config import parse_adapter
from workbench.divergence import Head
from workbench.engine.replicas import part, whole
from workbench.engine.speakers import Speaker
from workbench.parts.refresh import EXTERNAL, FROZEN, LIVE
from workbench.records import Refresh, Role

if TYPE_CHECKING:
    from workbench.engine.teachers import External, Local


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

    @property
    def held(self) -> Any:
        """The copy, for whoever arranges where it lies."""
        return self._teacher

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
            own[name].copy_(part(own[name], value))
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


class Outside:
    """Another model, or nobody: what it is never moves and is in no checkpoint."""

    def __init__(self, model: Any, head: Head | None, device: torch.device) -> None:
        """`head` reads its states, and lies where the student is; `model` None: there is nobody to run."""
        self._model, self.head, self.device = model, head, device

    @contextlib.contextmanager
    def module(self) -> Iterator[Any]:
        """The model."""
        assert self._model is not None, "a recipe that runs its teacher is refused with a teacher that cannot be run"
        yield self._model

    def move(self, rate: float) -> None:
        """Never."""
        raise AssertionError("a recipe that refreshes is refused with a teacher that is not the student")

    def tensors(self) -> dict[str, Tensor]:
        """Nothing of the student's run."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Nothing of the student's run."""


@dataclass(frozen=True)
class Cast:
    """Who plays the roles beside the student."""

    teacher: External | None = None
    """None: the student's own weights, as `Refresh` says."""
    reference: Local | None = None
    """None: the initial student."""
    needs_reference: bool = False

    @property
    def size(self) -> int | None:
        """Entries of the vocabulary that mean the same to every model here; None while there is one model."""
        proofs = [other.proof for other in (self.teacher, self.reference) if other is not None]
        return next((proof.size for proof in proofs if proof is not None), None)

    def outsiders(self) -> dict[Role, Outside]:
        """The roles that other models play."""
        others: dict[Role, Local | External | None] = {"teacher": self.teacher, "reference": self.reference}
        return {role: other.weights for role, other in others.items() if other is not None}

    def speakers(self, student: Speaker) -> dict[Role, Speaker | None]:
        """How each role is spoken to; None: nobody can render a prompt for it."""
        teacher = student if self.teacher is None else self.teacher.speaker
        reference = student if self.reference is None else self.reference.speaker
        return {"student": student, "teacher": teacher, "reference": reference}

    def weights(self, student: Any, refresh: Refresh, adapter: bool) -> dict[Role, TeacherWeights]:
        """Whose weights the other roles use; the reference only where it is asked for."""
        own = teacher_weights(student, refresh, adapter) if self.teacher is None else None
        found: dict[Role, TeacherWeights] = {"teacher": own or self.outsiders()["teacher"]}
        if self.reference is not None:
            found["reference"] = self.reference.weights
        elif self.needs_reference:
            frozen = own if refresh in (FROZEN, EXTERNAL) else None
            found["reference"] = frozen or teacher_weights(student, FROZEN, adapter)
        return found


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
        data = whole(value.detach()).cpu().contiguous()
        digest.update(name.encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
