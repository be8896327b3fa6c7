"""Transforms that put a distribution between teacher and student in the place of one of them.

What stands in for the teacher is a constant to the gradient, also where it is made of the student.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.divergence.pair import LOG_FLOOR
from workbench.divergence.transforms import Transform
from workbench.errors import UsageError


@dataclass(frozen=True)
class TowardsTeacher(Transform):
    """The teacher at (1 - share) sg[z_S] + share z_T, interpolated in *logits*. TAID (2501.16937), share = t there.

    1 is the identity; 0 compares the student with itself. TAID's loss is a cross-entropy: ForwardKL has its gradient
    p_S - p_share, and a value that can be compared over time. (A survey mixes probabilities; that is `AlphaMixture`
    with power 1.) UsageError outside [0, 1].
    """

    share: float = 0.4

    def __post_init__(self) -> None:
        """Refuse what lies beyond either. Raises UsageError (a ValueError)."""
        _in_unit(self, "share", self.share)

    def __call__(
        self, teacher_logp: Float[Tensor, "*batch v"], student_logp: Float[Tensor, "*batch v"]
    ) -> tuple[Float[Tensor, "*batch v"], Float[Tensor, "*batch v"]]:
        """(..., V) to (..., V), nats."""
        if self.share == 1.0:
            return teacher_logp, student_logp
        teacher, student = _constant(teacher_logp), _constant(student_logp)
        return (student * (1.0 - self.share) + teacher * self.share).log_softmax(-1), student_logp


@dataclass(frozen=True)
class GeometricBridge(Transform):
    """The teacher at log Q = log p_T + student_weight sg[log p_S] - logsumexp. Veto (2601.07155), beta there.

    0 is the identity. With ReverseKL the gradient is that of E_S[-log p_T] - (1 - student_weight) H(p_S): below 1 it
    comes to rest at p_T^(1 / (1 - student_weight)), sharper than the teacher; at 1 no entropy is left. It is a product,
    not a convex mixture. UsageError for a negative weight.
    """

    student_weight: float = 0.8

    def __post_init__(self) -> None:
        """Refuse a bridge away from the student. Raises UsageError (a ValueError)."""
        if isinstance(self.student_weight, int | float) and not self.student_weight >= 0.0:
            raise UsageError(
                f"GeometricBridge(student_weight={self.student_weight}) must be >= 0. It multiplies the student's"
                " log-probs. 0 changes nothing."
            )

    def __call__(
        self, teacher_logp: Float[Tensor, "*batch v"], student_logp: Float[Tensor, "*batch v"]
    ) -> tuple[Float[Tensor, "*batch v"], Float[Tensor, "*batch v"]]:
        """(..., V) to (..., V), nats."""
        if self.student_weight == 0.0:
            return teacher_logp, student_logp
        teacher, student = _constant(teacher_logp), _constant(student_logp)
        return (teacher + student * self.student_weight).log_softmax(-1), student_logp


@dataclass(frozen=True)
class AlphaMixture(Transform):
    """R = [w p_T^e + (1 - w) p_S^e]^(1/e), normalised, in the place of one role. AMiD (2510.15982).

    w = `teacher_weight` (lambda there), e = `power` = (1 - alpha) / 2: 1 mixes probabilities (DistiLLM, GKD), 0 logits
    (TAID), -1 is harmonic; AMiD's script has alpha 1/2, w 1/2. In the place of the student ("pr", "rp" there: compare
    p_T with R) the gradient runs through R; in the place of the teacher ("rq", "qr": compare R with p_S) R is a
    constant, where AMiD lets the gradient through that too. UsageError for w outside [0, 1] or where a role would be
    compared with itself.
    """

    teacher_weight: float = 0.5
    power: float = 0.25
    replaces: Literal["student", "teacher"] = "student"

    def __post_init__(self) -> None:
        """Refuse no mixture, and what compares a role with itself. Raises UsageError (a ValueError)."""
        _in_unit(self, "teacher_weight", self.teacher_weight)
        if self.teacher_weight == self._itself:
            raise UsageError(
                f"{self} compares the {'teacher' if self._itself else 'student'} with itself. That is zero whatever the"
                f" student does. {'Lower' if self._itself else 'Raise'} teacher_weight."
            )

    @property
    def _itself(self) -> float:
        """The weight at which nothing is left to compare; its opposite is the identity."""
        return 1.0 if self.replaces == "student" else 0.0

    def __call__(
        self, teacher_logp: Float[Tensor, "*batch v"], student_logp: Float[Tensor, "*batch v"]
    ) -> tuple[Float[Tensor, "*batch v"], Float[Tensor, "*batch v"]]:
        """(..., V) to (..., V), nats."""
        if self.teacher_weight == 1.0 - self._itself:
            return teacher_logp, student_logp
        teacher = _constant(teacher_logp)
        if self.replaces == "teacher":
            return self._mixture(teacher, _constant(student_logp)), student_logp
        return teacher_logp, self._mixture(teacher, student_logp.clamp(min=LOG_FLOOR))

    def _mixture(self, teacher: Tensor, student: Tensor) -> Tensor:
        w, e = self.teacher_weight, self.power
        if e == 0.0:
            return (teacher * w + student * (1.0 - w)).log_softmax(-1)
        raised = torch.logaddexp(teacher * e + math.log(w), student * e + math.log1p(-w))
        return (raised / e).log_softmax(-1)


def _constant(logp: Tensor) -> Tensor:
    """Without gradient and without infinities, whose differences are no numbers."""
    return logp.detach().clamp(min=LOG_FLOOR)


def _in_unit(transform: Transform, name: str, value: float) -> None:
    if isinstance(value, int | float) and not 0.0 <= value <= 1.0:
        raise UsageError(
            f"{type(transform).__name__}({name}={value}) must be in [0, 1]. It is the teacher's part of a mixture."
            " 1 is the teacher, 0 the student."
        )
