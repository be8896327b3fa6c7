"""A completion while it is written: one role decodes, the other reads the same token with a cache of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifiers import Verdict
from workbench.divergence import Head
from workbench.engine.engine import Engine, never
from workbench.engine.mixing import mixed
from workbench.engine.packed import Packing
from workbench.engine.roles import AdapterOff
from workbench.engine.sampling import Batch, Row, begin, log_probs, pick, uniforms
from workbench.engine.speakers import own_end
from workbench.errors import InputError
from workbench.inspector.measuring import Numbers, of_logps
from workbench.inspector.pieces import Writing, named, pieces
from workbench.inspector.reasons import Share, clippable, reasons
from workbench.inspector.seen import Seen
from workbench.inspector.trajectory import TOP, Behind, Stage, measure
from workbench.parts.writers import OnPolicy
from workbench.recipe import Recipe
from workbench.records import (
    Author,
    Case,
    Judged,
    Problem,
    Request,
    Role,
    Rollout,
    Sampling,
    StopReason,
    Tokens,
    TokenStats,
)
from workbench.train.report import term_names
from workbench.train.step import compared


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


def live(
    stage: Stage,
    problem: Problem,
    seed: tuple[int, ...] = (0,),
    index: int = 0,
    author: Author | None = None,
    stopped: Callable[[], bool] = never,
) -> Iterator[Seen]:
    """Write one completion before somebody's eyes: a piece a token, and last of all the whole with its verdict.

    The tokens are those that `engine.generate` draws for the same request. A piece says what both roles think of its
    token; its weights are before denominators and advantages, which only the finished rollout has. The last record is
    `measure` of the rollout. Two forward passes a token; between two of them the engine is as it was before, so the
    generator may be dropped at any time. Recorded teachers, and texts of a data set, come as a whole.

    Args:
        stage: who writes and who reads.
        problem: what about.
        seed: everything the draws depend on beside the problem's id, author and index.
        index: which of the problem's rollouts this is.
        author: who writes; None: the first of student, teacher and data set that the recipe lets write.
        stopped: polled at every token; true ends the rollout as cancelled.

    Raises:
        InputError: where a prompt leaves no room, or nobody can write.
    """
    recipe, engine = stage.recipe, stage.engine
    writes = author or next(a for a in _AUTHORS if a in recipe.rollouts.authors)
    context = recipe.teacher if writes == "teacher" else recipe.student
    if context is None:
        raise InputError(
            f"the teacher cannot write under recipe {recipe.name}. It shows the teacher nothing. Let the student write."
        )
    request = Request(problem, context, writes, index, seed)
    share = getattr(recipe.rollouts, "teacher_share", 0.0) if writes == "student" else 0.0
    if share:
        request = replace(request, teacher_share=share, teacher_context=recipe.teacher)
    sampling = _sampling(recipe)
    recorded = engine.external is not None and engine.external.recorded
    if writes == "dataset" or (writes == "teacher" and recorded):
        whole = engine.transcribe([request], sampling) if writes == "dataset" else engine.generate([request], sampling)
        yield _finished(stage, whole[0], None)
        return
    asks = recipe.teacher is not None and engine.sees("teacher")
    teacher = engine.prompt(recipe.teacher, Case(problem), "teacher").ids if recipe.teacher and asks else None
    yield from _told(
        stage, Tale(request, sampling, (engine.prompt(recipe.student, Case(problem)).ids, teacher)), stopped
    )


_AUTHORS: tuple[Author, ...] = ("student", "teacher", "dataset")


def branch(
    stage: Stage,
    seen: Seen,
    at: int,
    token: int,
    author: Author = "student",
    stopped: Callable[[], bool] = never,
) -> Iterator[Seen]:
    """The same completion up to position `at`, there `token`, and then on as `author` would: a generator like `live`.

    The first piece is what stands before, as it was recorded; `seen` stays what it is.

    Raises:
        InputError: where there is no such position, or the author cannot write.
    """
    if not 0 <= at < len(seen) or seen.start:
        raise InputError(f"there is no token {at} to branch at: the rollout has {len(seen)}. Choose one that is there.")
    if author == "teacher" and not (stage.recipe.teacher and stage.engine.sees("teacher") and seen.teacher_prompt):
        raise InputError("the teacher cannot go on here. Nobody can run it on a prompt. Let the student go on.")
    problem = stage.problems.get(seen.problem) or Problem(seen.problem, seen.question, seen.answer, seen.solution)
    context = stage.recipe.teacher if author == "teacher" else stage.recipe.student
    assert context is not None, "asked for above"
    request = Request(problem, context, author, seen.index, (at, token))
    begun = seen.token_ids[:at]
    yield replace(seen.take(slice(0, at)), source="live", verdict=None, rollout=f"{seen.rollout}/{at}-{token}")
    prompts = (seen.student_prompt, seen.teacher_prompt or None)
    for piece in _told(stage, Tale(request, _sampling(stage.recipe), prompts, begun, token), stopped):
        yield replace(piece, rollout=f"{seen.rollout}/{at}-{token}")


def _sampling(recipe: Recipe) -> Sampling:
    """The recipe's, no further than its writer goes."""
    horizon = recipe.rollouts.horizon if isinstance(recipe.rollouts, OnPolicy) else None
    if not isinstance(horizon, (int, float)):
        return recipe.sampling
    return replace(recipe.sampling, max_new_tokens=max(1, min(recipe.sampling.max_new_tokens, int(horizon))))


class _Reader:
    """One role with its cache. What it changes about a module it changes back before it returns."""

    def __init__(self, engine: Engine, role: Role, text: Sequence[int], room: int, lent: _Reader | None = None) -> None:
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

    def _packing(self, decoder: Any, head: Head, lent: _Reader | None) -> Packing | None:
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


class _Scene:
    """The readers of a tale, and the completion as far as it is written."""

    def __init__(self, stage: Stage, tale: Tale) -> None:
        """Both read what stands."""
        engine = stage.engine
        self.stage, self.tale = stage, tale
        self.room = _room(engine, tale)
        student = _Reader(engine, "student", (*tale.prompts[0], *tale.begun), self.room)
        self.readers: dict[Role, _Reader] = {"student": student}
        if tale.prompts[1] is not None and (engine.external is None or not engine.external.recorded):
            self.readers["teacher"] = _Reader(engine, "teacher", (*tale.prompts[1], *tale.begun), self.room, student)
        draws = tale.sampling.max_new_tokens if tale.sampling.temperature > 0 else 0
        self.row = Row((), uniforms(tale.request, draws))
        self.ends = engine.stop_ids | engine.speaker(tale.role).stop_ids
        if tale.request.teacher_share:
            self.ends |= engine.speaker("teacher").stop_ids

    @property
    def at(self) -> int:
        """Position of the next token."""
        return len(self.tale.begun) + len(self.row.tokens)

    def next(self) -> tuple[int, Tensor, Tensor | None]:
        """The next token, and what student and teacher thought, (1, V) log-probs at the loss's temperature."""
        tale, temperature = self.tale, self.stage.recipe.temperature
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


def _told(stage: Stage, tale: Tale, stopped: Callable[[], bool]) -> Iterator[Seen]:
    scene, engine = _Scene(stage, tale), stage.engine
    writing, frame, stop = Writing(engine.tokenizer), _frame(stage, tale), "length"
    for token in tale.begun:
        writing.add(token)
    for step in range(scene.room):
        if stopped():
            stop = "cancelled"
            break
        with torch.no_grad():
            token, student, teacher = scene.next()
            ended = token in scene.ends
            if ended:
                stop = "stop"
            token = own_end([token], engine.speaker(tale.role), engine.speaker("student"))[0]
            piece = _piece(scene, frame, token, student, teacher)
        text, last = writing.add(token), ended or step + 1 == scene.room
        yield replace(piece, text=(text + writing.end() if last else text,))
        if last:
            break
        scene.read(token)
    yield _finished(stage, _rollout(scene, stop), tale.prompts)  # type: ignore[arg-type]


def _piece(scene: _Scene, frame: Seen, token: int, student: Tensor, teacher: Tensor | None) -> Seen:
    recipe, at = scene.stage.recipe, scene.at - 1
    ids = torch.tensor([token], device=student.device)
    unclipped = clippable(recipe)
    read = of_logps(student, teacher, ids, top=TOP, asked=[divergence for _, divergence in unclipped])
    share = _share(recipe, Tokens(_stats(read, ids, at, scene.row.logprobs[-1]), student, teacher))
    shown = {token}
    if read.tops is not None:
        shown.update(read.tops.student_ids.ravel().tolist(), read.tops.teacher_ids.ravel().tolist())
    return replace(
        frame,
        token_ids=(token,),
        **read.columns(),  # type: ignore[arg-type]
        weight=(share.weights != 0).any(0).astype(float),
        why=reasons(recipe, share, read.asked, at),
        values=share.values,
        weights=share.weights,
        pieces=named(scene.stage.engine.tokenizer, shown),
        start=at,
    )


def _stats(read: Numbers, ids: Tensor, at: int, behaviour: float) -> TokenStats:
    def one(x: object) -> Tensor:
        return torch.tensor(x, dtype=torch.float64, device=ids.device)

    return TokenStats(
        ids=ids,
        position=torch.tensor([at], device=ids.device),
        student_logp=one(read.student_logp),
        teacher_logp=one(read.teacher_logp),
        behaviour=one([behaviour]),
        advantage=one([0.0]),
        student_entropy=one(read.student_entropy),
        teacher_entropy=one(read.teacher_entropy),
    )


def _share(recipe: Recipe, tokens: Tokens) -> Share:
    """What the terms say of it by their definitions, and what they count it for before any denominator."""
    common = recipe.token_weight
    values, weights = [], []
    for term in recipe.terms:
        asks = {"teacher", "teacher_logp"} & term.needs
        values.append(float("nan") if asks and tokens.teacher is None else float(term(tokens)))
        gates = [gate for gate in (common, getattr(term, "token_weight", None)) if gate is not None]
        assert isinstance(term.coef, (int, float)), "Recipe.at has replaced schedules by numbers"
        weights.append(term.coef * float(np.prod([float(gate(tokens.stats)) for gate in gates])))
    return Share(np.array(values)[:, None], np.array(weights)[:, None])


def _frame(stage: Stage, tale: Tale) -> Seen:
    """What all pieces share."""
    engine, problem, author = stage.engine, tale.request.problem, tale.request.author
    none, teacher = np.zeros(0), tale.prompts[1] or ()
    speaks = engine.speaker("teacher").tokenizer if teacher else engine.tokenizer
    numbers = Numbers.unknown(0)
    return Seen(
        problem=problem.id,
        token_ids=(),
        text=(),
        **numbers.columns(),  # type: ignore[arg-type]
        weight=none,
        why=(),
        terms=term_names(stage.recipe),
        student_prompt=tale.prompts[0],
        teacher_prompt=teacher,
        prompts=(pieces(engine.tokenizer, tale.prompts[0]), pieces(speaks, teacher)),
        run=stage.run,
        rollout=f"{stage.step}/{problem.id}/{author}/{tale.request.index}",
        step=stage.step,
        index=tale.request.index,
        author=author,
        recipe=stage.recipe.name,
        source="live",
        question=problem.question,
        answer=problem.answer,
        solution=problem.solution,
    )


def _rollout(scene: _Scene, stop: StopReason) -> Rollout:
    """As `engine.generate` makes one; what stood already gets the log-probs that its author has for it."""
    tale, engine = scene.tale, scene.stage.engine
    tokens = [*tale.begun, *scene.row.tokens]
    tokens = own_end(tokens, engine.speaker(tale.role), engine.speaker("student"))
    before = _log_probs(engine, tale) if tale.begun else []
    return Rollout(
        problem=tale.request.problem,
        author=tale.request.author,
        tokens=tuple(tokens),
        text=engine.decoded(tokens),
        logprobs=(*before, *scene.row.logprobs),
        stop=stop,
        weights_version=engine.weights_version,
        index=tale.request.index,
    )


@torch.no_grad()
def _log_probs(engine: Engine, tale: Tale) -> list[float]:
    prompt = tale.prompts[1 if tale.role == "teacher" else 0] or ()
    logits = engine.head(tale.role).logits(engine.score(tale.role, [prompt], [tale.begun]))
    ids = torch.tensor(tale.begun, device=logits.device)[:, None]
    return [float(x) for x in log_probs(logits, tale.sampling).gather(-1, ids)[:, 0]]


def _finished(stage: Stage, rollout: Rollout, behind: Behind | None) -> Seen:
    """The whole, judged, gated and weighed as a step of this one rollout."""
    judge = stage.verify if stage.verify is not None and rollout.stop != "cancelled" else None
    verdict = Verdict("unjudged") if judge is None else judge(rollout)
    groups = compared(stage.recipe, [Judged(rollout, verdict)], stage.rates)
    return measure(stage, groups, "live", behind=behind)[0]
