"""What a run can be expected to gain, before it is trained: a line through earlier runs (arXiv:2605.30070).

A pre-flight number, never proof: views of equal teacher accuracy gain differently (arXiv:2609.20512).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import UsageError
from workbench.inspector.diagnostics.record import same_problems
from workbench.train.intervals import CONFIDENCE, Estimate, Scores, paired_bootstrap


def accuracy_gap(student: Scores, teacher: Scores, *, seed: int = 0) -> Estimate:
    """Accuracy of the self-teacher minus the student's before step 1, paired by problem, in shares (.05: 5 points).

    Raises InputError where the two are not about the same problems. Source: arXiv:2605.30070.
    """
    same_problems(student, teacher)
    return paired_bootstrap(student, teacher, seed=seed)


@dataclass(frozen=True)
class GainLine:
    """gain = slope * gap + intercept, by least squares over earlier runs; shares on both axes."""

    slope: float
    intercept: float
    runs: int
    mean_gap: float
    spread: float
    """Sum of squared distances of the gaps from their mean."""
    residual: float
    """Standard deviation of a run about the line, runs - 2 degrees of freedom; infinite for two runs."""

    def expected(self, gap: Estimate | float) -> Estimate:
        """The gain of one new run and its 95 % prediction interval.

        value = slope * gap + intercept; half width t_{runs-2} * residual * sqrt(1 + 1/runs + (gap - mean)^2 / spread).
        Where the gap is itself an estimate, each end of its interval is carried through the line and the wider end is
        taken: the result covers both doubts. `n` counts the runs.
        """
        if isinstance(gap, Estimate):
            ends = [self._at(gap.value), self._at(gap.low), self._at(gap.high)]
            return Estimate(ends[0].value, min(e.low for e in ends), max(e.high for e in ends), self.runs)
        return self._at(gap)

    def _at(self, gap: float) -> Estimate:
        value = self.slope * gap + self.intercept
        if not math.isfinite(self.residual) or not math.isfinite(gap):
            return Estimate(value, -math.inf, math.inf, self.runs)
        width = math.sqrt(1 + 1 / self.runs + (gap - self.mean_gap) ** 2 / self.spread)
        half = t_quantile((1 + CONFIDENCE) / 2, self.runs - 2) * self.residual * width
        return Estimate(value, value - half, value + half, self.runs)


def gain_line(gaps: Sequence[float], gains: Sequence[float]) -> GainLine:
    """Least squares of final gain on initial gap, a pair an earlier run.

    Raises UsageError for fewer than two different gaps, or unequal counts.
    Source: arXiv:2605.30070: linear, intercept about -.003 for one model; slope and R^2 not published.
    """
    x, y = np.asarray(gaps, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(set(x.tolist())) < 2:
        raise UsageError(
            f"{len(x)} gaps and {len(y)} gains make no line. It needs runs with two different gaps. Give a pair a run."
        )
    middle = float(x.mean())
    spread = float(((x - middle) ** 2).sum())
    slope = float(((x - middle) * (y - y.mean())).sum() / spread)
    intercept = float(y.mean()) - slope * middle
    squares = float(((y - slope * x - intercept) ** 2).sum())
    residual = math.sqrt(squares / (len(x) - 2)) if len(x) > 2 else math.inf
    return GainLine(slope, intercept, len(x), middle, spread, residual)


def t_quantile(share: float, freedom: int) -> float:
    """Student's t: the value below which `share` lies, for a whole number of degrees of freedom; share in [.5, 1).

    Halving on the closed form of the distribution (Abramowitz and Stegun 26.7.3 and 26.7.4), to rounding.
    Raises UsageError outside.
    """
    if not 0.5 <= share < 1 or freedom < 1:
        raise UsageError(
            f"no quantile of {share} with {freedom} degrees of freedom. Give .5 <= share < 1 and 1 or more."
        )
    low, high = 0.0, 1.0
    while _central(high, freedom) < 2 * share - 1:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _central(middle, freedom) < 2 * share - 1 else (low, middle)
    return (low + high) / 2


def _central(t: float, freedom: int) -> float:
    """P(-t < T < t)."""
    angle = math.atan(t / math.sqrt(freedom))
    square, odd = math.cos(angle) ** 2, freedom % 2
    # Terms cos^(k) with products of (k-1)/k: even ones for an even number of degrees of freedom, odd ones for an odd.
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= square * (k - 1) / k
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
