"""Generate, score, update, refresh: everything a step asks of the checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.divergence import Head, Scored
from workbench.engine.generating import HfGenerator, ignore, never
from workbench.engine.heads import base_model, decoder, head_of
from workbench.engine.loading import Loaded
from workbench.engine.meter import Meter
from workbench.engine.modes import evaluating, without_dropout
from workbench.engine.optimizing import Updates
from workbench.engine.ranks import ALONE, Ranks, by_oneself
from workbench.engine.rendering import Rendered
from workbench.engine.replicas import Replicas, replicas, whole
from workbench.engine.roles import Cast, Copy, TeacherWeights, fingerprint, with_lora
from workbench.engine.speakers import Speaker
from workbench.engine.texts import Pen
from workbench.engine.vocabularies import sliced
from workbench.engine.writing import written
from workbench.recipe import Optimizer
from workbench.records import (
    Case,
    Context,
    Generator,
    Refresh,
    Request,
    Role,
    Rollout,
    Sampling,
    Told,
)

if TYPE_CHECKING:
    from workbench.engine.teachers import External, Named, Teaching


@dataclass(frozen=True)
class EngineSettings:
    """How the engine uses the machine; none of it changes a result."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    decode_rows: int = 64
    """Completions decoded side by side."""
    micro_tokens: int = 2048
    """Padded tokens of one forward and backward pass."""
    activation_checkpointing: bool = False
    ranks: Ranks = ALONE
    """The processes that share the work."""


class Engine:
    """One checkpoint in two roles, or in one beside the others of a `Cast`."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        adapter: str | None,
        refresh: Refresh,
        settings: EngineSettings,
        cast: Cast | None = None,
    ) -> None:
        """Move the model to its device, add the adapter if there is one, and arrange the other roles' weights."""
        self.settings, self.tokenizer, self.loaded = settings, loaded.tokenizer, loaded
        self.weights_version, self._moved, self.meter = 0, False, Meter()
        model = loaded.model.to(settings.device)
        without_dropout(model)
        self.cast = cast or Cast()
        self.speakers = self.cast.speakers(Speaker.of(model, loaded.tokenizer, loaded.source))
        self.stop_ids, self.end_of_turn = self.speaker("student").stop_ids, self.speaker("student").end_of_turn
        self.vocabulary, self.outsiders = self.cast.size, self.cast.outsiders()
        self.adapter = adapter
        self.student = with_lora(model, adapter) if adapter else model.requires_grad_(True)
        if settings.activation_checkpointing:
            base_model(self.student).activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": False}
            )
        self.student.train(settings.activation_checkpointing)  # HF checkpoints only in training mode; dropout is off
        self.refresh = refresh
        weights = self.cast.weights(self.student, refresh, adapter is not None)
        self.teacher: TeacherWeights = weights["teacher"]
        self.reference = weights.get("reference")
        self.initial_fingerprint = ""
        """sha256 of the initial weights; filled by whoever first needs it, before the first update."""
        self.ranks, self.replicas = settings.ranks, Replicas()
        if self.ranks.size > 1:  # what needs the whole model in one place is done before it is split
            self.initial_fingerprint = fingerprint(self.student)
            copies = [w.held for w in weights.values() if isinstance(w, Copy)]
            self.ranks, self.replicas = replicas(self.ranks, self.student, copies, adapter, settings.device)
        self.updates = Updates(self.student, self.replicas.settle)
        writes: tuple[Role, ...] = ("student", "teacher")
        self.generators: dict[Role, Generator] = {
            role: HfGenerator(partial(self.voice, role), settings.decode_rows) for role in writes
        }

    # -- prompts ---------------------------------------------------------------------------------------------------

    def speaker(self, role: Role) -> Speaker:
        """How a role is spoken to; `sees` says whether there is one."""
        found = self.speakers[role]
        assert found is not None, f"nobody can render a prompt for the {role}: ask `sees` first"
        return found

    @property
    def served(self) -> bool:
        """Whether servers write for the student."""
        return not isinstance(self.generators["student"], HfGenerator)

    def sees(self, role: Role) -> bool:
        """Whether a prompt can be rendered for the role: not for a teacher of whom there are texts alone."""
        return self.speakers[role] is not None

    def prompt(self, context: Context, case: Case, role: Role = "student") -> Rendered:
        """What a role sees, as text and ids: by its own template."""
        return self.speaker(role).renderer.prompt(context, case)

    @property
    def external(self) -> External | None:
        """The teacher that is not the student; None in self-distillation."""
        return self.cast.teacher

    @property
    def max_length(self) -> int:
        """Prompt and completion together, in tokens; the student's own limit."""
        return self.speaker("student").max_length

    # -- write -----------------------------------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, stopped: Callable[[], bool] = never, wrote: Told = ignore
    ) -> list[Rollout]:
        """One rollout a request, in order. `author` decides whose weights write, `context` what they see.

        Each rank writes for its own problems, and all get all.
        """
        self.catch_up()

        def mine(places: Sequence[int]) -> list[Rollout]:
            return written(self, [requests[i] for i in places], sampling, by_oneself(stopped), wrote)

        here = any(r.teacher_share > 0.0 or isinstance(self.generators[r.writer], HfGenerator) for r in requests)
        with self.replicas.decoding() if here else contextlib.nullcontext():
            found = self.ranks.spread([r.problem.id for r in requests], mine)
        return [rollout.of(r.problem) for rollout, r in zip(found, requests, strict=True)]

    @contextlib.contextmanager
    def voice(self, role: Role) -> Iterator[tuple[Any, Head]]:
        """The decoder and head with which a role writes, without gradient, for as long as the context lasts."""
        with (
            self.running(role) as model,
            torch.no_grad(),
            self._precision(),
            evaluating(model),
            self.meter.watching(role, model, writing=True),
        ):
            yield decoder(model), sliced(head_of(model), self.vocabulary)

    @contextlib.contextmanager
    def beside(self) -> Iterator[tuple[Any, Head]]:
        """The teacher where both decode: its entries as the student's, so that one end token is the other."""
        with self.voice("teacher") as (module, own):
            outside = self.outsiders["teacher"].head if "teacher" in self.outsiders else None
            yield module, own if outside is None else outside

    def decoded(self, tokens: Sequence[int]) -> str:
        """Text of a completion without its end token; nothing else is hidden."""
        kept = tokens[:-1] if tokens and tokens[-1] in self.stop_ids else tokens
        return str(self.tokenizer.decode(list(kept), skip_special_tokens=False))

    def token_text(self, token: int) -> str:
        """One token alone, as text."""
        return str(self.tokenizer.decode([token], skip_special_tokens=False))

    def transcribe(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """Each problem's solution with the end token the chat template uses. Raises InputError where there is none."""
        return [self.pen.solution(request, sampling) for request in requests]

    @property
    def pen(self) -> Pen:
        """What puts texts into the student's tokens."""
        return Pen(self.speaker("student"), self.weights_version)

    # -- score -----------------------------------------------------------------------------------------------------

    def score(self, role: Role, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
        """(N, h) hidden states that *predict* each completion token, sequence after sequence.

        No padding, and no shift beside the one in `scoring.states`. Gradient flows for the student alone.
        """
        device = self.outsiders[role].device if role in self.outsiders else self.settings.device
        with (
            self.running(role) as model,
            torch.set_grad_enabled(role == "student" and torch.is_grad_enabled()),
            self._precision(),
            self.meter.watching(role, model),
        ):
            self.meter.scored(role, sum(map(len, completions)))
            return self.replicas.states(model, prompts, completions, device).to(self.settings.device)

    def head(self, role: Role, temperature: float = 1.0) -> Head:
        """The role's language-model head, with the scale and softcap of its architecture.

        Beside another model: on the entries that mean the same to both, end tokens of one meaning in one place.
        """
        outside = self.outsiders[role].head if role in self.outsiders else None
        if outside is not None:
            return dataclasses.replace(outside, temperature=temperature)
        with self.running(role) as model:
            return dataclasses.replace(sliced(head_of(model), self.vocabulary), temperature=temperature)

    def teach(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        temperature: float,
        named: Named | None = None,
    ) -> Teaching:
        """What the teacher says at each completion token: computed now, or as it was recorded.

        A `Scored` or a `SparseTeacher` of N rows, sequence after sequence as `score` has them, without gradient.
        `named`: the entries to tell of, for a teacher that can be asked so (`External.named`).
        """
        if self.external is not None and self.external.recorded:
            found: Teaching
            if named is None:
                found = self.external.recall(prompts, completions, temperature)
            else:
                found = self.external.recall_named(prompts, completions, temperature, named)
            if self.external.anew:  # a server scored them; what was recorded is looked up
                self.meter.scored("teacher", sum(map(len, completions)), here=False)
            return found
        return Scored(self.score("teacher", prompts, completions), self.head("teacher", temperature))

    @contextlib.contextmanager
    def running(self, role: Role) -> Iterator[Any]:
        """The module that plays `role`."""
        if role == "student":
            yield self.student
            return
        weights = self.teacher if role == "teacher" else self.reference
        assert weights is not None, "the reference exists where the recipe asks for it (Recipe.needs_reference)"
        with weights.module() as module:
            yield module

    # -- update ----------------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Tensor]:
        """What trains, by name; a tied weight stands once."""
        return self.updates.parameters()

    def update(self, optimizer: Optimizer) -> float:
        """One AdamW step on the gathered gradients; returns the norm. Whoever writes next gets the new weights first.

        Raises TrainingError as `Updates.step`.
        """
        norm = self.updates.step(optimizer)
        self.weights_version += 1
        self._moved = True
        return norm

    def serve(self, version: int) -> None:
        """Whoever writes takes up the weights of now, which have seen `version` optimizer steps."""
        self.weights_version, self._moved = version, False
        for generator in self.generators.values():
            if isinstance(generator, HfGenerator):
                generator.sync((), version)
            else:
                mark = self.ranks.together(partial(self._sent, generator, version))[0]
                generator.follow(version, mark)

    def _sent(self, generator: Generator, version: int) -> str:
        """The first rank sends and probes, with whole weights at hand; what the others must know to ask for them."""
        with self.replicas.decoding():
            if self.ranks.first:
                named = ((n, p) for n, p in self.student.named_parameters() if p.requires_grad)
                generator.sync(((name, whole(p.detach())) for name, p in named), version)
        return generator.mark

    def assemble(self) -> None:
        """Be one process again after training: all ranks must ask, and the first then has the whole student."""
        self.student, self.replicas = self.replicas.assembled(self.student), Replicas()

    def catch_up(self) -> None:
        """Let whoever writes serve the weights of now, if they moved: a step that is done stays done if that fails.

        Raises ServerError.
        """
        if self._moved:
            self.serve(self.weights_version)

    def refresh_teacher(self, refresh: Refresh, step: int) -> bool:
        """Move the teacher after optimizer step `step` (from 1) if it is due; says whether it moved."""
        if refresh.due(step):
            self.replicas.settle()
            self.teacher.move(refresh.rate)
            return True
        return False

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        wanted = self.settings.device.type == "cuda"
        return torch.autocast("cuda", dtype=torch.bfloat16) if wanted else contextlib.nullcontext()
