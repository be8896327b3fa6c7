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
from workbench.engine.generating import HfGenerator, ignore, in_batches, never
from workbench.engine.heads import base_model, decoder, head_of
from workbench.engine.loading import Loaded
from workbench.engine.mixing import decode_mixed
from workbench.engine.modes import evaluating, without_dropout
from workbench.engine.optimizing import Updates
from workbench.engine.rendering import Rendered
from workbench.engine.roles import Cast, TeacherWeights, with_lora
from workbench.engine.sampling import Row, uniforms
from workbench.engine.scoring import states
from workbench.engine.speakers import Speaker, own_end
from workbench.engine.texts import Pen
from workbench.engine.vocabularies import sliced
from workbench.recipe import Optimizer
from workbench.records import (
    Author,
    Case,
    Context,
    Generator,
    Refresh,
    Request,
    Role,
    Rollout,
    Sample,
    Sampling,
    Told,
    Wanted,
)

if TYPE_CHECKING:
    from workbench.engine.teachers import External, Teaching


@dataclass(frozen=True)
class EngineSettings:
    """How the engine uses the machine; none of it changes a result."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    decode_rows: int = 64
    """Completions decoded side by side."""
    micro_tokens: int = 2048
    """Padded tokens of one forward and backward pass."""
    activation_checkpointing: bool = False


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
        self.weights_version, self._moved = 0, False
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
        self.updates = Updates(self.student)
        writes: tuple[Role, ...] = ("student", "teacher")
        self.generators: dict[Role, Generator] = {
            role: HfGenerator(partial(self.voice, role), settings.decode_rows) for role in writes
        }
        self.initial_fingerprint = ""
        """sha256 of the initial weights; filled by whoever first needs it, before the first update."""

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
        """One rollout a request, in order. `author` decides whose weights write, `context` what they see."""
        self.catch_up()
        found: list[Rollout | None] = [None] * len(requests)
        authors: tuple[Author, ...] = ("student", "teacher")
        for author in authors:
            mine = [i for i, request in enumerate(requests) if request.author == author]
            asked = [requests[i] for i in mine]
            if author == "teacher" and self.external is not None and self.external.recorded:
                written = self.external.write(asked, sampling, self.pen)
            else:
                written = self._sampled(author, asked, sampling, stopped, wrote)
            for i, rollout in zip(mine, written, strict=True):
                found[i] = rollout
        return [rollout for rollout in found if rollout is not None]

    def _sampled(
        self, author: Author, requests: Sequence[Request], sampling: Sampling, stopped: Callable[[], bool], wrote: Told
    ) -> list[Rollout]:
        role: Role = "teacher" if author == "teacher" else "student"
        prompts = [self.prompt(r.context, Case(r.problem), role).ids for r in requests]
        wanted = [Wanted(prompt, r.key) for prompt, r in zip(prompts, requests, strict=True)]

        def told(place: int, sample: Sample) -> None:
            made[place] = self._rollout(sample, requests[place], role)
            wrote(made[place])

        made = dict[int, Rollout]()
        # Either end token ends: in the student's eyes nothing could follow its own.
        ends = self.stop_ids | self.speaker(role).stop_ids
        if any(r.teacher_share > 0.0 for r in requests):
            samples = self._mixed(requests, wanted, sampling, stopped)
        else:
            samples = self.generators[role].generate(wanted, sampling, ends, stopped, told)
        rest = enumerate(zip(samples, requests, strict=True))
        return [made[i] if i in made else self._rollout(sample, request, role) for i, (sample, request) in rest]

    def _mixed(
        self,
        requests: Sequence[Request],
        wanted: Sequence[Wanted],
        sampling: Sampling,
        stopped: Callable[[], bool],
    ) -> list[Sample]:
        """Every token from a mixture of both roles, each behind its own prompt."""
        rows = [Row(w.prompt, uniforms(w.key, sampling.max_new_tokens)) for w in wanted]
        for row, r in zip(rows, requests, strict=True):
            assert r.teacher_context is not None, "a mixture names what the teacher sees"
            guide = self.prompt(r.teacher_context, Case(r.problem), "teacher").ids
            row.share, row.guide = r.teacher_share, Row(guide, row.draws)
        ends = self.stop_ids | self.speaker("teacher").stop_ids
        voices = partial(self.voice, "student"), self._beside

        def write(batch: list[Row]) -> None:
            decode_mixed(*voices, batch, sampling, ends, stopped)

        in_batches(sorted(rows, key=lambda row: len(row.prompt)), self.settings.decode_rows, write)
        return [row.sample(self.weights_version) for row in rows]

    @contextlib.contextmanager
    def voice(self, role: Role) -> Iterator[tuple[Any, Head]]:
        """The decoder and head with which a role writes, without gradient, for as long as the context lasts."""
        with self.running(role) as model, torch.no_grad(), self._precision(), evaluating(model):
            yield decoder(model), sliced(head_of(model), self.vocabulary)

    @contextlib.contextmanager
    def _beside(self) -> Iterator[tuple[Any, Head]]:
        """The teacher where both decode: its entries as the student's, so that one end token is the other."""
        with self.voice("teacher") as (module, own):
            outside = self.outsiders["teacher"].head if "teacher" in self.outsiders else None
            yield module, own if outside is None else outside

    def _rollout(self, sample: Sample, request: Request, role: Role) -> Rollout:
        tokens = own_end(sample.tokens, self.speaker(role), self.speaker("student"))
        return Rollout(
            problem=request.problem,
            author=request.author,
            tokens=tuple(tokens),
            text=self.decoded(tokens),
            logprobs=sample.logprobs,
            stop=sample.stop,
            weights_version=sample.versions[0],
            index=request.index,
        )

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
        ):
            return states(decoder(model), prompts, completions, device).to(self.settings.device)

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
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], temperature: float
    ) -> Teaching:
        """What the teacher says at each completion token: computed now, or as it was recorded.

        A `Scored` or a `SparseTeacher` of N rows, sequence after sequence as `score` has them, without gradient.
        """
        if self.external is not None and self.external.recorded:
            return self.external.recall(prompts, completions, temperature)
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
            generator.sync(self.parameters().items(), self.weights_version)

    def catch_up(self) -> None:
        """Let whoever writes serve the weights of now, if they moved: a step that is done stays done if that fails.

        Raises ServerError.
        """
        if self._moved:
            self.serve(self.weights_version)

    def refresh_teacher(self, refresh: Refresh, step: int) -> bool:
        """Move the teacher after optimizer step `step` (from 1) if it is due; says whether it moved."""
        if refresh.due(step):
            self.teacher.move(refresh.rate)
            return True
        return False

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        wanted = self.settings.device.type == "cuda"
        return torch.autocast("cuda", dtype=torch.bfloat16) if wanted else contextlib.nullcontext()
