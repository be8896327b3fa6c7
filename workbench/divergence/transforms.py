"""Maps a pair of distributions to another pair; knows nothing of the divergence that follows.

A transform is a frozen dataclass `(teacher_logp, student_logp) -> (teacher_logp, student_logp)`, last axis the entries.
They act on whole distributions, so they belong to the generic path, the reference and the inspector; the fused loop
has temperature in its heads. Both results sum to one, unless `sums_to_one` says otherwise. Those that move the target
towards the student are in `targets.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.divergence.pair import LOG_FLOOR
from workbench.errors import UsageError


class Transform(ABC):
    """What every transform is."""

    @abstractmethod
    def __call__(self, teacher_logp: Tensor, student_logp: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised log-probs in, log-probs out; no gradient reaches the teacher's."""

    @property
    def gain(self) -> float:
        """What a divergence of the result is multiplied by."""
        return 1.0

    @property
    def sums_to_one(self) -> tuple[bool, bool]:
        """Whether the teacher's and the student's result are whole distributions."""
        return True, True


@dataclass(frozen=True)
class Temperature(Transform):
    """Both distributions at another temperature: log_softmax(log p / value). 1 is the identity.

    `squared`: the value is multiplied by value^2, as Hinton (1503.02531) has it, so that gradients keep their size: of
    ForwardKL it is value (p_S - p_T). value^2 KL tends to (1/2V) sum_v (z_T - z_S)^2, both logits centred, as value
    grows. Without it (ToDi, DistiLLM) gradients shrink like 1/value^2. UsageError unless value > 0.
    """

    value: float = 1.0
    squared: bool = False

    def __post_init__(self) -> None:
        """Refuse what divides by nothing. Raises UsageError (a ValueError)."""
        if isinstance(self.value, int | float) and not self.value > 0:
            raise UsageError(
                f"Temperature({self.value}) divides logits by {self.value}. It must be > 0. 1 changes nothing."
            )

    @property
    def gain(self) -> float:
        """value^2 if squared."""
        return float(self.value) ** 2 if self.squared else 1.0

    def __call__(
        self, teacher_logp: Float[Tensor, "*batch v"], student_logp: Float[Tensor, "*batch v"]
    ) -> tuple[Float[Tensor, "*batch v"], Float[Tensor, "*batch v"]]:
        """(..., V) to (..., V), nats."""
        if self.value == 1.0:
            return teacher_logp, student_logp
        return (teacher_logp / self.value).log_softmax(-1), (student_logp / self.value).log_softmax(-1)


Rest = Literal["bucket", "renormalised", "unnormalised", "teacher_renormalised"]
"""What becomes of the mass outside the K entries."""


@dataclass(frozen=True)
class TopK(Transform):
    """The k likeliest entries of the `support`'s role, for both; `rest` says what becomes of the others.

    - "bucket": one more entry with their mass. An f-divergence never grows (data processing), and what it misses lies
      inside the bucket.
    - "renormalised": left out, and each role renormalised over the support: OPSD's top_k_loss, LSM (2603.25562). Mass
      outside is not seen at all; k = 1 is zero whatever the student does, and refused.
    - "unnormalised": left out, and nothing else. What follows is no divergence and *may be negative*; training with it
      collapsed in 2603.25562.
    - "teacher_renormalised": the teacher renormalised, the student not: EOPD (2603.07079). With ForwardKL it exceeds
      "renormalised" by -log of the student's mass on the support, and so pulls mass there.

    "union" takes the k of either role: 2k entries, those named twice once with their mass and once without any.
    k >= V is the identity. UsageError for k < 1, and for k = 1 renormalised.
    """

    k: int
    support: Literal["teacher", "student", "union"] = "teacher"
    rest: Rest = "bucket"

    def __post_init__(self) -> None:
        """Refuse the empty and the degenerate. Raises UsageError (a ValueError)."""
        if isinstance(self.k, int) and self.k < (2 if self.rest == "renormalised" else 1):
            raise UsageError(
                f'TopK(k={self.k}, rest="{self.rest}") compares nothing. One entry renormalised is always 1.'
                ' Use k >= 2, or rest="bucket".'
            )

    @property
    def sums_to_one(self) -> tuple[bool, bool]:
        """As `rest` says."""
        return self.rest != "unnormalised", self.rest in ("bucket", "renormalised")

    def __call__(
        self, teacher_logp: Float[Tensor, "*batch v"], student_logp: Float[Tensor, "*batch v"]
    ) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch k"]]:
        """(..., V) to (..., entries), the bucket last; nats. Gradient flows through the student's."""
        if self.k >= teacher_logp.shape[-1]:
            return teacher_logp, student_logp
        ids, twice = self._chosen(teacher_logp.detach(), student_logp.detach())
        teacher = self._cut(teacher_logp, ids, twice, renormalise=self.rest != "unnormalised")
        return teacher, self._cut(student_logp, ids, twice, renormalise=self.rest == "renormalised")

    def _chosen(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
        """Which entries are kept, and which of those are there already."""
        if self.support != "union":
            ids = (teacher if self.support == "teacher" else student).topk(self.k, -1).indices
            return ids, torch.zeros_like(ids, dtype=torch.bool)
        first, second = (logp.topk(self.k, -1).indices for logp in (teacher, student))
        known = torch.zeros_like(teacher, dtype=torch.bool).scatter_(-1, first, True).gather(-1, second)
        return torch.cat((first, second), -1), torch.cat((torch.zeros_like(known), known), -1)

    def _cut(self, logp: Tensor, ids: Tensor, twice: Tensor, renormalise: bool) -> Tensor:
        logp = logp.clamp(min=LOG_FLOOR)  # an all -inf bucket has no gradient, not a NaN one
        head = logp.gather(-1, ids).masked_fill(twice, LOG_FLOOR)
        if self.rest != "bucket":
            return head.log_softmax(-1) if renormalise else head
        # Summed over the others, not 1 - sum(head): a small tail would be rounding.
        chosen = torch.zeros_like(logp, dtype=torch.bool).scatter_(-1, ids, True)
        rest = logp.masked_fill(chosen, LOG_FLOOR).logsumexp(-1, keepdim=True)
        return torch.cat((head, rest), -1)
