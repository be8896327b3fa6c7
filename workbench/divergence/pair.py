"""One block of two distributions, and what a divergence is: four functions of it.

With r = log p_T - log p_S every divergence here is D = sum_v p_S a + p_T b (nats), and its gradient in the student's
logits is

    g = p_S (A - c) - p_T B,    c = sum_v p_S A - p_T B        (so that sum_v g_v = 0)

`value` gives (a, b), `slope` gives (A, B): the loss, the gradient and the screen read the same lines. What is no
multiple of a probability (powers of them, uniform weights) comes entry by entry in `extra_value` and `extra_slope`;
what needs a token's whole vocabulary first (normalisers, heads and tails) is asked for in `prepare`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

LOG_FLOOR = -1e5
"""Log-probs (nats) below this count as this: -inf is a legal input, and 0 * log 0 is 0."""

LOG2_E = torch.tensor(math.log2(math.e), dtype=torch.float32).item()
"""As float32 has it: whoever multiplies by it and divides again is back where he was."""

Coefficient: TypeAlias = Tensor | float | None
"""What multiplies a probability: per entry, the same for all entries, or zero (None)."""


class View:
    """A property that is worked out once. functools' own takes a lock, which a compiler cannot trace."""

    def __init__(self, make: Callable[[Pair], Tensor]) -> None:
        """`make` works it out."""
        self._make, self._name = make, make.__name__
        self.__doc__ = make.__doc__

    def __get__(self, pair: Pair, owner: type[Pair] | None = None) -> Tensor:
        """Found under its own name the next time: what an instance holds comes first."""
        value = self._make(pair)
        setattr(pair, self._name, value)
        return value


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
        rows: Mapping[Divergence, Tensor] | None = None,
    ) -> None:
        """Logits with normalisers that broadcast against them, or log-probs alone (see `of`).

        `rows`: what divergences found in `prepare`, (S, ...), each of the S shaped to broadcast against the block.
        """
        self._teacher, self._student = teacher, student
        self._teacher_lse, self._student_lse = teacher_lse, student_lse
        self._mixtures: list[tuple[float, Tensor]] = []
        self._rows = dict(rows or {})
        self._whole: int | None = None
        self._spent = False

    @classmethod
    def of(cls, teacher_logp: Tensor, student_logp: Tensor) -> Pair:
        """From log-probs (..., V), the last axis whole, -inf allowed; no gradient reaches the teacher."""
        return cls(teacher_logp.detach().clamp(min=LOG_FLOOR), student_logp.clamp(min=LOG_FLOOR)).over(-1)

    def spend(self) -> None:
        """Write p_S over the student's logits, of which r alone is left: for who does not read log-probs."""
        assert self._student_lse is not None
        _ = self.log_ratio
        self._spent = True
        self.student = exp_of(self._student, self._student_lse, out=self._student)

    def over(self, axis: int) -> Pair:
        """Itself, now known to hold the whole vocabulary along `axis`: `row` can then be worked out here."""
        self._whole = axis
        return self

    def row(self, divergence: Divergence) -> Tensor:
        """What `divergence.prepare` found of the tokens here: constants (S, ...) that broadcast against the block."""
        if divergence not in self._rows:
            assert self._whole is not None, f"{divergence} needs whole rows, and nobody prepared them"
            with torch.no_grad():  # in a pair of its own: views cached here would have lost their gradient
                alone = Pair(self._teacher.detach(), self._student.detach(), self._teacher_lse, self._student_lse)
                numbers = divergence.prepare(alone, self._whole)
            assert numbers is not None, f"{divergence} asks for rows and prepares none"
            self._rows[divergence] = numbers.unsqueeze(self._whole if self._whole < 0 else self._whole + 1)
        return self._rows[divergence]

    @View
    def log_ratio(self) -> Tensor:
        """The log-ratio r = log p_T - log p_S."""
        r = self._teacher - self._student
        if self._teacher_lse is None or self._student_lse is None:
            return r
        return r.sub_(self._teacher_lse - self._student_lse)

    @View
    def bounded_log_ratio(self) -> Tensor:
        """The same, cut where e^r would overflow; there p_S is zero in this precision."""
        return self.log_ratio.clamp(max=overflow(self.log_ratio.dtype))

    @View
    def teacher(self) -> Tensor:
        """p_T."""
        return self._teacher.exp() if self._teacher_lse is None else exp_of(self._teacher, self._teacher_lse)

    @View
    def student(self) -> Tensor:
        """p_S."""
        return self._student.exp() if self._student_lse is None else exp_of(self._student, self._student_lse)

    @View
    def teacher_logp(self) -> Tensor:
        """The teacher's log-probs, nats."""
        return self._teacher if self._teacher_lse is None else self._teacher - self._teacher_lse

    @View
    def student_logp(self) -> Tensor:
        """The student's log-probs, nats."""
        assert not self._spent, "the student's logits are written over: see Divergence.reads_logps"
        return self._student if self._student_lse is None else self._student - self._student_lse

    def held(self, over_student: Tensor) -> Tensor:
        """log(x / p_S) with x a constant to the gradient: the same number, slope -1 in log p_S."""
        if not torch.is_grad_enabled():
            return over_student
        return over_student.detach() - (self.student_logp - self.student_logp.detach())

    def log_mixture(self, teacher_weight: float) -> Tensor:
        """L = log(w p_T + (1 - w) p_S) - log p_S; exactly 0 where r is 0."""
        for known, mixture in self._mixtures:  # no dict: a compiler would make a kernel for each of its keys
            if known == teacher_weight:
                return mixture
        mixture = self._log_mixture(teacher_weight)
        self._mixtures.append((teacher_weight, mixture))
        return mixture

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


def per_nat(x: Tensor) -> float:
    """In what exponents are counted: nats, but on CPU bits, because torch's float32 exp2 takes a third of its exp."""
    return LOG2_E if x.dtype == torch.float32 and x.device.type == "cpu" else 1.0


def raised_(x: Tensor) -> Tensor:
    """2^x where `per_nat` counts bits, e^x elsewhere; in place, of a tensor nobody differentiates through."""
    return x.exp_() if per_nat(x) == 1.0 else x.exp2_()


def exp_(x: Tensor) -> Tensor:
    """e^x in place, of a tensor nobody differentiates through. The error is that of rounding x once more."""
    by = per_nat(x)
    return raised_(x if by == 1.0 else x.mul_(by))


def lowered(z: Tensor, base: Tensor, out: Tensor | None = None) -> Tensor:
    """`z` (nats) less `base`, new or in `out`, counted as `per_nat` says. `base` broadcasts.

    One multiply-add, so that only `base` was ever rounded.
    """
    by = per_nat(z)
    return torch.sub(z, base, out=out) if by == 1.0 else torch.add(-base, z, alpha=by, out=out)


def exp_of(z: Tensor, over: Tensor, out: Tensor | None = None) -> Tensor:
    """e^(z - over); nobody differentiates through it. The error is that of rounding `over`, common to a row."""
    return raised_(lowered(z, over * per_nat(z), out))


def overflow(dtype: torch.dtype) -> float:
    """A log-ratio whose exponential still fits; its inverse, as a probability, is nothing."""
    return 0.9 * math.log(torch.finfo(dtype).max)


def scaled(p: Tensor, by: Coefficient) -> Tensor | None:
    """`p` times a coefficient; None stays zero."""
    return None if by is None else p * by


def _sum(like: Tensor, *summands: Tensor | None) -> Tensor:
    """All that is not None."""
    found = [x for x in summands if x is not None]
    return sum(found[1:], found[0]) if found else torch.zeros_like(like)


class Divergence(ABC):
    """How far the student is from the teacher at one position, in nats. A frozen dataclass with two methods.

    `value` and `slope` return new tensors (or floats, or None for zero), never a view of the pair.
    """

    genuine: ClassVar[bool] = True
    """True: >= 0, and 0 only where both agree."""
    centre: ClassVar[float | None] = None
    """c where it is the same for every pair: values then need no pass of their own."""
    offset: ClassVar[float] = 0.0
    """What `slope` leaves out of A: a constant cancels in the gradient, unless entries are (`EntryClipped`)."""

    @property
    def surrogate(self) -> bool:
        """True: `slope`, and autograd through a call, is the gradient meant, not the derivative of the value.

        Something the value depends on (a weight, a mixture) is a constant to the gradient.
        """
        return False

    @property
    def reads_logps(self) -> bool:
        """True: asks a pair for the student's log-probs, which r and the teacher's cannot give back exactly."""
        return False

    @property
    def f_divergence(self) -> bool:
        """True: the value is never larger after entries are merged (data processing)."""
        return self.genuine

    @property
    def source(self) -> Divergence:
        """Whose `prepare` counts: an inner divergence's, if there is one."""
        return self

    def prepare(self, pair: Pair, axis: int) -> Tensor | None:
        """(S, n) numbers of n tokens, from the whole vocabulary of each along `axis`; None if it asks for none.

        Called once a chunk, for some tokens at a time, before any entry is computed. `Pair.row` hands the numbers out;
        to the gradient they are constants.
        """
        return None

    @abstractmethod
    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(a, b) with D = sum_v p_S a + p_T b."""

    @abstractmethod
    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(A, B) with dD/dz = p_S (A - c) - p_T B."""

    def extra_value(self, pair: Pair) -> Tensor | None:
        """What D has entry by entry besides p_S a + p_T b."""
        return None

    def extra_slope(self, pair: Pair) -> Tensor | None:
        """What dD/dz has entry by entry besides p_S (A - c) - p_T B; c counts it."""
        return None

    def density(self, pair: Pair) -> Tensor:
        """p_S a + p_T b + extra, entry by entry: D is its sum."""
        a, b = self.value(pair)
        return _sum(pair.student, scaled(pair.student, a), scaled(pair.teacher, b), self.extra_value(pair))

    def push(self, pair: Pair) -> Tensor:
        """p_S A - p_T B + extra, entry by entry: c is its sum."""
        a, b = self.slope(pair)
        pull = scaled(pair.teacher, b)
        return _sum(pair.student, scaled(pair.student, a), None if pull is None else -pull, self.extra_slope(pair))

    def both(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """(density, push); overridden where they share work. The same object twice is summed once."""
        return self.density(pair), self.push(pair)

    def __call__(
        self, teacher_logp: Float[Tensor, "*batch v"], student_logp: Float[Tensor, "*batch v"]
    ) -> Float[Tensor, "*batch"]:
        """D in nats from log-probs, any float type; differentiable in the student's only."""
        return self.density(Pair.of(teacher_logp, student_logp)).sum(-1)


def looks_ahead(divergence: Divergence) -> bool:
    """Whether it prepares numbers of whole rows."""
    return type(divergence.source).prepare is not Divergence.prepare
