"""Maps a pair of distributions to a pair that still sums to one; knows nothing of the divergence that follows.

A transform is a frozen dataclass `(teacher_logp, student_logp) -> (teacher_logp, student_logp)`, last axis the entries.
They act on whole distributions, so they belong to the generic path, the reference and the inspector; the fused loop
has temperature in its heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.divergence.pair import LOG_FLOOR
from workbench.errors import UsageError


class Transform(Protocol):
    """What every transform is."""

    def __call__(self, teacher_logp: Tensor, student_logp: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised log-probs in, normalised log-probs out."""
        ...


@dataclass(frozen=True)
class Temperature:
    """Both distributions at another temperature: log_softmax(log p / value). Hinton (1503.02531), without tau squared.

    1 is the identity. UsageError unless value > 0.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what divides by nothing. Raises UsageError (a ValueError)."""
        if isinstance(self.value, int | float) and not self.value > 0:
            raise UsageError(
                f"Temperature({self.value}) divides logits by {self.value}. It must be > 0. 1 changes nothing."
            )

    def __call__(
        self, teacher_logp: Float[Tensor, "*batch v"], student_logp: Float[Tensor, "*batch v"]
    ) -> tuple[Float[Tensor, "*batch v"], Float[Tensor, "*batch v"]]:
        """(..., V) to (..., V), nats."""
        if self.value == 1.0:
            return teacher_logp, student_logp
        return (teacher_logp / self.value).log_softmax(-1), (student_logp / self.value).log_softmax(-1)


@dataclass(frozen=True)
class TopK:
    """The k likeliest entries of one role, for both; the rest in one bucket (`tail`) or left out and renormalised.

    With the tail an f-divergence never grows (data processing), and what it misses lies inside the bucket. Without it
    (OPSD's top_k_loss; LSM, 2603.25562) mass outside is not seen at all, and k = 1 is zero whatever the student does:
    refused. k >= V is the identity. UsageError for k < 1, or < 2 without tail.
    """

    k: int
    support: Literal["teacher", "student"] = "teacher"
    tail: bool = True

    def __post_init__(self) -> None:
        """Refuse the empty and the degenerate. Raises UsageError (a ValueError)."""
        if isinstance(self.k, int) and self.k < (1 if self.tail else 2):
            raise UsageError(
                f"TopK(k={self.k}, tail={self.tail}) compares nothing. One entry renormalised is always 1."
                " Use k >= 2, or tail=True."
            )

    def __call__(
        self, teacher_logp: Float[Tensor, "*batch v"], student_logp: Float[Tensor, "*batch v"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """(..., V) to (..., k + 1) with the bucket last, or (..., k); nats. Gradient flows through the student's."""
        if self.k >= teacher_logp.shape[-1]:
            return teacher_logp, student_logp
        leader = teacher_logp if self.support == "teacher" else student_logp
        ids = leader.detach().topk(self.k, -1).indices
        return self._cut(teacher_logp, ids), self._cut(student_logp, ids)

    def _cut(self, logp: Tensor, ids: Tensor) -> Tensor:
        logp = logp.clamp(min=LOG_FLOOR)  # an all -inf bucket has no gradient, not a NaN one
        head = logp.gather(-1, ids)
        if not self.tail:
            return head.log_softmax(-1)
        # Summed over the others, not 1 - sum(head): a small tail would be rounding.
        chosen = torch.zeros_like(logp, dtype=torch.bool).scatter_(-1, ids, True)
        rest = logp.masked_fill(chosen, LOG_FLOOR).logsumexp(-1, keepdim=True)
        return torch.cat((head, rest), -1)
