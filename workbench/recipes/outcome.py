"""Verdicts as rewards, alone and together with a teacher: GRPO and its two corrections, then one surrogate for all.

`grpo`, `dr_grpo` and `dapo` are what TRL 1.16 computes under these names. One optimizer step a batch of rollouts:
the ratio to the sampler is 1 but for rounding and no clip binds unless rollouts are older than the weights.
The mixed methods share min(rho A_t, clip(rho) A_t) and differ in A_t and rho (Table 1 of the opd-rlvr paper,
StringNLPLAB), where another model teaches.
"""

from __future__ import annotations

from dataclasses import replace

from workbench.parts.advantages import GroupCentred, group_centred
from workbench.parts.contexts import question_boxed, with_solution
from workbench.parts.gates import TeacherReliable
from workbench.parts.plans import LogRatio
from workbench.parts.refresh import EXTERNAL, FROZEN
from workbench.parts.rewards import RewardAndTeacher, SizedByTeacher
from workbench.parts.schedules import Linear, Piecewise
from workbench.parts.terms import PolicyGradient
from workbench.parts.writers import ByTeacher, OnPolicy, Together
from workbench.recipe import Optimizer, Recipe
from workbench.records import Sampling

GRPO = Recipe(
    name="grpo",
    paper="arXiv:2402.03300, as TRL 1.16",
    student=question_boxed,
    rollouts=OnPolicy(per_problem=8),
    advantage=GroupCentred(normalised=True),
    terms=(PolicyGradient(correction="clipped", clip=0.2),),
    reduction="sequence",
    sampling=Sampling(max_new_tokens=512),
    optimizer=Optimizer(lr=1e-6),
)
# No division by the group's spread and none by a completion's own length: both favour some problems over others.
DR_GRPO = replace(
    GRPO, name="dr_grpo", paper="arXiv:2503.20783, as TRL 1.16", advantage=group_centred, reduction="limit"
)
# Tokens count alike and the clip is higher above. The paper's dynamic sampling and overlong reward are not in it, and a
# completion that was cut is judged like any other: as in TRL. Set gates=(Mixed(),) and advantage=SoftOverlong(limit,
# cache) for them; groups that say nothing are then left out, but not drawn anew.
DAPO = replace(
    GRPO,
    name="dapo",
    paper="arXiv:2503.14476, as TRL 1.16",
    terms=(PolicyGradient(correction="clipped", clip=0.2, clip_above=0.28),),
    reduction="token",
)

KDRL = replace(
    GRPO,
    name="kdrl",
    paper="arXiv:2506.02208",
    teacher=question_boxed,
    refresh=EXTERNAL,
    # The paper's annealed weight, its best; the comparison that the others come from found 0.2 to 0.002.
    plans=(RewardAndTeacher(teacher=Linear(5e-3, 1e-3)),),
)
# beta is tuned a task there and not published: KDRL's stands in for it in the next two.
KDRL_MASK = replace(
    KDRL,
    name="kdrl_mask",
    paper="opd-rlvr, Table 1",
    plans=(RewardAndTeacher(teacher=Linear(5e-3, 1e-3), teacher_on="wrong"),),
)
HDPO = replace(
    KDRL,
    name="hdpo",
    paper="arXiv:2603.23871, as opd-rlvr",
    plans=(RewardAndTeacher(teacher=Linear(5e-3, 1e-3), teacher_on="hopeless"),),
)
SRPO = replace(
    KDRL,
    name="srpo",
    paper="arXiv:2604.02288, as opd-rlvr",
    plans=(RewardAndTeacher(reward_on="right", teacher_on="wrong"),),
)
OPD_THEN_RL = replace(
    KDRL,
    name="opd_then_rl",
    paper="opd-rlvr, Table 1",
    plans=(RewardAndTeacher(reward=Piecewise((0.0, 1.0), (60,)), teacher=Piecewise((1.0, 0.0), (60,))),),
)
TRRD = replace(
    KDRL,
    name="trrd",
    paper="arXiv:2602.22495 (RLAD)",
    plans=(),
    # How much of the ratio is taken against the teacher is not published; half is ours, 0 is GRPO.
    terms=(PolicyGradient(correction="clipped", clip=0.2, teacher_weight=0.5),),
)
# The student with the solution in view, not another model. Released code keeps the share or lets it fall to 0 in 50
# steps; whose weights teach is not published: the initial ones here.
RLSD = replace(
    GRPO,
    name="rlsd",
    paper="arXiv:2604.03128",
    teacher=with_solution,
    refresh=FROZEN,
    plans=(SizedByTeacher(share=0.5, clip=0.2),),
)
# Blocking alone, nine tenths of the paper's gain: a closed group learns nothing where the paper falls back on rewards.
TGOPD = replace(
    KDRL,
    name="tgopd",
    paper="arXiv:2609.02998, without its fallback",
    rollouts=Together((ByTeacher(per_problem=3), OnPolicy(per_problem=4))),
    gates=(TeacherReliable(),),
    plans=(LogRatio(),),
    reduction="token",
    sampling=Sampling(max_new_tokens=16384),
)

RECIPES = (GRPO, DR_GRPO, DAPO, KDRL, KDRL_MASK, SRPO, HDPO, TRRD, RLSD, OPD_THEN_RL, TGOPD)
