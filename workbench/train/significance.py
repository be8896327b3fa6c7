"""How surprised to be: p-values of paired differences, corrected for how many were asked, and seeds against seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, variance

import numpy as np

from workbench.train.intervals import DRAWS, Difference, Estimate, Scores, paired_draws


def bootstrap_p(before: Scores, after: Scores, *, seed: int = 0, draws: int = DRAWS) -> float:
    """Two-sided p of no difference: twice the share of resampled means on the other side of 0, at least 1 / draws.

    Problems are resampled, answers averaged within a problem first. NaN below two problems.
    Source: arXiv:2609.20612, statistics.
    """
    means = paired_draws(before, after, seed=seed, draws=draws)
    if means is None:
        return math.nan
    tail = min(float(np.mean(means <= 0)), float(np.mean(means >= 0)))
    return min(1.0, max(2 * tail, 1 / draws))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m is multiplied by m - i, and none falls below one before it.

    A NaN was not asked: it stays, and does not count.
    """
    order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
    out, worst = list(ps), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * ps[i]))
        out[i] = worst
    return out


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The differences with Holm's correction over those of one figure."""
    out = list(differences)
    for figure in {d.figure for d in out if d.p is not None}:
        places = [i for i, d in enumerate(out) if d.figure == figure and d.p is not None]
        for i, p in zip(places, holm([out[i].p or math.nan for i in places]), strict=True):
            out[i] = replace(out[i], p=p)
    return out


def welch(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Estimate:
    """mean(after) - mean(before) over seeds, with Welch's interval: the seeds' own spread, unequal variances.

    Degrees of freedom by Welch and Satterthwaite. `n` is the smaller number of seeds; below two on a side the
    interval is open. It answers another question than an interval over problems: would other seeds say the same?
    """
    value, n = fmean(after) - fmean(before), min(len(before), len(after))
    if n < 2:
        return Estimate(value, -math.inf, math.inf, n)
    parts = [variance(x) / len(x) for x in (before, after)]
    spread = sum(parts)
    if spread == 0:
        return Estimate(value, value, value, n)
    freedom = spread**2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (before, after), strict=True))
    half = t_quantile((1 + confidence) / 2, freedom) * math.sqrt(spread)
    return Estimate(value, value - half, value + half, n)


def t_quantile(probability: float, freedom: float) -> float:
    """The quantile of Student's t above one half, by bisection on its distribution function."""
    from mpmath import betainc

    def below(t: float) -> float:
        tail = betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)
        return 1 - float(tail) / 2

    low, high = 0.0, 1.0
    while below(high) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < probability else (low, middle)
    return (low + high) / 2
