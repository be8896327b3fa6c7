"""What the measures read: one completion, token by token, as a run recorded it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from verifiers import Verdict
from workbench.errors import InputError
from workbench.inspector.seen import Seen

Floats = NDArray[np.float64]
Full = Literal["forward_kl", "reverse_kl", "jsd"]
_OF_TERM: dict[str, Full] = {"ForwardKL": "forward_kl", "ReverseKL": "reverse_kl", "JSD": "jsd"}
ROUNDING = 1e-5
"""Nats below zero that float32 may make of a divergence of nothing."""


@dataclass(frozen=True, eq=False)
class TokenRecord:
    """A completion of n tokens under both contexts. All arrays have shape [n]; positions count from 0.

    The divergence is the run's own (a full one, so never negative); the measures here only add and sort it.
    Raises InputError where arrays differ in length, hold a number that is not finite, or a divergence or a weight is
    negative.
    """

    problem: str
    """Its problem's id: the unit of chance."""
    text: tuple[str, ...]
    """Every token as text; joined they are the completion."""
    student_logp: Floats
    """log p_S(y_t), nats."""
    teacher_logp: Floats
    """log p_T(y_t), nats."""
    student_entropy: Floats
    """Nats."""
    teacher_entropy: Floats
    """Nats."""
    divergence: Floats
    """Nats; at least 0."""
    weight: Floats
    """What the loss multiplies a token by; 0 where it is not counted."""
    verdict: Verdict | None = None
    """None where nobody judged it."""

    def __post_init__(self) -> None:
        """Turn sequences into arrays and check them."""
        for name in ("student_logp", "teacher_logp", "student_entropy", "teacher_entropy", "divergence", "weight"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.shape != (len(self.text),):
                raise self._bad(f"{name} has shape {values.shape} beside {len(self.text)} tokens")
            if not np.isfinite(values).all():
                raise self._bad(f"{name} is not finite at position {int(np.argmin(np.isfinite(values)))}")
            object.__setattr__(self, name, values)
        if (self.divergence < -ROUNDING).any() or (self.weight < 0).any():
            raise self._bad("a divergence or a weight is negative")
        object.__setattr__(self, "divergence", np.maximum(self.divergence, 0.0))

    @classmethod
    def of(cls, seen: Seen, divergence: Full | None = None) -> TokenRecord:
        """What a run, or a model now, saw of a completion.

        `divergence` is one of the three full ones that every record has; None: the one that the first term compares by
        (without its clips), else the reverse KL. Raises InputError where a record lacks numbers, as those of rollouts
        do that were recorded without being shown.
        """
        chosen = divergence or _OF_TERM.get((*seen.terms, "")[0].split(".")[0], "reverse_kl")
        return cls(
            problem=seen.problem,
            text=seen.text,
            student_logp=seen.student_logp,
            teacher_logp=seen.teacher_logp,
            student_entropy=seen.student_entropy,
            teacher_entropy=seen.teacher_entropy,
            divergence=getattr(seen, chosen),
            weight=np.abs(seen.weight),
            verdict=seen.verdict,
        )

    def _bad(self, what: str) -> InputError:
        return InputError(
            f"token record of problem '{self.problem[:60]}': {what}. A measure would count the wrong tokens. "
            "Record the rollout again."
        )

    def __len__(self) -> int:
        return len(self.text)

    @property
    def difference(self) -> Floats:
        """d_t = log p_T(y_t) - log p_S(y_t), nats: above 0 the teacher says more."""
        return self.teacher_logp - self.student_logp

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Tokens that the loss sees."""
        return self.weight > 0

    @property
    def share_of_loss(self) -> Floats:
        """Weighted divergence w_t D_t, nats: what a token adds to the loss before its denominator."""
        return self.weight * self.divergence

    @property
    def correct(self) -> bool | None:
        """Whether its answer was right; None where it was not judged."""
        score = None if self.verdict is None else self.verdict.score
        return None if score is None else score == 1.0


def by_problem(records: Sequence[TokenRecord], values: Sequence[float | None]) -> dict[str, list[float | None]]:
    """One number a record, grouped as `workbench.train.intervals` wants it."""
    found: defaultdict[str, list[float | None]] = defaultdict(list)
    for record, value in zip(records, values, strict=True):
        found[record.problem].append(value)
    return dict(found)


def spans(text: Sequence[str]) -> list[tuple[int, int]]:
    """Where each token starts and ends in the joined text, in characters."""
    ends = np.cumsum([0, *map(len, text)]).tolist()
    return list(pairwise(ends))


def touching(text: Sequence[str], start: int, end: int) -> NDArray[np.int64]:
    """Positions of the tokens that hold a character of [start, end) of the joined text."""
    return np.array([i for i, (a, b) in enumerate(spans(text)) if a < end and b > start], dtype=np.int64)


def same_problems(before: Mapping[str, object], after: Mapping[str, object]) -> None:
    """Raises InputError where two sides of a comparison are not about the same problems."""
    if before.keys() != after.keys():
        only = sorted(before.keys() ^ after.keys())
        raise InputError(
            f"the two sides are not about the same problems: {len(only)} differ (first: '{only[0][:60]}'). "
            "A difference would be one of problems. Compare what both sides have."
        )
