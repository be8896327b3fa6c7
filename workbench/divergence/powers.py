"""Divergences made of powers of both probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.divergence.pair import Coefficient, Divergence, Pair
from workbench.errors import UsageError


@dataclass(frozen=True)
class AlphaBeta(Divergence):
    """sum_v [x/s p_T^s + y/s p_S^s - p_T^x p_S^y] / (x y), s = x + y. ABKD (2505.04560), x = alpha, y = beta there.

    x = `teacher_power`, y = `student_power`. (1, 0) is ForwardKL, (0, 1) ReverseKL, (1/2, 1/2) four SquaredHellinger;
    the ends are the limits of the formula (ABKD's first code lacks a factor 1/power there). An f-divergence only where
    s = 1. Small s makes the many entries near zero count. UsageError for a negative power or two zeros: the value
    would be infinite where a role has no mass.
    """

    teacher_power: float = 0.2
    student_power: float = 0.7

    def __post_init__(self) -> None:
        """Refuse what is infinite at zero. Raises UsageError (a ValueError)."""
        powers = self.teacher_power, self.student_power
        if all(isinstance(x, int | float) for x in powers) and not (min(powers) >= 0.0 and sum(powers) > 0.0):
            raise UsageError(
                f"AlphaBeta{powers} has a power below 0, or two zeros. It is infinite where a probability is zero."
                " Use powers >= 0, one of them > 0 (ABKD: 0.2 and 0.7)."
            )

    @property
    def reads_logps(self) -> bool:
        """Powers are made from them."""
        return True

    @property
    def f_divergence(self) -> bool:
        """Where the powers sum to one."""
        return self.teacher_power + self.student_power == 1.0

    def value(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """Nothing: powers of probabilities are no multiples of them."""
        return None, None

    def slope(self, pair: Pair) -> tuple[Coefficient, Coefficient]:
        """Nothing."""
        return None, None

    def extra_value(self, pair: Pair) -> Tensor:
        """Each entry from its larger side, so that no power overflows and agreement is exactly zero."""
        x, y = self.teacher_power, self.student_power
        gap = pair.log_ratio.abs()
        over, under = _bracket(gap, y, x), _bracket(gap, x, y)
        larger = torch.maximum(pair.teacher_logp, pair.student_logp)
        return (larger * (x + y)).exp() * torch.where(pair.log_ratio > 0, over, under)

    def extra_slope(self, pair: Pair) -> Tensor:
        """(p_S^s - p_T^x p_S^y) / x, as x -> 0 -p_S^y r; before c is taken off."""
        x, y = self.teacher_power, self.student_power
        r = pair.log_ratio
        if x == 0.0:
            return (pair.student_logp * y).exp() * -r
        larger = torch.maximum(pair.teacher_logp, pair.student_logp)
        return (larger * x + pair.student_logp * y).exp() * torch.expm1(r.abs() * -x) * (r.sign() / x)


def _bracket(gap: Tensor, near: float, far: float) -> Tensor:
    """[near/s (e^(-s gap) - 1) - (e^(-near gap) - 1)] / (near far): an entry over its larger side's power s."""
    s = near + far
    if near == 0.0:
        return (torch.expm1(gap * -s) + gap * s) / s**2
    if far == 0.0:
        return (-torch.expm1(gap * -s) - gap * s * (gap * -s).exp()) / s**2
    return (torch.expm1(gap * -s) * (near / s) - torch.expm1(gap * -near)) / (near * far)
