"""Two readers of one completion, in step: each role behind its own prompt with a cache of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.divergence import Head
from workbench.engine.engine import Engine
from workbench.engine.mixing import mixed
from workbench.engine.packed import Packing
from workbench.engine.roles import AdapterOff
from workbench.engine.sampling import Batch, Row, begin, log_probs, pick, uniforms
from workbench.errors import InputError
from workbench.inspector.trajectory import Behind
from workbench.records import Request, Role, Sampling


@dataclass(frozen=True, eq=False)
class Tale:
    """What is to be written: by whom, behind which prompts, and how it begins."""

    request: Request
    sampling: Sampling
    prompts: Behind
    begun: tuple[int, ...] = ()
    """Tokens that stand already."""
    forced: int | None = None
    """The token that comes next, whatever the author would have said."""

    @property
    def role(self) -> Role:
        """Who writes."""
        return "teacher" if self.request.author == "teacher" else "student"


class Reader:
    """One role with its cache. What it changes about a module it changes back before it returns."""

    def __init__(self, engine: Engine, role: Role, text: Sequence[int], room: int, lent: Reader | None = None) -> None:
        """Read `text`; `lent`: another reader, whose packed weights serve if it is the same module."""
        self.engine, self.role = engine, role
        self.home = engine.settings.device
        outside = engine.outsiders.get(role)
        self.device = self.home if outside is None else outside.device
        self.heard = engine.head(role)
        """What reads its states on the student's entries."""
        self.foreign = outside is not None
        """Whether that is not the head it writes with."""
        with engine.voice(role) as (decoder, head):
            self.packing = self._packing(decoder, head, lent)
            self.decoder = decoder
            with self.packing or contextlib.nullcontext():
                row = Row((*text,), np.zeros(0))
                self.batch: Batch = begin(decoder, [row], room, self.device)

    def _packing(self, decoder: Any, head: Head, lent: Reader | None) -> Packing | None:
        if lent is None or lent.decoder is not decoder:
            return Packing(decoder, head)
        # The same layers: with the weights that were packed, unless the teacher has some of its own for the moment.
        own = isinstance(self.engine.teacher, AdapterOff) and self.engine.teacher.tensors()
        return None if own else lent.packing

    def write(self) -> Tensor:
        """(1, V) logits in its own vocabulary, as it writes."""
        with self.engine.voice(self.role) as (_, head):
            packed = self.packing is not None and self.packing.packs_head
            project = self.packing.project if self.packing and packed else head.logits
            return project(self.batch.hidden).to(self.home)

    def say(self, temperature: float, written: Tensor) -> Tensor:
        """(1, V) log-probs on the student's entries; `written`: its logits, which serve where they are the same."""
        wide = torch.promote_types(self.batch.hidden.dtype, torch.float32)
        if self.foreign or written.dtype != wide:
            written = self.hear(wide)
        return (written / temperature).log_softmax(-1)

    def hear(self, dtype: torch.dtype) -> Tensor:
        """(1, V) logits on the student's entries."""
        return self.heard.logits(self.batch.hidden.to(self.home, dtype))

    def read(self, token: int) -> None:
        """One more token."""
        self.batch.last = torch.tensor([token], device=self.device)
        with self.engine.voice(self.role) as (decoder, _), self.packing or contextlib.nullcontext():
            self.batch.forward(decoder)


class Scene:
    """The readers of a tale, and the completion as far as it is written."""

    def __init__(self, engine: Engine, temperature: float, tale: Tale) -> None:
        """Both read what stands; `temperature` is that of the loss. Raises InputError where nothing may follow."""
        self.engine, self.temperature, self.tale = engine, temperature, tale
        self.room = _room(engine, tale)
        student = Reader(engine, "student", (*tale.prompts[0], *tale.begun), self.room)
        self.readers: dict[Role, Reader] = {"student": student}
        if tale.prompts[1] is not None and (engine.external is None or not engine.external.recorded):
            self.readers["teacher"] = Reader(engine, "teacher", (*tale.prompts[1], *tale.begun), self.room, student)
        draws = tale.sampling.max_new_tokens if tale.sampling.temperature > 0 else 0
        self.row = Row((), uniforms(tale.request.key, draws))
        self.ends = engine.stop_ids | engine.speaker(tale.role).stop_ids
        if tale.request.teacher_share:
            self.ends |= engine.speaker("teacher").stop_ids

    @property
    def at(self) -> int:
        """Position of the next token."""
        return len(self.tale.begun) + len(self.row.tokens)

    def next(self) -> tuple[int, Tensor, Tensor | None]:
        """The next token, and what student and teacher thought, (1, V) log-probs at the loss's temperature."""
        tale, temperature = self.tale, self.temperature
        wrote = {role: reader.write() for role, reader in self.readers.items()}
        own = log_probs(wrote[tale.role], tale.sampling)
        if tale.request.teacher_share:
            beside = self.readers["teacher"]
            guided = beside.hear(own.dtype) if beside.foreign else wrote["teacher"]
            own = mixed(own, log_probs(guided, tale.sampling), tale.request.teacher_share)
        if tale.forced is not None and not self.row.tokens:
            token = tale.forced
            self.row.logprobs.append(float(own[0, token]))
        else:
            token = int(pick(own, [self.row], tale.sampling, self.at))
        said = {role: reader.say(temperature, wrote[role]) for role, reader in self.readers.items()}
        self.row.tokens.append(token)
        return token, said["student"], said.get("teacher")

    def read(self, token: int) -> None:
        """Both read it."""
        for reader in self.readers.values():
            reader.read(token)


def _room(engine: Engine, tale: Tale) -> int:
    """Tokens that may still come. Raises InputError where none may."""
    taken = [("student", tale.prompts[0])] + ([("teacher", tale.prompts[1])] if tale.prompts[1] is not None else [])
    left = min(engine.speaker(role).max_length - len(prompt) for role, prompt in taken)  # type: ignore[arg-type]
    room = min(left, tale.sampling.max_new_tokens) - len(tale.begun)
    if room < 1:
        longest = max(len(prompt) for _, prompt in taken)
        raise InputError(
            f"nothing can be written behind a prompt of {longest} tokens and {len(tale.begun)} of the completion. The "
            f"models leave {left} for a completion, the recipe {tale.sampling.max_new_tokens}. Give a shorter problem, "
            "or raise max_new_tokens."
        )
    return room
