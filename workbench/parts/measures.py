"""What a plan may ask about a token that takes both whole distributions to answer: (n,) numbers, no gradient.

A measure is a frozen dataclass called with `Tokens`; the first reading of a step computes it chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from workbench.divergence import SquaredHellinger, TotalVariation

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.records import Tokens


class Measure(Protocol):
    """Tokens -> (n,)."""

    def __call__(self, tokens: Tokens) -> Tensor:
        """One number a token."""
        ...


@dataclass(frozen=True)
class Hellinger:
    """sqrt(1/2 sum (sqrt p_T - sqrt p_S)^2), in [0, 1]: AdaKD's difficulty of a token (arXiv:2510.11615)."""

    def __call__(self, tokens: Tokens) -> Tensor:
        """The distance."""
        assert tokens.teacher is not None
        return SquaredHellinger()(tokens.teacher, tokens.student).clamp(min=0.0).sqrt()


@dataclass(frozen=True)
class Overlap:
    """sum_v min(p_T, p_S) = 1 - TV: how likely a token drawn from the student is one the teacher accepts."""

    def __call__(self, tokens: Tokens) -> Tensor:
        """In [0, 1]."""
        assert tokens.teacher is not None
        return (1.0 - TotalVariation()(tokens.teacher, tokens.student)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class RankOfFavourite:
    """How many entries the teacher prefers to the student's likeliest one; 0 where it is the teacher's own first.

    Entries the teacher finds exactly as likely do not count against it.
    """

    def __call__(self, tokens: Tokens) -> Tensor:
        """0, 1, 2, ..."""
        assert tokens.teacher is not None
        favourite = tokens.teacher.gather(-1, tokens.student.argmax(-1, keepdim=True))
        return (tokens.teacher > favourite).sum(-1).to(tokens.student.dtype)
