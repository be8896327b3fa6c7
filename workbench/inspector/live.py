"""A completion while it is written: one role decodes, the other reads the same token with a cache of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from verifiers import Verdict
from workbench.engine.engine import Engine
from workbench.engine.generating import never
from workbench.engine.sampling import log_probs
from workbench.engine.speakers import own_end
from workbench.errors import InputError
from workbench.inspector.measuring import Numbers, of_logps
from workbench.inspector.pieces import Writing, named, pieces
from workbench.inspector.readers import Scene, Tale
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
    Rollout,
    Sampling,
    StopReason,
    Tokens,
    TokenStats,
)
from workbench.train.report import term_names
from workbench.train.step import compared


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
    writes = next(a for a in _AUTHORS if a in recipe.rollouts.authors) if author is None else author
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


def _told(stage: Stage, tale: Tale, stopped: Callable[[], bool]) -> Iterator[Seen]:
    scene, engine = Scene(stage.engine, stage.recipe.temperature, tale), stage.engine
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
            piece = _piece(stage, scene, frame, token, student, teacher)
        text, last = writing.add(token), ended or step + 1 == scene.room
        yield replace(piece, text=(text + writing.end() if last else text,))
        if last:
            break
        scene.read(token)
    yield _finished(stage, _rollout(scene, stop), tale.prompts)  # type: ignore[arg-type]


def _piece(stage: Stage, scene: Scene, frame: Seen, token: int, student: Tensor, teacher: Tensor | None) -> Seen:
    recipe, at = stage.recipe, scene.at - 1
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
        pieces=named(stage.engine.tokenizer, shown),
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


def _rollout(scene: Scene, stop: StopReason) -> Rollout:
    """As `engine.generate` makes one; what stood already gets the log-probs that its author has for it."""
    tale, engine = scene.tale, scene.engine
    written = [*tale.begun, *scene.row.tokens]
    tokens = own_end(written, engine.speaker(tale.role), engine.speaker("student"))
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
