"""Does the teacher prefer what is right, and does it press on second thoughts? (arXiv:2609.20512)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.inspector.diagnostics.contrast import mean_of
from workbench.inspector.diagnostics.record import TokenRecord, by_problem
from workbench.train.intervals import Estimate, bootstrap_mean

MARKERS = (
    "wait", "but", "however", "maybe", "actually", "recheck", "check", "verify", "reconsider", "mistake", "instead",
)  # fmt: skip
"""Words of a second thought, as the source lists them."""


def markers(text: Sequence[str]) -> NDArray[np.bool_]:
    """Which tokens contain a marker in lower case, [n]: a substring, as in the source, so `button` holds one too."""
    return np.array([any(word in token.lower() for word in MARKERS) for token in text], dtype=np.bool_)


def correctness_alignment(records: Sequence[TokenRecord], *, seed: int = 0) -> Estimate:
    """C = mean over problems of (mean of Delta over right completions - mean of Delta over wrong ones), nats a token.

    Delta(y) = mean over counted t of log p_T(y_t) - log p_S(y_t): signed, no divergence. Only problems that have both
    kinds count; pooling completions would let a problem with many of them vote more often.

    Returns:
        C with an interval from resampling problems; n counts the problems that have both kinds. Above 0: the teacher
        leans towards what is right.

    Source: arXiv:2609.20512, correctness alignment.
    """
    sides: defaultdict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for record in records:
        delta = mean_of(record.difference[record.counted])
        if delta is not None and record.correct is not None:
            sides[record.problem][record.correct].append(delta)
    both = {key: [float(np.mean(right) - np.mean(wrong))] for key, (wrong, right) in sides.items() if right and wrong}
    return bootstrap_mean(both, seed=seed, unit="nat/token")


@dataclass(frozen=True)
class Pressure:
    """What the teacher does at the student's second thoughts; averaged by completion, then by problem."""

    log_ratio: Estimate
    """log p_T(y) - log p_S(y) at markers, nats: below 0 the teacher would not have written them."""
    mass: Estimate
    """p_T(y) - p_S(y) at markers."""
    entropy: Estimate
    """Teacher's entropy - student's, nats."""
    elsewhere: Estimate
    """log p_T(y) - log p_S(y) at all other tokens: pressure is what differs from it."""
    tokens: int


def marker_pressure(records: Sequence[TokenRecord], *, seed: int = 0) -> Pressure:
    """Signed log-ratio, change of mass and change of entropy at markers, with intervals from resampling problems.

    Markers are correlated within a completion, so the problem is resampled, never the token.
    Source: arXiv:2609.20512, marker pressure.
    """
    at = [markers(r.text) & r.counted for r in records]
    rest = [r.counted & ~mask for r, mask in zip(records, at, strict=True)]
    masses = [np.exp(r.teacher_logp) - np.exp(r.student_logp) for r in records]
    entropies = [r.teacher_entropy - r.student_entropy for r in records]

    def mean(arrays: Sequence[NDArray[np.float64]], masks: Sequence[NDArray[np.bool_]], unit: str) -> Estimate:
        values = [mean_of(array[mask & ~np.isnan(array)]) for array, mask in zip(arrays, masks, strict=True)]
        return bootstrap_mean(by_problem(records, values), seed=seed, unit=unit)

    ratios = [r.difference for r in records]
    return Pressure(
        mean(ratios, at, "nat/token"),
        mean(masses, at, ""),
        mean(entropies, at, "nat"),
        mean(ratios, rest, "nat/token"),
        int(sum(mask.sum() for mask in at)),
    )


def marker_pressure_split(records: Sequence[TokenRecord], *, seed: int = 0) -> dict[str, Estimate]:
    """The signed log-ratio at markers by the student's entropy there (median of all markers) and by the verdict.

    Keys `unsure` (entropy above the median), `sure`, `right`, `wrong`; nats a token, problems resampled. A teacher
    that presses on second thoughts only where the student was sure, or only in wrong completions, is another teacher
    than one that presses everywhere. Source: arXiv:2609.20612, marker pressure.
    """
    at = [markers(r.text) & r.counted for r in records]
    entropies = np.concatenate([r.student_entropy[mask] for r, mask in zip(records, at, strict=True)] or [np.zeros(0)])
    middle = float(np.nanmedian(entropies)) if np.isfinite(entropies).any() else np.nan
    groups = {
        "unsure": [mask & (r.student_entropy > middle) for r, mask in zip(records, at, strict=True)],
        "sure": [mask & (r.student_entropy <= middle) for r, mask in zip(records, at, strict=True)],
        "right": [mask & (r.correct is True) for r, mask in zip(records, at, strict=True)],
        "wrong": [mask & (r.correct is False) for r, mask in zip(records, at, strict=True)],
    }
    out = {}
    for name, masks in groups.items():
        values = [mean_of(r.difference[mask]) for r, mask in zip(records, masks, strict=True)]
        out[name] = bootstrap_mean(by_problem(records, values), seed=seed, unit="nat/token")
    return out


@dataclass(frozen=True)
class Heads:
    """What the two roles would rather write at a set of tokens; shares, 0 to 1."""

    disagree: float
    """Likeliest tokens differ; NaN of no token."""
    leans_to_stop: float
    """Of those, how often the teacher gives more to ending than the student does; NaN without any."""


def heads(top: NDArray[np.int64], stop: NDArray[np.float64], at: NDArray[np.bool_]) -> Heads:
    """Top-1 disagreement and leaning to stop at chosen tokens, markers for instance.

    Args:
        top: likeliest token of the student and of the teacher, [2, n].
        stop: largest log-prob among end of text, end of thinking and answer transition, both roles, nats, [2, n].
        at: which tokens count, [n].

    Source: arXiv:2609.20512, marker pressure.
    """
    apart = (top[0] != top[1]) & at
    share = mean_of(apart[at].astype(np.float64))
    leaning = mean_of((stop[1] > stop[0])[apart].astype(np.float64))
    return Heads(np.nan if share is None else share, np.nan if leaning is None else leaning)
