"""What some methods measure between steps: how often the student solves each problem, how well it reads solutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from verifiers import Verdict
from workbench.engine.engine import Engine
from workbench.engine.ranks import ALONE, Ranks
from workbench.parts.terms import CrossEntropy
from workbench.parts.writers import Desk, FromDataset, OnPolicy
from workbench.recipe import Recipe
from workbench.records import Case, Judged, Problem, Rollout
from workbench.train.batches import Denominators, Entry, micro_batches
from workbench.train.gathering import problem_ids, shortest
from workbench.train.judging import judge_all
from workbench.train.objective import objective


def pass_rates(
    desk: Desk, problems: Sequence[Problem], verify: Callable[[Rollout], Verdict], rollouts: int, ranks: Ranks = ALONE
) -> dict[str, float] | None:
    """Share of `rollouts` samples of each problem that are right; None when stopped midway.

    What was not judged counts as not right: it gives no evidence that the student can do it.
    """
    written = OnPolicy(rollouts).draw(desk, problems)
    if desk.stopped():
        return None
    right: dict[str, list[bool]] = {}
    for one in judge_all(ranks, verify, written):
        right.setdefault(one.rollout.problem.id, []).append(one.verdict.correct)
    return {name: sum(found) / len(found) for name, found in right.items()}


@torch.no_grad()
def cross_entropy(recipe: Recipe, engine: Engine, problems: Sequence[Problem]) -> float | None:
    """Mean -log p_S over the tokens of held-out solutions, nat/token; None where no problem has a solution."""
    with_text = [p for p in problems if p.solution]
    if not with_text:
        return None
    desk = Desk(engine, recipe.student, None, recipe.sampling, (0,), lambda: False)
    read = [
        Entry(Judged(rollout, Verdict("unjudged")), engine.prompt(recipe.student, Case(rollout.problem)).ids, None)
        for rollout in FromDataset().draw(desk, with_text)
        if rollout.tokens
    ]
    text = Recipe(
        name="validation", paper="-", terms=(CrossEntropy(),), student=recipe.student, rollouts=FromDataset(),
        sampling=recipe.sampling,
    )  # fmt: skip
    counts = Denominators.of(text, read)
    own = [read[i] for i in engine.ranks.places(problem_ids(read))]
    batches = engine.ranks.level(micro_batches(own, engine.settings.micro_tokens), shortest(read))
    own_loss = 0.0
    for batch, counted in batches:
        with engine.meter.counting(counted):
            loss = float(objective(text, engine, batch, counts, grad=False)[0])
        own_loss += loss if counted else 0.0
    return float(sum(engine.ranks.together(lambda: own_loss)))
