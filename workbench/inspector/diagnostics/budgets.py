"""Better when cut short, worse when let think? Saved generations, cut at several budgets (arXiv:2607.05184)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from verifiers import Verdict
from workbench.errors import UsageError
from workbench.inspector.diagnostics.alignment import markers
from workbench.inspector.diagnostics.classes import share
from workbench.inspector.diagnostics.record import Floats
from workbench.train.intervals import Estimate, bootstrap_mean, bootstrap_share, problem_means

BUDGETS = (4096, 8192, 16384, 32768)
"""Tokens, as the source cuts."""
FORK_QUANTILE = 0.8
"""A token is a fork above this quantile of the base student's entropies. A reconstruction, fixed once."""

Judge = Callable[[str, str, bool], Verdict]
"""(problem id, text, truncated) -> verdict: the run's own verifier."""


@dataclass(frozen=True)
class Generation:
    """A saved completion; nothing is generated again."""

    problem: str
    text: tuple[str, ...]
    """Every token as text, up to where it ended or was cut."""
    stopped: bool
    """Whether it ended by itself; False: a limit cut it."""
    entropy: Floats | None = None
    """The writer's entropy at each token, nats, [n], for the fork rate."""


@dataclass(frozen=True)
class Budget:
    """One row of the sweep."""

    tokens: int
    accuracy: Estimate
    truncated: Estimate
    """Share of generations that the budget or their own limit cut, 0 to 1."""
    markers: Estimate
    """Words of a second thought per 1,000 tokens within the budget."""
    forks: Estimate | None
    """Share of positions above the fork threshold; None without one or without entropies."""


def fork_threshold(base_entropies: Floats) -> float:
    """The 80th percentile of the base student's entropies on held-out rollouts, nats: .2 of the base lies above.

    Fix it once and use it for every later checkpoint. Raises UsageError without entropies.
    Source: a reconstruction of arXiv:2607.05184's fork rate, whose definition is not published.
    """
    values = np.asarray(base_entropies, dtype=np.float64)
    if not values.size:
        raise UsageError(
            "no entropies of the base student. A threshold of nothing marks nothing. Record some rollouts."
        )
    return float(np.quantile(values, FORK_QUANTILE))


def budget_sweep(
    generations: Sequence[Generation],
    judge: Judge,
    budgets: Sequence[int] = BUDGETS,
    *,
    fork: float | None = None,
    seed: int = 0,
) -> tuple[Budget, ...]:
    """Cut the same saved generations at each budget and judge them again: accuracy against budget on equal samples.

    Args:
        generations: completions with their tokens as text.
        judge: the verifier; told whether the text was cut.
        budgets: tokens to keep, any order.
        fork: `fork_threshold` of the base student.
        seed: of the resampling of problems.

    Returns:
        A row a budget, in ascending order; all numbers averaged by problem.

    Raises:
        UsageError: for a budget below 1.

    Source: arXiv:2607.05184: losses of up to 17 % grow with the budget.
    """
    if min(budgets, default=1) < 1:
        raise UsageError(f"a budget of {min(budgets)} tokens keeps nothing. Nothing can be judged. Give 1 or more.")
    return tuple(_cut(generations, judge, budget, fork, seed) for budget in sorted(set(budgets)))


def _cut(generations: Sequence[Generation], judge: Judge, budget: int, fork: float | None, seed: int) -> Budget:
    columns: defaultdict[str, defaultdict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for g in generations:
        kept, cut = g.text[:budget], len(g.text) > budget or not g.stopped
        columns["score"][g.problem].append(judge(g.problem, "".join(kept), cut).score)
        columns["cut"][g.problem].append(float(cut))
        columns["tokens"][g.problem].append(float(len(kept)))
        columns["markers"][g.problem].append(1000.0 * float(markers(kept).sum()))
        if g.entropy is not None and fork is not None:
            forks = np.asarray(g.entropy)[:budget] > fork
            columns["forks"][g.problem].append(float(forks.mean()) if forks.size else None)
    return Budget(
        budget,
        bootstrap_share(columns["score"], seed=seed),
        bootstrap_share(columns["cut"], seed=seed),
        share(columns["markers"], columns["tokens"], seed),
        bootstrap_mean(columns["forks"], seed=seed) if columns["forks"] else None,
    )


def relative_change(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> float:
    """(mean after - mean before) / mean before, over problems: -.17 is a loss of 17 %. NaN where before is 0."""
    old, new = (float(np.mean(list(problem_means(side).values()))) for side in (before, after))
    return (new - old) / old if old else float("nan")
