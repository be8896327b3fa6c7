"""Generate, score, update, refresh: everything a step asks of the checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.divergence import Head, Scored
from workbench.engine.heads import base_model, decoder, head_of
from workbench.engine.loading import Loaded
from workbench.engine.mixing import decode_mixed
from workbench.engine.modes import can_fuse, evaluating, out_of_memory, without_dropout
from workbench.engine.rendering import Rendered
from workbench.engine.roles import Cast, TeacherWeights, with_lora
from workbench.engine.sampling import Row, decode, uniforms
from workbench.engine.scoring import states
from workbench.engine.speakers import Speaker, own_end
from workbench.engine.texts import Pen
from workbench.engine.vocabularies import sliced
from workbench.errors import ResourceError, TrainingError
from workbench.recipe import Optimizer
from workbench.records import Author, Case, Context, Refresh, Request, Role, Rollout, Sampling, Told

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


def never() -> bool:
    """The default answer to `stopped()`."""
    return False


def ignore(*_: object) -> None:
    """Who is told when nobody asked to be."""


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
        self.weights_version = 0
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
        self._adamw: torch.optim.AdamW | None = None
        self.skipped_updates = 0
        self.initial_fingerprint = ""
        """sha256 of the initial weights; filled by whoever first needs it, before the first update."""

    # -- prompts ---------------------------------------------------------------------------------------------------

    def speaker(self, role: Role) -> Speaker:
        """How a role is spoken to; `sees` says whether there is one."""
        found = self.speakers[role]
        assert found is not None, f"nobody can render a prompt for the {role}: ask `sees` first"
        return found

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
        draws = sampling.max_new_tokens if sampling.temperature > 0 else 0
        rows = [Row(self.prompt(r.context, Case(r.problem), role).ids, uniforms(r, draws)) for r in requests]
        for row, r in zip(rows, requests, strict=True):
            if r.teacher_share > 0.0 and r.teacher_context is not None:
                guide = self.prompt(r.teacher_context, Case(r.problem), "teacher").ids
                row.share, row.guide = r.teacher_share, Row(guide, row.draws)
        asked, made = {id(row): request for row, request in zip(rows, requests, strict=True)}, dict[int, Rollout]()

        def finished(batch: Sequence[Row], more: bool) -> None:
            for row in batch:
                made[id(row)] = self._rollout(row, asked[id(row)], role)
                if more:
                    wrote(made[id(row)])

        self._write(role, sorted(rows, key=lambda row: len(row.prompt)), sampling, stopped, finished)
        return [made[id(row)] for row in rows]

    def _write(
        self,
        role: Role,
        rows: list[Row],
        sampling: Sampling,
        stopped: Callable[[], bool],
        finished: Callable[[Sequence[Row], bool], None] = ignore,
    ) -> None:
        """Decode side by side as many as fit; fewer when memory runs out, with the same result."""
        n, start = self.settings.decode_rows, 0
        while start < len(rows):
            batch = rows[start : start + n]
            try:
                self._decode(role, batch, sampling, stopped)
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if n == 1:
                    raise ResourceError(
                        f"a completion of {sampling.max_new_tokens} tokens behind {len(batch[0].prompt)} does not fit "
                        "in memory. One row was tried alone. Use a smaller --max-new-tokens or --eval-tokens."
                    ) from error
                n = max(1, n // 2)
                for row in batch:
                    row.restart()
                continue
            start += n
            finished(batch, start < len(rows))

    def _decode(self, role: Role, rows: list[Row], sampling: Sampling, stopped: Callable[[], bool]) -> None:
        # Either end token ends: in the student's eyes nothing could follow its own.
        ends = self.stop_ids | self.speaker(role).stop_ids
        if rows[0].guide is not None:
            ends |= self.speaker("teacher").stop_ids
            decode_mixed(partial(self.voice, "student"), self._beside, rows, sampling, ends, stopped)
            return
        with self.voice(role) as (module, head):
            decode(module, head, rows, sampling, ends, stopped)

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

    def _rollout(self, row: Row, request: Request, role: Role) -> Rollout:
        row.tokens = own_end(row.tokens, self.speaker(role), self.speaker("student"))
        return Rollout(
            problem=request.problem,
            author=request.author,
            tokens=tuple(row.tokens),
            text=self.decoded(row.tokens),
            logprobs=tuple(row.logprobs),
            stop=row.stop,
            weights_version=self.weights_version,
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
        return {name: p for name, p in self.student.named_parameters() if p.requires_grad}

    def adamw(self, optimizer: Optimizer) -> torch.optim.AdamW:
        """The optimizer, made when it is first needed."""
        if self._adamw is None:
            trained = list(self.parameters().values())
            self._adamw = torch.optim.AdamW(
                trained, lr=0.0, weight_decay=optimizer.weight_decay, fused=can_fuse(trained)
            )
        return self._adamw

    def update(self, optimizer: Optimizer) -> float:
        """One AdamW step on the gathered gradients; returns their norm before clipping.

        A non-finite norm skips the step, which is counted; three in a row raise TrainingError.
        """
        adamw, named = self.adamw(optimizer), self.parameters()
        total = torch.nn.utils.get_total_norm([p.grad for p in named.values() if p.grad is not None])
        norm, first = float(total), ""
        if math.isfinite(norm):
            assert isinstance(optimizer.lr, (int, float)), "Recipe.at has replaced schedules by numbers"
            torch.nn.utils.clip_grads_with_norm_(list(named.values()), optimizer.max_grad_norm, total)
            for group in adamw.param_groups:
                group["lr"], group["weight_decay"] = float(optimizer.lr), optimizer.weight_decay
            adamw.step()
            self.skipped_updates = 0
        else:
            self.skipped_updates += 1
            first = next((n for n, p in named.items() if p.grad is not None and not p.grad.isfinite().all()), "the sum")
        self.forget_gradients()
        self.weights_version += 1
        if self.skipped_updates >= 3:
            raise TrainingError(
                f"the gradient was not finite in 3 steps in a row (norm {norm}, first in {first}). "
                "These steps changed nothing. Lower --lr, or look at the rollouts."
            )
        return norm

    def forget_gradients(self) -> None:
        """Drop gathered gradients: before a step, and before a batch is tried again in smaller pieces."""
        for p in self.parameters().values():
            p.grad = None

    def refresh_teacher(self, refresh: Refresh, step: int) -> bool:
        """Move the teacher after optimizer step `step` (from 1) if it is due; says whether it moved."""
        if refresh.due(step):
            self.teacher.move(refresh.rate)
            return True
        return False

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        wanted = self.settings.device.type == "cuda"
        return torch.autocast("cuda", dtype=torch.bfloat16) if wanted else contextlib.nullcontext()
