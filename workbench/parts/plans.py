"""What must be known of a whole step before its loss: advantages along a completion, which tokens of the step count.

A first reading without gradient scores every rollout that teaches (`Reading`, one a rollout); plans turn readings into
readings with other advantages, weights and temperatures, in the order of the tuple; then comes the loss. The reading
sees the weights the step starts from, so `student_logp` is log q_old of the papers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch

from workbench.parts.measures import Measure
from workbench.parts.schedules import Scalar

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.records import Judged

Asked = Literal["reference", "entropies", "texts"]
Sets = Literal["advantage", "weight", "temperature"]


@dataclass(frozen=True, eq=False)
class Reading:
    """One rollout of n tokens as it was read before the loss. Tensors are (n,), float64, on the CPU; nats."""

    judged: Judged
    student_logp: Tensor
    teacher_logp: Tensor | None
    advantage: Tensor
    """At first the rollout's own at every token."""
    weight: Tensor
    """At first 1. Multiplies every term."""
    temperature: Tensor | None = None
    """Divides both roles' logits, on top of the sampling temperature; None is 1."""
    reference_logp: Tensor | None = None
    student_entropy: Tensor | None = None
    teacher_entropy: Tensor | None = None
    texts: tuple[str, ...] = ()
    """Each token alone, decoded."""
    measured: dict[Measure, Tensor] = field(default_factory=dict)

    @property
    def log_ratio(self) -> Tensor:
        """Log p_T(y_t) - log p_S(y_t)."""
        assert self.teacher_logp is not None, "a recipe with this plan has a teacher"
        return self.teacher_logp - self.student_logp

    @property
    def behaviour(self) -> Tensor:
        """log-prob of each token under whoever wrote it; NaN where it was not sampled by us."""
        logprobs = self.judged.rollout.logprobs
        n = len(self.judged.rollout.tokens)
        return torch.full((n,), math.nan, dtype=torch.float64) if logprobs is None else _row(logprobs)


class Plan(Protocol):
    """All readings of a step -> as many readings, in the same order. Pure."""

    asks: ClassVar[frozenset[Asked]]
    """What the reading must hold beside the roles' log-probs."""
    sets: ClassVar[frozenset[Sets]]
    """What it changes."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What the reading must measure."""
        ...

    def __call__(self, step: Sequence[Reading]) -> list[Reading]:
        """The readings with other advantages, weights or temperatures."""
        ...


class PlanBase:
    """What most plans share: nothing asked, weights set, one rollout at a time."""

    asks: ClassVar[frozenset[Asked]] = frozenset()
    sets: ClassVar[frozenset[Sets]] = frozenset({"weight"})

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Nothing."""
        return ()

    def __call__(self, step: Sequence[Reading]) -> list[Reading]:
        """Rollout by rollout."""
        return [self.one(reading) for reading in step]

    def one(self, reading: Reading) -> Reading:
        """The plan for a rollout that needs no other."""
        raise AssertionError("each plan says `one` or `__call__`")


@dataclass(frozen=True)
class LogRatio(PlanBase):
    """A_t = log p_T(y_t) - log p_B(y_t), p_B whoever wrote it. On-policy distillation (Thinking Machines, 2025).

    With `future` > 0 every later token's share is added, discounted by it: 1 is the gradient of the sequence KL, 0 (the
    released default) that of each token's own. `clip` bounds each token's own ratio.
    """

    future: float = 0.0
    clip: float | None = None
    sets: ClassVar[frozenset[Sets]] = frozenset({"advantage"})

    def one(self, reading: Reading) -> Reading:
        """Where nobody's log-prob is on record, the student's own stands in."""
        assert reading.teacher_logp is not None
        wrote = torch.where(reading.behaviour.isnan(), reading.student_logp, reading.behaviour)
        own = reading.teacher_logp - wrote
        return replace(reading, advantage=_discounted(_clipped(own, self.clip), self.future))


@dataclass(frozen=True)
class ReverseKLToGo(PlanBase):
    """MiniLLM's long-horizon advantage (arXiv:2306.08543; released code, microsoft/LMOps minillm).

    r_t = clip((log p_T - log q_old) / scale, +-clip), R_t = r_t + discount R_{t+1}, divided by the number of tokens
    left, whitened over the step's tokens. `own=False` starts at t + 1 (the paper: the token's own share is the exact
    single-step term beside this one; the released code counts it twice) and takes discount 1 as the paper does.
    The released code whitens over padding too; here over tokens alone.
    """

    scale: float = 1.0
    clip: float = 100.0
    discount: float = 1.0
    own: bool = False
    whiten: bool = True
    sets: ClassVar[frozenset[Sets]] = frozenset({"advantage"})

    def __call__(self, step: Sequence[Reading]) -> list[Reading]:
        """Per rollout, then whitened together."""
        rows = [self.returns(reading.log_ratio) for reading in step]
        if self.whiten and rows:
            rows = whitened(rows) if self.own else self._whitened_but_last(rows)
        return [replace(reading, advantage=row) for reading, row in zip(step, rows, strict=True)]

    @staticmethod
    def _whitened_but_last(rows: Sequence[Tensor]) -> list[Tensor]:
        """The last token has no future: whitened with the others, its zero would be far above their mean."""
        return [torch.cat((row, row.new_zeros(1))) for row in whitened([row[:-1] for row in rows])]

    def returns(self, log_ratio: Tensor) -> Tensor:
        """(n,) length-normalised returns of one rollout, before whitening."""
        n = len(log_ratio)
        sums = _discounted((log_ratio / self.scale).clamp(-self.clip, self.clip), self.discount)
        left = torch.arange(n, 0, -1, dtype=sums.dtype)
        if self.own:
            return sums / left
        later = torch.cat((sums[1:], sums.new_zeros(1)))
        return later / (left - 1).clamp(min=1)


@dataclass(frozen=True)
class ScaledLogRatio(PlanBase):
    """A_t = log p_T - log q_old + (scale - 1)(log p_T - log p_R), p_R the reference. G-OPD / ExOPD (arXiv:2602.12125).

    Its optimum is p_T^scale p_R^(1 - scale), normalised: 1 is plain distillation, above 1 goes beyond the teacher
    (1.25 in the paper; 1.5 is unstable). The survey calls the scale alpha, paper and code lambda.
    """

    scale: Scalar = 1.25
    asks: ClassVar[frozenset[Asked]] = frozenset({"reference"})
    sets: ClassVar[frozenset[Sets]] = frozenset({"advantage"})

    def one(self, reading: Reading) -> Reading:
        """Token by token."""
        assert reading.teacher_logp is not None
        assert reading.reference_logp is not None
        beyond = (self.scale - 1.0) * (reading.teacher_logp - reading.reference_logp)  # type: ignore[operator]
        return replace(reading, advantage=reading.log_ratio + beyond)


def whitened(rows: Sequence[Tensor]) -> list[Tensor]:
    """(x - mean) / sqrt(variance + 1e-8) over all entries together; the biased variance, as released."""
    joined = torch.cat(list(rows))
    scale = (joined.var(unbiased=False) + 1e-8).rsqrt() if len(joined) else 1.0
    return [(row - joined.mean()) * scale for row in rows]


def _row(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _clipped(x: Tensor, bound: float | None) -> Tensor:
    return x if bound is None else x.clamp(-bound, bound)


def _discounted(own: Tensor, discount: float) -> Tensor:
    """R_t = own_t + discount R_{t+1}."""
    if discount == 0.0:
        return own
    out, total = torch.empty_like(own), 0.0
    for t in range(len(own) - 1, -1, -1):
        total = float(own[t]) + discount * total
        out[t] = total
    return out
