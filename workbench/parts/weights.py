"""Where along a completion the loss counts. A token weight is (n,) from what is known of each token, detached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.records import TokenStats


class TokenWeight(Protocol):
    """TokenStats -> (n,) weights >= 0. It scales the numerator; the denominator counts all tokens of the step."""

    entropies: bool
    """Whether it reads the entropies, which cost two more passes over a chunk."""

    def __call__(self, stats: TokenStats) -> Tensor:
        """One weight a token."""
        ...
