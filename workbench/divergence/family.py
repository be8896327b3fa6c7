"""The divergences, each with its value and closed-form gradient (`pair.py` says how).

A member says nothing about masks, averages or temperatures. Forward is teacher first: ForwardKL = KL(teacher ||
student). A mixture weight is always `teacher_weight`. r = log p_T - log p_S; L = log(w p_T + (1 - w) p_S) - log p_S.

f-distill's four (2307.15190) are ForwardKL, ReverseKL, JSD and TotalVariation. Members whose weights are constants to
the gradient are in `weighted.py`, powers of probabilities in `powers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from workbench.divergence.pair import Coefficient, Divergence, Pair, overflow, scaled
from workbench.errors import UsageError


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(teacher || student) = sum p_T r. GKD (2306.13649) beta = 0; OPSD v3 (2601.18734)."""

    centre: ClassVar[float | None] = -1.0

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(0, r)."""
        return None, +pair.log_ratio

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(0, 1): g = p_S - p_T."""
        return None, 1.0

    def density(self, pair: Pair) -> Tensor:
        """p_T r."""
        return pair.teacher * pair.log_ratio


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(student || teacher) = -sum p_S r. GKD beta = 1; MiniLLM (2306.08543); OPSDC (2603.05433)."""

    offset: ClassVar[float] = 1.0

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-r, 0)."""
        return -pair.log_ratio, None

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-r, 0): g = p_S (-r - D)."""
        return -pair.log_ratio, None

    def density(self, pair: Pair) -> Tensor:
        """-p_S r."""
        return (pair.student * pair.log_ratio).neg_()

    def both(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """One array: c is the divergence itself."""
        density = self.density(pair)
        return density, density


@dataclass(frozen=True)
class JSD(Divergence):
    """w KL(teacher || m) + (1 - w) KL(student || m), m = w teacher + (1 - w) student. GKD eq. 1 (beta = w).

    Tends to zero like w ForwardKL as w -> 0 and like (1 - w) ReverseKL as w -> 1: GKD *defines* its ends as the two
    KLs, so the scale jumps there, and compare methods at equal gradient norm. UsageError outside (0, 1).
    """

    teacher_weight: float = 0.5

    def __post_init__(self) -> None:
        """Refuse the ends, where it is zero. Raises UsageError (a ValueError)."""
        _check_weight(self, inside=True)

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-(1 - w) L, w (r - L))."""
        w = self.teacher_weight
        mixture = pair.log_mixture(w)
        return mixture * (w - 1.0), (pair.bounded_log_ratio - mixture) * w

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-(1 - w) L, 0)."""
        return pair.log_mixture(self.teacher_weight) * (self.teacher_weight - 1.0), None

    def both(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """The student's half is common."""
        w, mixture = self.teacher_weight, pair.log_mixture(self.teacher_weight)
        push = (pair.student * mixture).mul_(w - 1.0)
        return torch.addcmul(push, pair.teacher, pair.bounded_log_ratio - mixture, value=w), push


@dataclass(frozen=True)
class SkewKL(Divergence):
    """KL(teacher || w teacher + (1 - w) student) <= log(1/w). DistiLLM (2402.03898) eq. 4 (alpha = w).

    w = 0 is ForwardKL; w = 1 compares the teacher with itself and is zero. UsageError outside [0, 1].
    """

    teacher_weight: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is no mixture. Raises UsageError (a ValueError)."""
        _check_weight(self)

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(0, r - L)."""
        w = self.teacher_weight
        if w in (0.0, 1.0):
            return None, +pair.log_ratio if w == 0.0 else None
        return None, pair.bounded_log_ratio - pair.log_mixture(w)

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(0, (1 - w) e^-L)."""
        w = self.teacher_weight
        return None, None if w == 1.0 else (-pair.log_mixture(w)).exp() * (1.0 - w)


@dataclass(frozen=True)
class SkewReverseKL(Divergence):
    """KL(student || w teacher + (1 - w) student) <= log(1/(1 - w)). DistiLLM (2402.03898) (alpha = 1 - w).

    w = 1 is ReverseKL; w = 0 compares the student with itself and is zero. The gradient runs through the mixture, as
    in DistiLLM's code; `detached` holds the mixture constant, as DistiLLM-2's (2503.07067): the same value, declared
    gradient p_S (-L - c). UsageError outside [0, 1].
    """

    teacher_weight: float = 0.9
    detached: bool = False
    offset: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no mixture. Raises UsageError (a ValueError)."""
        _check_weight(self)

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-L, 0)."""
        mixture = pair.log_mixture(self.teacher_weight)
        return -(pair.held(mixture) if self.detached else mixture), None

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-L - (1 - w) e^-L, 0), detached (-L, 0)."""
        w = self.teacher_weight
        mixture = pair.log_mixture(w)
        if self.detached or w == 1.0:
            return -mixture, None
        return -mixture - (-mixture).exp() * (1.0 - w), None

    @property
    def surrogate(self) -> bool:
        """Where the mixture is detached."""
        return self.detached


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """1/2 sum |p_T - p_S|, in [0, 1]. f-distill (2307.15190). Not smooth where an entry agrees; slope 0 there."""

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-sign(r)/2, sign(r)/2): no e^r to overflow."""
        half = pair.log_ratio.sign() * 0.5
        return -half, half

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-sign(r)/2, 0)."""
        return pair.log_ratio.sign() * -0.5, None


@dataclass(frozen=True)
class SquaredHellinger(Divergence):
    """1 - sum sqrt(p_T p_S) = 1/2 sum (sqrt p_T - sqrt p_S)^2, in [0, 1]. Its square root is the Hellinger distance."""

    offset: ClassVar[float] = 0.5

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """((1 - e^(r/2))/2, (1 - e^(-r/2))/2): each entry is a square."""
        half = self._half(pair)
        return torch.expm1(half) * -0.5, torch.expm1(-half) * -0.5

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-e^(r/2)/2, 0)."""
        return self._half(pair).exp() * -0.5, None

    @staticmethod
    def _half(pair: Pair) -> Tensor:
        limit = overflow(pair.log_ratio.dtype)
        return (pair.log_ratio * 0.5).clamp(-limit, limit)


@dataclass(frozen=True)
class Jeffreys(Divergence):
    """KL(teacher || student) + KL(student || teacher) = sum (p_T - p_S) r. The value of ToDi (2505.16297)."""

    offset: ClassVar[float] = 1.0

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-r, r)."""
        return -pair.log_ratio, +pair.log_ratio

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-r, 1)."""
        return -pair.log_ratio, 1.0

    def density(self, pair: Pair) -> Tensor:
        """(p_T - p_S) r."""
        return (pair.teacher - pair.student) * pair.log_ratio


@dataclass(frozen=True)
class EntryClipped(Divergence):
    """sum_v min(d_v, ceiling) over the entries d_v of another divergence. OPSD v3 (2601.18734), jsd_token_clip.

    With K the entries below the ceiling: A and B are zero outside K and c runs over K, which is autograd's gradient.
    It is *not* a divergence: with ForwardKL it can be negative, and where the ceiling binds at the token the teacher
    prefers, its pull is gone and the gradient may point away from the teacher (OPSD's issues 2 and 24);
    `fused_loss` reports those tokens as `turned`. UsageError unless ceiling > 0 (inf clips nothing).
    """

    divergence: Divergence
    ceiling: float = 0.05
    genuine: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse a ceiling that clips agreement. Raises UsageError (a ValueError)."""
        if isinstance(self.ceiling, int | float) and not self.ceiling > 0:
            raise UsageError(
                f"EntryClipped(ceiling={self.ceiling}) clips entries that agree. Use a ceiling > 0 (OPSD: 0.05)."
            )

    @property
    def unclipped(self) -> Divergence:
        """What is clipped."""
        return self.divergence

    @property
    def reads_logps(self) -> bool:
        """As what is clipped."""
        return self.divergence.reads_logps

    @property
    def source(self) -> Divergence:
        """The inner one's."""
        return self.divergence.source

    @property
    def surrogate(self) -> bool:
        """As what is clipped."""
        return self.divergence.surrogate

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(a, b) of the inner divergence; where clipped, the ceiling shared out by mass."""
        a, b = self.divergence.value(pair)
        clipped = self.divergence.density(pair) > self.ceiling
        share = self.ceiling / (pair.student + pair.teacher)
        rest = [torch.zeros_like(share) if x is None else x for x in (a, b)]
        return torch.where(clipped, share, rest[0]), torch.where(clipped, share, rest[1])

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(A, B) of the inner divergence inside K, 0 outside."""
        a, b = self.divergence.slope(pair)
        kept, offset = self._kept(self.divergence.density(pair)), self.divergence.offset
        if offset:
            a = offset if a is None else a + offset
        return scaled(kept, a), scaled(kept, b)

    def extra_value(self, pair: Pair) -> Tensor | None:
        """The inner one's, where not clipped."""
        extra = self.divergence.extra_value(pair)
        return None if extra is None else extra.masked_fill(self.divergence.density(pair) > self.ceiling, 0.0)

    def extra_slope(self, pair: Pair) -> Tensor | None:
        """The inner one's inside K."""
        extra = self.divergence.extra_slope(pair)
        return None if extra is None else extra * self._kept(self.divergence.density(pair))

    def density(self, pair: Pair) -> Tensor:
        """min(d_v, ceiling)."""
        return self.divergence.density(pair).clamp(max=self.ceiling)

    def both(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Shares the inner entries."""
        density, push = self.divergence.both(pair)
        if self.divergence.offset:
            push = push + pair.student * self.divergence.offset
        return density.clamp(max=self.ceiling), push * self._kept(density)

    def _kept(self, density: Tensor) -> Tensor:
        """1 inside K, else 0; arithmetic because a masked select is ten times slower on CPU."""
        return (self.ceiling - density).clamp_(min=0.0).sign_()


def _check_weight(divergence: JSD | SkewKL | SkewReverseKL, inside: bool = False) -> None:
    weight = divergence.teacher_weight
    if not isinstance(weight, int | float):  # a schedule: checked again when it has become a number
        return
    holds, where = (0.0 < weight < 1.0, "inside (0, 1)") if inside else (0.0 <= weight <= 1.0, "in [0, 1]")
    if not holds:
        raise UsageError(
            f"{type(divergence).__name__}(teacher_weight={weight}) must be {where}."
            " The mixture has no other meaning, and at the ends it is zero or a plain KL."
            " Use ForwardKL() or ReverseKL() for the plain ones."
        )
