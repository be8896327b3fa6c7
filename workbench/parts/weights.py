"""Where along a completion the loss counts. A token weight is (n,) from what is known of each token, detached.

What needs more than the token itself (the rest of its rollout, the rest of the step, the whole distribution) is a plan
(`plans.py`), made before the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from workbench.errors import RecipeError
from workbench.parts.schedules import Scalar

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.records import TokenStats


class TokenWeight(Protocol):
    """TokenStats -> (n,) weights >= 0. It scales the numerator; the denominator counts all tokens of the step."""

    entropies: ClassVar[bool]
    """Whether it reads the entropies, which cost two more passes over a chunk."""

    def __call__(self, stats: TokenStats) -> Tensor:
        """One weight a token."""
        ...


def reads_entropies(weight: object) -> bool:
    """Whether a token weight, or anything else that stands where one may, reads the entropies."""
    return bool(getattr(weight, "entropies", False))


@dataclass(frozen=True)
class EntropyAbove:
    """1 where a role's entropy exceeds `threshold` nats, else 0. EOPD's gate: the teacher's, 0.8 (arXiv:2603.07079)."""

    threshold: Scalar = 0.8
    of: Literal["teacher", "student"] = "teacher"
    entropies: ClassVar[bool] = True

    def __call__(self, stats: TokenStats) -> Tensor:
        """0 or 1."""
        entropy = stats.teacher_entropy if self.of == "teacher" else stats.student_entropy
        assert entropy is not None, "asked for by `entropies`"
        assert isinstance(self.threshold, (int, float)), "Recipe.at has replaced schedules by numbers"
        return (entropy > self.threshold).to(entropy.dtype)


@dataclass(frozen=True)
class SkipFirst:
    """0 for the first `tokens` of a completion, else 1: openings carry style. SDFT (arXiv:2601.19897) skips 3."""

    tokens: int = 3
    entropies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse a negative count. Raises RecipeError."""
        if self.tokens < 0:
            raise RecipeError(f"SkipFirst(tokens={self.tokens}): a count is 0 or more. 0 skips nothing.")

    def __call__(self, stats: TokenStats) -> Tensor:
        """0 or 1."""
        return (stats.position >= self.tokens).to(stats.student_logp.dtype)
