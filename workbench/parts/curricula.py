"""Which problems come next and how much each counts.

Pure: the batch is a function of the seed, of how many problems went before, and of the pass rates last surveyed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from workbench.errors import RecipeError
from workbench.parts.schedules import Clock
from workbench.records import Judged, Problem

Rates = Mapping[str, float]
"""Problem id -> share of rollouts that were right, as last surveyed; empty before any survey."""


class Curriculum(Protocol):
    """The order in which problems are met; resuming at `cursor` meets the same ones."""

    def surveys(self, clock: Clock) -> int:
        """Rollouts a problem by which pass rates are to be measured before this step; 0: not now."""
        ...

    def teaching(self, problems: Sequence[Problem], rates: Rates) -> Sequence[Problem]:
        """Those that may come at all."""
        ...

    def weigh(self, group: list[Judged], rates: Rates) -> list[Judged]:
        """One problem's rollouts, counting for as much as the problem does."""
        ...

    def batch(self, problems: Sequence[Problem], n: int, cursor: int, seed: int) -> list[Problem]:
        """The `n` problems after the first `cursor`."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """A fresh permutation an epoch, from (seed, epoch).

    A batch across an epoch's end holds no problem twice unless it is larger than the set.
    """

    def surveys(self, clock: Clock) -> int:
        """Never."""
        return 0

    def teaching(self, problems: Sequence[Problem], rates: Rates) -> Sequence[Problem]:
        """All."""
        return problems

    def weigh(self, group: list[Judged], rates: Rates) -> list[Judged]:
        """As they are."""
        return group

    def batch(self, problems: Sequence[Problem], n: int, cursor: int, seed: int) -> list[Problem]:
        """The `n` problems after the first `cursor`; raises ValueError for an empty set."""
        if not problems:
            raise ValueError("no problems to draw from.")
        out: list[Problem] = []
        for position in range(cursor, cursor + n):
            epoch, offset = divmod(position, len(problems))
            out.append(problems[self._order(len(problems), epoch, seed)[offset]])
        return _distinct_first(out, problems) if n <= len(problems) else out

    @staticmethod
    def _order(size: int, epoch: int, seed: int) -> list[int]:
        order = list(range(size))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        return order


@dataclass(frozen=True)
class BetaKernel(Shuffled):
    """Problems weighted by w(p) = p^success (1 - p)^failure, p the student's pass rate. PACED (arXiv:2603.11178).

    p is measured from `rollouts` samples a problem before the steps at which a stage begins (`stages`, shares of the
    steps). Problems that are always or never solved have weight 0 and are not drawn; weights have mean 1 over
    all problems, so that the learning rate keeps its meaning. The paper's text was not to be had: sample count,
    stages and normalisation are our reconstruction. success = failure = 0 weighs all alike.
    """

    success: float = 1.0
    failure: float = 1.0
    rollouts: int = 8
    stages: tuple[float, ...] = (0.0, 0.5)
    follows_total: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what measures nothing. Raises RecipeError."""
        if self.rollouts < 1 or min(self.success, self.failure) < 0 or not self.stages or self.stages[0] != 0.0:
            raise RecipeError(
                f"{self!r} weighs nothing. rollouts is 1 or more, exponents 0 or more, and stages begin at 0.0."
            )

    def surveys(self, clock: Clock) -> int:
        """At the first step of each stage."""
        starts = {-int(-share * clock.total // 1) for share in self.stages}
        return self.rollouts if clock.step in starts else 0

    def kernel(self, rate: float) -> float:
        """w(p), before it is normalised."""
        return float(rate**self.success * (1.0 - rate) ** self.failure)

    def teaching(self, problems: Sequence[Problem], rates: Rates) -> Sequence[Problem]:
        """Those with a weight."""
        return [p for p in problems if self.kernel(rates[p.id]) > 0.0] if rates else problems

    def weights(self, rates: Rates) -> dict[str, float]:
        """w(p) over its mean among all problems."""
        kernel = {name: self.kernel(rate) for name, rate in rates.items()}
        mean = sum(kernel.values()) / max(1, len(kernel))
        return {name: w / mean if mean else 0.0 for name, w in kernel.items()}

    def weigh(self, group: list[Judged], rates: Rates) -> list[Judged]:
        """Times the problem's weight and the share of problems that are drawn, which keeps the expectation."""
        if not group or not rates:
            return group
        weights = self.weights(rates)
        drawn = sum(w > 0.0 for w in weights.values()) / len(weights)
        weight = weights[group[0].rollout.problem.id] * drawn
        return [replace(j, weight=j.weight * weight) for j in group]


def _distinct_first(batch: list[Problem], problems: Sequence[Problem]) -> list[Problem]:
    """Replace a repeat inside the batch by the first problem of the set that is not in it."""
    seen: set[str] = set()
    spare = iter([p for p in problems if p.id not in {b.id for b in batch}])
    out = []
    for problem in batch:
        chosen = next(spare, problem) if problem.id in seen else problem
        seen.add(chosen.id)
        out.append(chosen)
    return out
