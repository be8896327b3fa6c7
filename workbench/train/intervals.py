"""How sure a number is. The unit of chance is the problem: its seeds are averaged before anything else.

Pooling completions lets a problem with many of them vote more often and makes intervals too narrow; every
function here but `wilson` takes values by problem and cannot be given a pool. Then the table of an evaluation's
arms, and the one sentence about a run that its intervals allow. Numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.text import printable

if TYPE_CHECKING:
    from verifiers import Verdict

Scores = Mapping[str, Sequence[float | None]]
"""Problem id -> one number a rollout. None: not judged, which leaves the denominator."""

DRAWS = 10_000
CONFIDENCE = 0.95
_BLOCK = 2_000_000

FEWEST = 6
"""Five differences of one sign happen by chance in 1 of 16 cases, six in 1 of 32: with fewer problems
than this no 95 % statement is possible, whatever a bootstrap of them prints."""


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and how many problems it rests on."""

    value: float
    low: float
    high: float
    n: int
    unit: str = ""

    @property
    def clear_of_zero(self) -> bool:
        """Whether a difference can be told from none."""
        return self.clear_of(0.0)

    def clear_of(self, reference: float) -> bool:
        """Whether the interval leaves out `reference` (1 for a ratio)."""
        return self.n >= FEWEST and (self.low > reference or self.high < reference)

    def text(self, digits: int = 2, *, signed: bool = False) -> str:
        """`0.41 nat/token [0.38, 0.45]`."""
        sign = "+" if signed else ""
        number = f"{self.value:{sign}.{digits}f}" + (f" {self.unit}" if self.unit else "")
        return f"{number} [{self.low:{sign}.{digits}f}, {self.high:{sign}.{digits}f}]"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def wilson(correct: int, n: int, confidence: float = CONFIDENCE) -> Estimate:
    """A share and its Wilson score interval: stays inside [0, 1] and is honest at 0 of n. 0 of 0 is NaN."""
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} is no share.")
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 exactly; floating point does not.
    low = 0.0 if correct == 0 else max(0.0, middle - half)
    high = 1.0 if correct == n else min(1.0, middle + half)
    return Estimate(share, low, high, n)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of k rollouts drawn from n without replacement is correct: 1 - C(n-c, k) / C(n, k).

    As a product, because the binomials overflow. Raises ValueError for k > n: no unbiased estimate exists.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {correct} correct among {n}: needs 0 <= correct <= n and 1 <= k <= n.")
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def mean_at_k(scores: Scores) -> float:
    """Mean over problems of the mean over a problem's rollouts; NaN where nothing was judged."""
    means = problem_means(scores)
    return float(np.mean(list(means.values()))) if means else math.nan


def problem_means(scores: Scores) -> dict[str, float]:
    """A problem's mean over its judged rollouts; problems without any are left out."""
    judged = {key: [float(v) for v in values if v is not None] for key, values in scores.items()}
    return {key: sum(judged[key]) / len(judged[key]) for key in sorted(judged) if judged[key]}


def bootstrap_mean(scores: Scores, *, seed: int = 0, draws: int = DRAWS, unit: str = "") -> Estimate:
    """The mean over problems with a percentile interval from resampling problems."""
    means = np.array(list(problem_means(scores).values()))
    return _interval(lambda rows: means[rows].mean(-1), len(means), seed, draws, unit)


def paired_bootstrap(before: Scores, after: Scores, *, seed: int = 0, draws: int = DRAWS, unit: str = "") -> Estimate:
    """Mean of (after - before) over the same problems, resampled together: a problem's difficulty cancels.

    A problem unjudged on one side is left out of both. Raises ValueError where the two are not about the same
    problems.
    """
    old, new = _paired(before, after)
    change = new - old
    return _interval(lambda rows: change[rows].mean(-1), len(change), seed, draws, unit)


def paired_draws(before: Scores, after: Scores, *, seed: int = 0, draws: int = DRAWS) -> NDArray[np.float64] | None:
    """The resampled means behind `paired_bootstrap`; None below two problems."""
    old, new = _paired(before, after)
    change = new - old
    return None if len(change) < 2 else _draws(lambda rows: change[rows].mean(-1), len(change), seed, draws)


def bootstrap_ratio(
    numerator: Scores, denominator: Scores, *, seed: int = 0, draws: int = DRAWS, unit: str = ""
) -> Estimate:
    """mean(numerator) / mean(denominator) over the same problems: tokens after by tokens before, say.

    The ratio of means, not the mean of ratios, which one short problem can own. Raises ValueError where a
    denominator is not positive.
    """
    below, above = _paired(denominator, numerator)
    if (below <= 0).any():
        raise ValueError("a ratio needs a positive denominator for every problem.")
    return _interval(lambda rows: above[rows].mean(-1) / below[rows].mean(-1), len(below), seed, draws, unit)


def needed_n(difference: float, deviation: float, *, confidence: float = CONFIDENCE, power: float = 0.8) -> int:
    """Problems needed to see a paired `difference`, given the standard deviation of differences by problem.

    Two points of accuracy with deviation 0.5: 4906.
    """
    if difference == 0 or deviation < 0:
        raise ValueError("needs a difference other than 0 and a deviation of 0 or more.")
    normal = NormalDist()
    z = normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)
    return max(FEWEST, math.ceil((z * deviation / difference) ** 2))


def _paired(before: Scores, after: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if before.keys() != after.keys():
        only = sorted(before.keys() ^ after.keys())
        raise ValueError(f"not the same problems on both sides: {len(only)} differ (first: {only[0]}).")
    old, new = problem_means(before), problem_means(after)
    both = [key for key in old if key in new]
    return np.array([old[key] for key in both]), np.array([new[key] for key in both])


def _interval(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]], n: int, seed: int, draws: int, unit: str
) -> Estimate:
    """Percentile interval of a statistic of row numbers; one problem or none says nothing about the next."""
    if n == 0:
        return Estimate(math.nan, -math.inf, math.inf, 0, unit)
    value = float(statistic(np.arange(n)))
    if n == 1:
        return Estimate(value, -math.inf, math.inf, 1, unit)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(_draws(statistic, n, seed, draws), [tail, 100 - tail])
    return Estimate(value, float(low), float(high), n, unit)


def _draws(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]], n: int, seed: int, draws: int
) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)  # bounds the index array
    parts = [statistic(generator.integers(0, n, (min(block, draws - start), n))) for start in range(0, draws, block)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Arm:
    """One row of an evaluation: the student before or after, under another instruction, or with its privilege."""

    name: str
    correct: int
    judged: int
    total: int
    accuracy: Estimate
    tokens: Estimate
    truncated: int
    no_answer: int
    unparsed: int

    @classmethod
    def of(
        cls,
        name: str,
        verdicts: Mapping[str, Sequence[Verdict]],
        tokens: Mapping[str, Sequence[int]],
        *,
        seed: int = 0,
        draws: int = DRAWS,
    ) -> Arm:
        """Count an arm's verdicts and completion lengths, both by problem.

        With one rollout a problem the interval is Wilson's; with more the rollouts of a problem are no independent
        draws, so problems are resampled.
        """
        scores = {key: [v.score for v in group] for key, group in verdicts.items()}
        status = [v.status for group in verdicts.values() for v in group]
        flat = [s for group in scores.values() for s in group if s is not None]
        correct, single = sum(s == 1.0 for s in flat), all(len(group) == 1 for group in verdicts.values())
        return cls(
            name=name,
            correct=correct,
            judged=len(flat),
            total=len(status),
            accuracy=wilson(correct, len(flat)) if single else bootstrap_share(scores, seed=seed, draws=draws),
            tokens=bootstrap_mean(tokens, seed=seed, draws=draws, unit="tokens"),
            truncated=status.count("truncated"),
            no_answer=status.count("no_answer"),
            unparsed=status.count("unparsed"),
        )


def bootstrap_share(scores: Scores, *, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """`bootstrap_mean` of numbers from 0 to 1: where all are 0, or all 1, Wilson over problems.

    Resampling problems that agree sees no chance, and [0, 0] would claim to know.
    """
    return unanimous(bootstrap_mean(scores, seed=seed, draws=draws))


def unanimous(share: Estimate) -> Estimate:
    """A resampled share as it is; at 0 or 1 without any spread Wilson's interval over its problems."""
    agreed = share.n > 0 and share.value in (0.0, 1.0) and (share.n == 1 or not share.low < share.high)
    return wilson(round(share.value * share.n), share.n) if agreed else share


@dataclass(frozen=True)
class Difference:
    """A paired difference (or ratio, with `reference` 1) between two arms."""

    name: str
    """`after - before`."""
    figure: str
    """`accuracy`, `tokens`, `held-out forward KL`."""
    estimate: Estimate
    reference: float = 0.0
    p: float | None = None
    """Two-sided, corrected for the other differences of its figure; None where one alone was asked."""

    @property
    def clear(self) -> bool:
        """Whether it can be told from no difference."""
        return self.estimate.clear_of(self.reference)


def arms_table(arms: Sequence[Arm], differences: Sequence[Difference] = ()) -> str:
    """The end of an evaluation, for a terminal: arms below each other, then what can be said about pairs."""
    rows: list[tuple[str, ...]] = [
        ("arm", "correct", "accuracy [95 %]", "tokens [95 %]", "truncated", "no answer", "unparsed")
    ]
    for arm in arms:
        counts = (f"{count}/{arm.total}" for count in (arm.truncated, arm.no_answer, arm.unparsed))
        accuracy, tokens = arm.accuracy.text(), _unitless(arm.tokens).text(0)
        rows.append((printable(arm.name), f"{arm.correct}/{arm.judged}", accuracy, tokens, *counts))
    text = aligned(rows)
    if differences:
        pairs: list[tuple[str, ...]] = [("difference", "of", "paired [95 %]", "n", "")]
        for d in differences:
            digits = 1 if abs(d.estimate.value) >= 10 else 3
            number = d.estimate.text(digits, signed=d.reference == 0)
            verdict = "clear of noise" if d.clear else "within noise"
            verdict += "" if d.p is None else f", p {d.p:.2g} among all"
            pairs.append((printable(d.name), printable(d.figure), number, str(d.estimate.n), verdict))
        text += "\n\n" + aligned(pairs)
    return text


def arms_dict(arms: Sequence[Arm], differences: Sequence[Difference] = ()) -> dict[str, Any]:
    """The same for JSON."""
    return {
        "arms": [asdict(arm) for arm in arms],
        "differences": [asdict(d) | {"clear": d.clear} for d in differences],
    }


def _unitless(estimate: Estimate) -> Estimate:
    return replace(estimate, unit="")


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a table for a terminal: columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
