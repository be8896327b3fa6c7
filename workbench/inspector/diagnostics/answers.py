"""Where the answer stands, whether the teacher's sign is right there, and whether the teacher is right at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from workbench.errors import UsageError
from workbench.inspector.diagnostics.classes import share
from workbench.inspector.diagnostics.record import TokenRecord, by_problem, touching
from workbench.train.intervals import Estimate, bootstrap_mean

SILENT = 1e-4
"""Nats below which a token says nothing (OPSA: 51.7 % of all tokens)."""


def answer_positions(record: TokenRecord) -> NDArray[np.int64]:
    """Tokens that hold the last place of the completion where the judged answer is written; none: empty.

    The judge's `extracted` text is looked for as written. Positions from 0.
    """
    answer = None if record.verdict is None else record.verdict.extracted
    whole = "".join(record.text)
    start = whole.rfind(answer) if answer else -1
    return touching(record.text, start, start + len(answer or "")) if start >= 0 else np.array([], dtype=np.int64)


@dataclass(frozen=True)
class Noise:
    """How often the signal has the wrong sign where it can be checked."""

    rate: Estimate
    """Share of answer tokens whose sign contradicts the verdict, 0 to 1. Half is a coin."""
    silent: Estimate
    """Share of answer tokens with |d| < 1e-4 nats: they say nothing and count as no contradiction."""
    tokens: int


def noise_rate(records: Sequence[TokenRecord], *, seed: int = 0) -> Noise:
    """Share of answer tokens with d_t < 0 in right completions or d_t > 0 in wrong ones; d_t = log p_T - log p_S.

    Only records whose verdict is `correct` or `wrong` and whose answer is found in the text count. Ratio of means
    over problems, resampled by problem; d_t of exactly 0 stays in the denominator.
    Source: OPSA (arXiv:2608.31046), its noise diagnostic: 30.6 % with a 4B teacher, 50.6 % with the largest.
    """
    used = [r for r in records if r.verdict is not None and r.verdict.status in ("correct", "wrong")]
    places = [answer_positions(r) for r in used]
    signed = [r.difference[at] * (1 if r.correct else -1) for r, at in zip(used, places, strict=True)]
    total = by_problem(used, [float(len(d)) for d in signed])
    against = by_problem(used, [float((d < 0).sum()) for d in signed])
    silent = by_problem(used, [float((np.abs(d) < SILENT).sum()) for d in signed])
    return Noise(share(against, total, seed), share(silent, total, seed), sum(map(len, signed)))


@dataclass(frozen=True)
class Reliability:
    """Whether a teacher may be believed: its probes judged by the verifier, never by its own confidence."""

    success: Estimate
    """Mean over problems of the verified success of its probes."""
    open: Mapping[str, bool]
    """Problem -> whether enough probes were right to let the signal through."""
    confident: float
    """AUROC of the teacher's confidence for being right; .5 is a coin; NaN without both kinds or confidences."""


def gate_open(successes: int, probes: int, threshold: Fraction = Fraction(2, 3)) -> bool:
    """Whether successes / probes >= threshold, in exact arithmetic: 2 of 3 opens a gate of 2/3.

    Raises UsageError for counts that are no share. Source: TGOPD (arXiv:2609.02998), K = 3.
    """
    if not 0 <= successes <= probes or probes < 1:
        raise UsageError(
            f"{successes} of {probes} probes right is no share. Nothing is known of it. Probe once or more."
        )
    return Fraction(successes, probes) >= threshold


def open_probability(success: float, probes: int = 3, threshold: Fraction = Fraction(2, 3)) -> float:
    """Chance that the gate opens for a teacher of this true success: sum_k>=threshold*K C(K,k) p^k (1-p)^(K-k).

    Source: TGOPD (arXiv:2609.02998).
    """
    if not 0 <= success <= 1:
        raise UsageError(f"a success of {success} is no probability. It lies between 0 and 1. Give a share.")
    return math.fsum(
        math.comb(probes, k) * success**k * (1 - success) ** (probes - k)
        for k in range(probes + 1)
        if gate_open(k, probes, threshold)
    )


def reliability(
    probes: Mapping[str, Sequence[float]],
    confidence: Mapping[str, Sequence[float]] | None = None,
    *,
    threshold: Fraction = Fraction(2, 3),
    seed: int = 0,
) -> Reliability:
    """Verified success q_T of a teacher's probes by problem, and what its confidence would have said.

    Args:
        probes: problem -> score of each probe, 1.0 right or 0.0 not.
        confidence: problem -> any number that rises with the teacher's confidence, a probe each.
        threshold: of q_T from which a problem's signal is let through.
        seed: of the resampling of problems.

    Source: TGOPD (arXiv:2609.02998): AUROC of confidence .51 on code, .73 on maths.
    """
    pairs = [
        (c, s == 1.0) for key in confidence or () for c, s in zip((confidence or {})[key], probes[key], strict=True)
    ]
    return Reliability(
        bootstrap_mean(probes, seed=seed),
        {key: gate_open(sum(s == 1.0 for s in scores), len(scores), threshold) for key, scores in probes.items()},
        auroc([c for c, _ in pairs], [right for _, right in pairs]),
    )


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """P(score of a positive > score of a negative) + P(equal) / 2; NaN unless both kinds are there.

    By ranks (Mann-Whitney). Use: a predictor's worth without choosing a threshold, 0 to 1.
    """
    x, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.bool_)
    above, below = x[positive], np.sort(x[~positive])
    if not above.size or not below.size:
        return math.nan
    less, upto = np.searchsorted(below, above, "left"), np.searchsorted(below, above, "right")
    return float((less + upto).sum() / 2 / (above.size * below.size))
