"""Completions as both roles see them, measured by the functions that training calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from workbench.divergence import Scored
from workbench.engine.engine import Engine
from workbench.errors import InputError
from workbench.inspector.measuring import Numbers, numbers
from workbench.inspector.pieces import named, pieces
from workbench.inspector.reasons import Share, clippable, kept_out, reasons
from workbench.inspector.seen import Floats, Seen, Source
from workbench.parts.gates import Gate
from workbench.recipe import Recipe
from workbench.records import Judged, Problem
from workbench.train.batches import Denominators, Entry, entries, entry, micro_batches
from workbench.train.judging import Verifier
from workbench.train.objective import Signal, objective
from workbench.train.reading import planned
from workbench.train.report import term_names
from workbench.train.step import gated

TOP = 10
"""Entries a role that are kept of a distribution."""
Behind = tuple[tuple[int, ...], tuple[int, ...] | None]
"""The student's and the teacher's prompt."""


@dataclass(frozen=True)
class Stage:
    """Who is looked at: both roles of an engine under a recipe with numbers for schedules (`recipe.at(clock)`)."""

    engine: Engine
    recipe: Recipe
    verify: Verifier | None = None
    """Judges what is written live; None: nobody does."""
    run: str = ""
    step: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    """Pass rates as last surveyed, for the curricula that ask."""
    problems: Mapping[str, Problem] = field(default_factory=dict)
    """By id: what a branch of a recorded rollout is judged as."""


@torch.no_grad()
def measure(
    stage: Stage,
    groups: Sequence[Sequence[Judged]],
    source: Source = "recomputed",
    *,
    top: int = TOP,
    behind: Behind | None = None,
) -> list[Seen]:
    """Every rollout of some groups, kept or not, in their order.

    What `train_step` does with the groups is done with them: gates, plans, denominators over all that is kept. The
    sum of `Seen.loss` is the loss of the step that these groups are. A rollout that is not learnt from shows what the
    terms would have said of it, with weights of 0; NaN where nobody can say.

    Args:
        stage: engine and recipe.
        groups: as `train.step.compared` gives them: by problem, with advantages.
        source: what the records are marked as.
        top: entries a role in `Seen.tops`; 0: none.
        behind: the prompts that all of them stand behind; None: the recipe's contexts for each.
    """
    recipe, engine = stage.recipe, stage.engine
    passed, refused = gated(recipe, [list(group) for group in groups])
    whole = [[judged for judged in group if judged.rollout.stop != "cancelled"] for group in passed]
    kept = planned(recipe, engine, _behind(entries(engine, recipe, whole, shown=True), behind))
    found = dict(_scored(stage, kept, Denominators.of(recipe, kept), refused, source, top=top))
    kept_ids = {id(one.judged) for one in kept}
    rest = [
        entry(engine, recipe, judged, group, shown=True)
        for group in groups
        for judged in group
        if id(judged) not in kept_ids
    ]
    full = _behind([one for one in rest if one.tokens], behind)
    found |= dict(_scored(stage, full, None, refused, source, top=top))
    found |= {id(one.judged): bare(stage, one, refused.get(id(one.judged)), source) for one in rest if not one.tokens}
    return [found[id(judged)] for group in groups for judged in group]


def _behind(some: Sequence[Entry], prompts: Behind | None) -> list[Entry]:
    if prompts is None:
        return list(some)
    return [replace(one, student_prompt=prompts[0], teacher_prompt=prompts[1]) for one in some]


def _scored(
    stage: Stage,
    some: Sequence[Entry],
    counts: Denominators | None,
    refused: Mapping[int, Gate],
    source: Source,
    *,
    top: int,
) -> Iterator[tuple[int, Seen]]:
    """id(judged) and record; without `counts` they are not learnt from."""
    recipe, engine = stage.recipe, stage.engine
    known = [one for one in some if _teacher_knows(stage, one)]
    ids = {id(one) for one in known}
    for batch in micro_batches([one for one in some if id(one) not in ids], engine.settings.micro_tokens):
        states = engine.score("student", [one.student_prompt for one in batch], [one.tokens for one in batch])
        student = Scored(states, engine.head("student", recipe.temperature))
        written = torch.tensor([t for one in batch for t in one.tokens], device=states.device)
        read, start = numbers(student, None, written, top=top, asked=[d for _, d in clippable(recipe)]), 0
        for one in batch:
            rows = slice(start, start + len(one.tokens))
            yield id(one.judged), bare(stage, one, refused.get(id(one.judged)), source, read.take(rows))
            start = rows.stop
    for batch in micro_batches(known, engine.settings.micro_tokens):
        own = counts or Denominators.of(recipe, batch)
        _, signal = objective(recipe, engine, batch, own, grad=False)
        read = look(stage, signal, top=top)
        for one, rows, share in Share.each(signal):
            gate = refused.get(id(one.judged))
            yield (
                id(one.judged),
                learnt(stage, one, share, own, read.take(rows), source)
                if counts
                else bare(stage, one, gate, source, read.take(rows), share),
            )


def _teacher_knows(stage: Stage, one: Entry) -> bool:
    """Whether the teacher can say something of a completion: always, but for one that was recorded."""
    external = stage.engine.external
    if external is None or not external.recorded or not stage.recipe.needs_teacher:
        return True
    try:
        external.check(one.teacher_prompt or (), one.tokens, stage.recipe.temperature)
    except InputError:
        return False
    return True


def look(stage: Stage, signal: Signal, *, top: int = TOP) -> Numbers:
    """Every number of a micro-batch, from the hidden states that its loss was made of."""
    views, batch = signal.views, signal.batch
    assert views is not None, "the loss was just made"
    teacher, engine = views.teacher, stage.engine
    prompts = [one.teacher_prompt for one in batch]
    can = engine.external is None or not engine.external.recorded
    if teacher is None and can and all(prompts):  # the loss asks no teacher; a person may
        teacher = engine.teach([p or () for p in prompts], [one.tokens for one in batch], stage.recipe.temperature)
    asked = [divergence for _, divergence in clippable(stage.recipe)]
    return numbers(views.student, teacher, views.ids, top=top, asked=asked)


def learnt(stage: Stage, one: Entry, share: Share, counts: Denominators, read: Numbers, source: Source) -> Seen:
    """A rollout that the loss sees."""
    why = reasons(stage.recipe, share, read.asked)
    return _seen(stage, one, share, read, (_ordinary(stage.recipe, counts, one, share.weights), why), source)


def bare(
    stage: Stage,
    one: Entry,
    refused: Gate | None,
    source: Source,
    read: Numbers | None = None,
    share: Share | None = None,
) -> Seen:
    """A rollout that the loss does not see."""
    n, recipe = len(one.tokens), stage.recipe
    share = Share.nothing(recipe, n) if share is None else replace(share, weights=np.zeros_like(share.weights))
    why = (kept_out(recipe, one.judged, refused),) * n
    return _seen(stage, one, share, read or Numbers.unknown(n, len(clippable(recipe))), (np.zeros(n), why), source)


def _ordinary(recipe: Recipe, counts: Denominators, one: Entry, weights: Floats) -> Floats:
    """(n,) what the first term that counts the rollout counts each token for, an ordinary one of a rollout being 1."""
    for k in range(len(recipe.terms)):
        share = counts.share(recipe, k, one)
        if share:
            return np.round(weights[k] * one.judged.weight / share, 6)
    return np.zeros(len(one.tokens))


def _seen(
    stage: Stage, one: Entry, share: Share, read: Numbers, counted: tuple[Floats, tuple[str, ...]], source: Source
) -> Seen:
    engine, rollout, tokenizer = stage.engine, one.judged.rollout, stage.engine.tokenizer
    problem = rollout.problem
    teacher = one.teacher_prompt or ()
    named_ids: set[int] = set()
    prompts: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    if read.tops is not None:  # somebody will look at it
        named_ids.update(rollout.tokens, read.tops.student_ids.ravel(), read.tops.teacher_ids.ravel())
        speaks = engine.speaker("teacher").tokenizer if teacher else tokenizer
        prompts = pieces(tokenizer, one.student_prompt), pieces(speaks, teacher)
    return Seen(
        problem=problem.id,
        token_ids=rollout.tokens,
        text=pieces(tokenizer, rollout.tokens),
        **read.columns(),  # type: ignore[arg-type]
        weight=counted[0],
        why=counted[1],
        terms=term_names(stage.recipe),
        values=share.values,
        weights=share.weights,
        pieces=named(tokenizer, map(int, named_ids)),
        student_prompt=one.student_prompt,
        teacher_prompt=teacher,
        prompts=prompts,
        run=stage.run,
        rollout=f"{stage.step}/{problem.id}/{rollout.author}/{rollout.index}",
        step=stage.step,
        index=rollout.index,
        author=rollout.author,
        stop=rollout.stop,
        recipe=stage.recipe.name,
        source=source,
        verdict=one.judged.verdict,
        question=problem.question,
        answer=problem.answer,
        solution=problem.solution,
    )
