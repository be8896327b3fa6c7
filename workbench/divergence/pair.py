"""One block of two distributions, and what a divergence is: four functions of it.

With r = log p_T - log p_S every divergence here is D = sum_v p_S a + p_T b (nats), and its gradient in the student's
logits is

    g = p_S (A - c) - p_T B,    c = sum_v p_S A - p_T B        (so that sum_v g_v = 0)

`value` gives (a, b), `slope` gives (A, B): the loss, the gradient and the screen read the same lines.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

LOG_FLOOR = -1e5
"""Log-probs (nats) below this count as this: -inf is a legal input, and 0 * log 0 is 0."""

LOG2_E = math.log2(math.e)

Coefficient: TypeAlias = Tensor | float | None
"""What multiplies a probability: per entry, the same for all entries, or zero (None)."""


class Pair:
    """A block of both distributions, entry by entry, in any layout; each view is computed when first asked for.

    Built from logits and their log-normalisers, so that r is a difference of raw logits and loses no digits to
    log-probs. Views are cached and shared: read them, never write into them.
    """

    def __init__(
        self,
        teacher: Tensor,
        student: Tensor,
        teacher_lse: Tensor | None = None,
        student_lse: Tensor | None = None,
    ) -> None:
        """Logits with normalisers that broadcast against them, or log-probs alone (see `of`)."""
        self._teacher, self._student = teacher, student
        self._teacher_lse, self._student_lse = teacher_lse, student_lse
        self._mixtures: dict[float, Tensor] = {}

    @classmethod
    def of(cls, teacher_logp: Tensor, student_logp: Tensor) -> Pair:
        """From log-probs, -inf allowed; no gradient reaches the teacher."""
        return cls(teacher_logp.detach().clamp(min=LOG_FLOOR), student_logp.clamp(min=LOG_FLOOR))

    @cached_property
    def log_ratio(self) -> Tensor:
        """The log-ratio r = log p_T - log p_S."""
        r = self._teacher - self._student
        if self._teacher_lse is None or self._student_lse is None:
            return r
        return r.sub_(self._teacher_lse - self._student_lse)

    @cached_property
    def bounded_log_ratio(self) -> Tensor:
        """The same, cut where e^r would overflow; there p_S is zero in this precision."""
        return self.log_ratio.clamp(max=overflow(self.log_ratio.dtype))

    @cached_property
    def teacher(self) -> Tensor:
        """p_T."""
        return self._teacher.exp() if self._teacher_lse is None else exp_(self._teacher - self._teacher_lse)

    @cached_property
    def student(self) -> Tensor:
        """p_S."""
        return self._student.exp() if self._student_lse is None else exp_(self._student - self._student_lse)

    def log_mixture(self, teacher_weight: float) -> Tensor:
        """L = log(w p_T + (1 - w) p_S) - log p_S; exactly 0 where r is 0."""
        if teacher_weight not in self._mixtures:
            self._mixtures[teacher_weight] = self._log_mixture(teacher_weight)
        return self._mixtures[teacher_weight]

    def _log_mixture(self, w: float) -> Tensor:
        if w == 0.0:
            return torch.zeros_like(self.log_ratio)
        if w == 1.0:
            return self.log_ratio
        if w > 0.999:  # 1 - w would be lost in w itself
            return (self.bounded_log_ratio.exp() * w + (1.0 - w)).log()
        if torch.is_grad_enabled():
            return ((self.bounded_log_ratio.exp() - 1.0) * w).log1p()
        return exp_(self.bounded_log_ratio.clone()).sub_(1.0).mul_(w).log1p_()


def exp_(x: Tensor) -> Tensor:
    """e^x in place, of a tensor nobody differentiates through.

    On CPU 2^(x log2 e): torch's float32 exp2 takes a third of its exp. The error is that of rounding x once more.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return x.mul_(LOG2_E).exp2_()
    return x.exp_()


def overflow(dtype: torch.dtype) -> float:
    """A log-ratio whose exponential still fits; its inverse, as a probability, is nothing."""
    return 0.9 * math.log(torch.finfo(dtype).max)


def scaled(p: Tensor, by: Coefficient) -> Tensor | None:
    """`p` times a coefficient; None stays zero."""
    return None if by is None else p * by


def _sum(x: Tensor | None, y: Tensor | None, like: Tensor) -> Tensor:
    if x is None or y is None:
        both = x if y is None else y
        return torch.zeros_like(like) if both is None else both
    return x + y


class Divergence(ABC):
    """How far the student is from the teacher at one position, in nats. A frozen dataclass with two methods.

    `value` and `slope` return new tensors (or floats, or None for zero), never a view of the pair.
    """

    surrogate: ClassVar[bool] = False
    """True: `slope` is the gradient meant, and differs from autograd of `value` on purpose (detached weights)."""
    genuine: ClassVar[bool] = True
    """True: an f-divergence: >= 0, 0 only where both agree, never larger after entries are merged."""
    centre: ClassVar[float | None] = None
    """c where it is the same for every pair: values then need no pass of their own."""
    offset: ClassVar[float] = 0.0
    """What `slope` leaves out of A: a constant cancels in the gradient, unless entries are (`EntryClipped`)."""

    @abstractmethod
    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(a, b) with D = sum_v p_S a + p_T b."""

    @abstractmethod
    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(A, B) with dD/dz = p_S (A - c) - p_T B."""

    def density(self, pair: Pair) -> Tensor:
        """p_S a + p_T b, entry by entry: D is its sum."""
        a, b = self.value(pair)
        return _sum(scaled(pair.student, a), scaled(pair.teacher, b), pair.student)

    def push(self, pair: Pair) -> Tensor:
        """p_S A - p_T B, entry by entry: c is its sum."""
        a, b = self.slope(pair)
        pull = scaled(pair.teacher, b)
        return _sum(scaled(pair.student, a), None if pull is None else -pull, pair.student)

    def both(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """(density, push); overridden where they share work. The same object twice is summed once."""
        return self.density(pair), self.push(pair)

    def __call__(
        self, teacher_logp: Float[Tensor, "*batch v"], student_logp: Float[Tensor, "*batch v"]
    ) -> Float[Tensor, "*batch"]:
        """D in nats from log-probs, any float type; differentiable in the student's only."""
        return self.density(Pair.of(teacher_logp, student_logp)).sum(-1)
