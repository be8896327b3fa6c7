"""Divergences whose weights are constants to the gradient: `surrogate`, as the slope is not the value's derivative.

Autograd through a call gives the declared slope: the weights are detached there too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from workbench.divergence.pair import Coefficient, Divergence, Pair
from workbench.errors import UsageError

FEW = 128
"""How many of the likeliest entries `AdaptiveKL` looks at first."""


@dataclass(frozen=True)
class ToDi(Divergence):
    """sum_v w p_T r - (1 - w) p_S r, w = sg[sigmoid(r)] = sg[p_T / (p_T + p_S)] an entry. ToDi (2505.16297).

    Forward KL where the student is too low, reverse KL where it is too high. As (2w - 1) is the share by which p_T
    leads, the *value* is Jeffreys' divergence whatever the weights; the method is in what the gradient leaves out.
    """

    @property
    def surrogate(self) -> bool:
        """The weights are constants."""
        return True

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-(1 - w) r, w r)."""
        forward, reverse = self._weights(pair)
        return -reverse * pair.log_ratio, forward * pair.log_ratio

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """((1 - w) (1 - r), w)."""
        forward, reverse = self._weights(pair)
        return reverse * (1.0 - pair.log_ratio), forward

    @staticmethod
    def _weights(pair: Pair) -> tuple[Tensor, Tensor]:
        r = pair.log_ratio.detach()
        return r.sigmoid(), (-r).sigmoid()


@dataclass(frozen=True)
class AdaptiveKL(Divergence):
    """w KL(teacher || student) + (1 - w) KL(student || teacher), w a token's share of |p_T - p_S| in its head.

    AKL (2404.02657). The head is made of the teacher's likeliest entries with `share` of the mass. By default, as in
    the released code, the entry at which the mass passes `share` belongs to the tail, but the likeliest is always head;
    "smallest_set" is the paper's reading: the fewest entries with mass >= share. Entries of equal probability are on
    the same side, so numbering does not matter. w is a constant to the gradient, and 1/2 where the roles agree.
    UsageError unless 0 < share < 1.
    """

    share: float = 0.5
    head: Literal["crossing_is_tail", "smallest_set"] = "crossing_is_tail"

    def __post_init__(self) -> None:
        """Refuse an empty head or tail. Raises UsageError (a ValueError)."""
        if isinstance(self.share, int | float) and not 0.0 < self.share < 1.0:
            raise UsageError(
                f"AdaptiveKL(share={self.share}) must lie inside (0, 1). Else head or tail is empty and it is a plain"
                " KL. Use ForwardKL() or ReverseKL() for those (AKL: 0.5)."
            )

    @property
    def surrogate(self) -> bool:
        """The weight is a constant."""
        return True

    @property
    def f_divergence(self) -> bool:
        """No: merging entries moves the weight."""
        return False

    def prepare(self, pair: Pair, axis: int) -> Tensor:
        """(1, n): w."""
        p = pair.teacher
        slack = 64 * torch.finfo(p.dtype).eps  # so that a mass of exactly `share` is seen as such
        smallest = self.head == "smallest_set"
        find = _traced_head if torch.compiler.is_compiling() else _head
        head = find(p, axis, self.share, slack, smallest)
        gap = (p - pair.student).abs()
        inside, whole = (gap * head).sum(axis), gap.sum(axis)
        return torch.where(whole > 0, inside / whole, 0.5).unsqueeze(0)

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """(-(1 - w) r, w r)."""
        (weight,) = pair.row(self)
        return (weight - 1.0) * pair.log_ratio, weight * pair.log_ratio

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """((1 - w) (1 - r), w)."""
        (weight,) = pair.row(self)
        return (1.0 - weight) * (1.0 - pair.log_ratio), weight.expand_as(pair.log_ratio)


def _head(p: Tensor, axis: int, share: float, slack: float, smallest: bool) -> Tensor:
    """Which entries are head: up to where the mass passes `share`, or with `smallest` reaches it."""
    ordered, mass = _likeliest(p, axis, share + slack)
    before = mass < share - slack if smallest else mass <= share + slack
    at = before.sum(axis, keepdim=True).clamp(max=mass.shape[axis] - 1)
    crossing = ordered.gather(axis, at)
    return p >= crossing if smallest else (p > crossing) | (p >= ordered.narrow(axis, 0, 1))


_traced_head = torch.library.custom_op(
    "workbench::head",
    _head,
    mutates_args=(),
    schema="(Tensor p, int axis, float share, float slack, bool smallest) -> Tensor",
)
"""The same as one operator. How many entries are sorted depends on the numbers, which no compiler follows; and it
compares entries with one of themselves, which must be the same to the last bit."""


@_traced_head.register_fake
def _(p: Tensor, axis: int, share: float, slack: float, smallest: bool) -> Tensor:
    return torch.empty_like(p, dtype=torch.bool)


def _likeliest(p: Tensor, axis: int, mass: float) -> tuple[Tensor, Tensor]:
    """The largest entries in descending order with their running sum, as many as it takes to pass `mass`.

    On CPU 128 of a vocabulary cost a thirtieth of sorting it, and are enough for all but very flat distributions.
    """
    whole = p.shape[axis]
    for k in (FEW, FEW * FEW):
        if k < whole:
            ordered = p.topk(k, axis).values
            running = ordered.cumsum(axis)
            if bool((running.narrow(axis, k - 1, 1) > mass).all()):
                return ordered, running
    ordered = p.sort(axis, descending=True).values
    return ordered, ordered.cumsum(axis)


@dataclass(frozen=True)
class ConcreteScore(Divergence):
    """1/4 sum_uv w_uv (d_u - d_v)^2 over pairs of entries, d = z_S - z_T. CSD (2509.25837), in O(V).

    w_uv = (a_u b_v + a_v b_u) / 2, constants to the gradient: b is the student's distribution, a that of the
    `partner`: (S,S), (T,S), (U,S) in the paper. `temperature` is that of a and b alone; d stays raw. With E_a d = m and
    E_b d = k the declared gradient is [a (d - k) + b (d - m)] / 2, which sums to zero by itself. (S,S) has value
    Var_S(d) / 2 and, at temperature 1, *exactly reverse KL's gradient*. The released code reports a number without
    meaning in place of the value. UsageError unless temperature > 0.
    """

    partner: Literal["student", "teacher", "uniform"] = "student"
    temperature: float = 1.0
    centre: ClassVar[float | None] = 0.0

    def __post_init__(self) -> None:
        """Refuse what divides by nothing. Raises UsageError (a ValueError)."""
        if isinstance(self.temperature, int | float) and not self.temperature > 0:
            raise UsageError(
                f"ConcreteScore(temperature={self.temperature}) divides by it. It must be > 0. Use 1 to change nothing."
            )

    @property
    def reads_logps(self) -> bool:
        """They are tempered."""
        return True

    @property
    def surrogate(self) -> bool:
        """The weights are constants."""
        return True

    @property
    def f_divergence(self) -> bool:
        """No: merged entries weigh otherwise."""
        return False

    def prepare(self, pair: Pair, axis: int) -> Tensor:
        """(4, n): log-normalisers of a and b, E_a d and E_b d."""
        of_b = (pair.student_logp / self.temperature).logsumexp(axis, keepdim=True)
        of_a = torch.full_like(of_b, math.log(pair.student.shape[axis]))
        if self.partner != "uniform":
            of_a = of_b
        if self.partner == "teacher":
            of_a = (pair.teacher_logp / self.temperature).logsumexp(axis, keepdim=True)
        means = [(w * -pair.log_ratio).sum(axis) for w in self._weights(pair, of_a, of_b)]
        return torch.stack((of_a.squeeze(axis), of_b.squeeze(axis), *means))

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """Nothing: weights may be no multiples of probabilities."""
        return None, None

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """Nothing."""
        return None, None

    def extra_value(self, pair: Pair) -> Tensor:
        """[a (d - m) (d + m - 2 k) + b (d - m)^2] / 4: the value, and its slope with m and k held."""
        a, b, from_m, from_k = self._terms(pair)
        return (a * (2.0 * from_k - from_m) + b * from_m) * from_m * 0.25

    def extra_slope(self, pair: Pair) -> Tensor:
        """[a (d - k) + b (d - m)] / 2."""
        a, b, from_m, from_k = self._terms(pair)
        return (a * from_k + b * from_m) * 0.5

    def _terms(self, pair: Pair) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        of_a, of_b, m, k = pair.row(self)
        a, b = self._weights(pair, of_a, of_b)
        return a.detach(), b.detach(), -pair.log_ratio - m, -pair.log_ratio - k

    def _weights(self, pair: Pair, of_a: Tensor, of_b: Tensor) -> tuple[Tensor, Tensor]:
        b = (pair.student_logp / self.temperature - of_b).exp()
        if self.partner == "student":
            return b, b
        if self.partner == "teacher":
            return (pair.teacher_logp / self.temperature - of_a).exp(), b
        return (-of_a).exp().expand_as(b), b
