"""Where in a completion the divergence lies, and how a student's entropy and length drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.errors import UsageError
from workbench.inspector.diagnostics.contrast import mean_of
from workbench.inspector.diagnostics.record import TokenRecord, by_problem, same_problems
from workbench.train.intervals import Estimate, bootstrap_mean, bootstrap_ratio, paired_bootstrap


@dataclass(frozen=True)
class Concentration:
    """How few tokens carry most of a loss."""

    positions: NDArray[np.int64]
    """The fewest positions that carry the asked share, largest first; equals by position."""
    counted: int
    """Counted tokens."""
    carried: float
    """The share they carry, at least the asked one; NaN without any divergence."""

    def text(self) -> str:
        """`37 of 412 tokens carry 80 % of the divergence`."""
        return f"{len(self.positions)} of {self.counted} tokens carry {100 * self.carried:.0f} % of the divergence"


def concentration(record: TokenRecord, part: float = 0.8) -> Concentration:
    """The smallest set of tokens with sum w_t D_t >= part * total, over counted tokens.

    Args:
        record: one completion.
        part: of the total, above 0 and up to 1.

    Raises:
        UsageError: for another part.

    Source: own measure; RLCSD (arXiv:2606.11709) finds the signal concentrated on few style tokens.
    """
    if not 0 < part <= 1:
        raise UsageError(f"a share of {part} cannot be carried. It lies above 0 and up to 1. Give 0.8, say.")
    loss = record.share_of_loss
    order = np.argsort(-loss, kind="stable")
    # The order of summing moves the total by its last bit; without this all tokens could fail to carry all of it.
    running = np.cumsum(loss[order])
    total = running[-1] if len(running) else 0.0
    if total <= 0:
        return Concentration(np.array([], dtype=np.int64), int(record.counted.sum()), float("nan"))
    few = int(np.searchsorted(running, part * total * (1 - 1e-12))) + 1
    return Concentration(order[:few], int(record.counted.sum()), float(running[few - 1] / total))


def concentration_of(records: Sequence[TokenRecord], part: float = 0.8, *, seed: int = 0) -> Estimate:
    """Mean over problems of (tokens that carry `part`) / (counted tokens), 0 to 1; completions without any left out."""
    found = [concentration(record, part) for record in records]
    shares = [len(c.positions) / c.counted if len(c.positions) else None for c in found]
    return bootstrap_mean(by_problem(records, shares), seed=seed)


@dataclass(frozen=True)
class AroundError:
    """Mean divergence a counted token around the first error, nats, averaged by problem."""

    before: Estimate
    at: Estimate
    after: Estimate
    jump: Estimate
    """At minus before, paired by completion: above 0 the teacher notices."""


def around_first_error(
    records: Sequence[TokenRecord], errors: Sequence[tuple[int, int] | None], *, seed: int = 0
) -> AroundError:
    """Divergence before, at and after the first error: where is the mistake said to be?

    Args:
        records: completions.
        errors: for each, [start, end) of the first wrong step in tokens; None: no error, left out.
        seed: of the resampling of problems.

    Returns:
        Estimates; a completion whose error starts at 0 has no before, and counts not in `jump`.

    Raises:
        UsageError: for a stretch outside its completion.

    Source: own measure.
    """
    sides: list[list[float | None]] = [[], [], [], []]
    used = []
    for record, error in zip(records, errors, strict=True):
        if error is None:
            continue
        start, end = error
        if not 0 <= start < end <= len(record):
            raise UsageError(
                f"an error at [{start}, {end}) of {len(record)} tokens. It lies outside. Count tokens from 0."
            )
        used.append(record)
        parts = (slice(0, start), slice(start, end), slice(end, len(record)))
        before, at, after = (mean_of(record.divergence[p][record.counted[p]]) for p in parts)
        jump = None if before is None or at is None else at - before
        for side, value in zip(sides, (before, at, after, jump), strict=True):
            side.append(value)
    return AroundError(*(bootstrap_mean(by_problem(used, side), seed=seed, unit="nat/token") for side in sides))


@dataclass(frozen=True)
class Drift:
    """What changed in how a student writes between two checkpoints, on the same problems."""

    entropy: Estimate
    """Mean student entropy a token, after - before, nats. Far below 0: it stopped exploring."""
    length: Estimate
    """Mean tokens after / mean tokens before. 1: no drift; 2 and .5 are the alarms of a run."""


def drift(before: Sequence[TokenRecord], after: Sequence[TokenRecord], *, seed: int = 0) -> Drift:
    """Entropy and length of two checkpoints' own completions, paired by problem.

    A completion's mean entropy is taken over all its tokens, then averaged by problem; lengths are a ratio of means.
    Raises InputError where the two are not about the same problems, UsageError for a problem with empty completions.
    Source: RLCSD (arXiv:2606.11709): entropy explodes, then length grows.
    """
    entropies, lengths = [], []
    for records in (before, after):
        entropies.append(
            by_problem(records, [mean_of(r.student_entropy[~np.isnan(r.student_entropy)]) for r in records])
        )
        lengths.append(by_problem(records, [float(len(r)) for r in records]))
    same_problems(lengths[0], lengths[1])
    if not all(sum(v or 0 for v in values) for values in lengths[0].values()):
        raise UsageError("a problem has no token before. A ratio of lengths needs some. Leave the problem out.")
    return Drift(
        paired_bootstrap(*entropies, seed=seed, unit="nat"), bootstrap_ratio(lengths[1], lengths[0], seed=seed)
    )
