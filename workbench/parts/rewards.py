"""Outcome rewards and a teacher in one advantage: A_t made of the rollout's own and of d_t = log p_T - log p_S.

The common form is min(rho A_t, clip(rho) A_t) with `PolicyGradient(correction="clipped")`; what the methods of this
family differ in is A_t (here) and what rho is taken against (`PolicyGradient.teacher_weight`). d_t is read at the
weights the step starts from. "Right" and "wrong" are verdicts: a rollout that nobody judged is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from workbench.errors import RecipeError
from workbench.parts.plans import PlanBase, Reading, Sets
from workbench.parts.schedules import Scalar


@dataclass(frozen=True)
class RewardAndTeacher(PlanBase):
    """A_t = reward [on] A + teacher [on] d_t: the sum of both, each on the rollouts it is for.

    `teacher_on` "wrong" is for wrong rollouts, "hopeless" for groups in which all that was judged was wrong.
    KDRL (arXiv:2506.02208): A + beta d. Masked: A + (1 - c) beta d. SRPO (arXiv:2604.02288): c A + (1 - c) d. HDPO
    (arXiv:2603.23871): A + C beta d. Distillation, then rewards: both weights as schedules. c: right; C: hopeless.
    """

    reward: Scalar = 1.0
    teacher: Scalar = 1.0
    reward_on: Literal["all", "right"] = "all"
    teacher_on: Literal["all", "wrong", "hopeless"] = "all"
    sets: ClassVar[frozenset[Sets]] = frozenset({"advantage"})

    def __call__(self, step: Sequence[Reading]) -> list[Reading]:
        """Token by token; a group is what the step holds of a problem."""
        assert isinstance(self.reward, (int, float)), "Recipe.at has replaced schedules by numbers"
        assert isinstance(self.teacher, (int, float)), "Recipe.at has replaced schedules by numbers"
        scores: dict[str, list[float]] = {}
        for reading in step:
            if (score := reading.judged.verdict.score) is not None:
                scores.setdefault(reading.judged.rollout.problem.id, []).append(score)
        out = []
        for reading in step:
            verdict, group = reading.judged.verdict, scores.get(reading.judged.rollout.problem.id, [])
            rewarded = {"all": True, "right": verdict.correct}[self.reward_on]
            hopeless = bool(group) and max(group) == 0.0
            taught = {"all": True, "wrong": verdict.score == 0.0, "hopeless": hopeless}[self.teacher_on]
            own = self.reward * rewarded * reading.advantage
            out.append(replace(reading, advantage=own + self.teacher * taught * reading.log_ratio))
        return out


@dataclass(frozen=True)
class SizedByTeacher(PlanBase):
    """A_t = A ((1 - share) + share clip(exp(sign(A) d_t), 1 - clip, 1 + clip)). RLSD (arXiv:2604.03128).

    The reward gives the sign, the teacher the size: what a privileged teacher finds likelier counts more where the
    rollout was right and less where it was wrong, and nothing can turn around.
    """

    share: Scalar = 0.5
    clip: float = 0.2
    sets: ClassVar[frozenset[Sets]] = frozenset({"advantage"})

    def __post_init__(self) -> None:
        """Refuse what could turn a reward around. Raises RecipeError."""
        if not 0.0 <= self.clip < 1.0:
            raise RecipeError(f"SizedByTeacher(clip={self.clip}) could turn a reward around. Use a clip in [0, 1).")

    def one(self, reading: Reading) -> Reading:
        """Token by token."""
        assert isinstance(self.share, (int, float)), "Recipe.at has replaced schedules by numbers"
        size = torch.exp(reading.advantage.sign() * reading.log_ratio).clamp(1.0 - self.clip, 1.0 + self.clip)
        return replace(reading, advantage=reading.advantage * ((1.0 - self.share) + self.share * size))
