"""Another model teaches what the student itself wrote: distillation by sampled tokens, and what grew from it."""

from __future__ import annotations

import math
from dataclasses import replace

from workbench.divergence import ForwardKL, ReverseKL, TopK
from workbench.parts.contexts import question_boxed
from workbench.parts.curricula import BetaKernel
from workbench.parts.plans import LogRatio, ScaledLogRatio
from workbench.parts.refresh import EXTERNAL
from workbench.parts.schedules import Growing, Switch
from workbench.parts.selection import EarlyDisagreement, WithoutFirst
from workbench.parts.terms import Distill, PolicyGradient, by_dataset, by_student
from workbench.parts.weights import EntropyAbove
from workbench.parts.writers import FromDataset, OnPolicy, Staged
from workbench.recipe import Optimizer, Recipe
from workbench.records import Sampling

OPD = Recipe(
    name="opd",
    paper="Thinking Machines 2025, tinker-cookbook on-policy distillation",
    student=question_boxed,
    teacher=question_boxed,
    refresh=EXTERNAL,
    rollouts=OnPolicy(per_problem=4),
    plans=(LogRatio(),),
    terms=(PolicyGradient(correction="importance"),),
    # As released. AdamW takes a constant factor out again, but longer batches pull harder; "token" is the mean.
    reduction="sum",
    sampling=Sampling(max_new_tokens=4096),
    optimizer=Optimizer(lr=1e-4, max_grad_norm=math.inf),  # a sum would always be clipped
    batch=1024,  # groups of four, as released
    adapter="lora:r=128,alpha=32",
)
G_OPD = replace(
    OPD,
    name="g_opd",
    paper="arXiv:2602.12125",
    rollouts=OnPolicy(),
    plans=(ScaledLogRatio(scale=1.0),),
    # Sampler and learner differ on a served rollout; their ratio is cut at 5 as in the released code.
    terms=(PolicyGradient(correction="importance", ceiling=5.0),),
    reduction="token",
    sampling=Sampling(max_new_tokens=16384),
    optimizer=Optimizer(lr=1e-5),
    batch=1024,
    adapter=None,
)
EXOPD = replace(G_OPD, name="exopd", plans=(ScaledLogRatio(scale=1.25),))
IW_OPD = replace(
    OPD,
    name="iw_opd",
    paper="IW-OPD as in TRL 1.16",
    rollouts=OnPolicy(),
    plans=(LogRatio(), EarlyDisagreement(strength=0.5)),
    terms=(PolicyGradient(),),
    reduction="token",
    sampling=Sampling(max_new_tokens=512, top_p=0.95),
    optimizer=Optimizer(lr=1e-6),
    batch=32,
    adapter=None,
)
FAST_OPD = replace(
    OPD,
    name="fast_opd",
    paper="arXiv:2602.15260",
    # Rollouts stop at the horizon, which grows by 256 tokens a step (a secondary source says so).
    rollouts=OnPolicy(per_problem=4, horizon=Growing(start=256, increase=256, limit=4096)),
    reduction="token",
)
EOPD = replace(
    OPD,
    name="eopd",
    paper="arXiv:2603.07079",
    rollouts=OnPolicy(),
    terms=(
        PolicyGradient(correction="clipped", clip=0.2),
        # Added, not mixed, where the teacher is unsure; the survey prints a convex mixture.
        Distill(
            ForwardKL(), transforms=(TopK(16, rest="teacher_renormalised"),), token_weight=EntropyAbove(threshold=0.8)
        ),
    ),
    reduction="sequence",
    sampling=Sampling(max_new_tokens=8192),
    optimizer=Optimizer(lr=1e-6),
    batch=128,
    adapter=None,
)
LSM = replace(
    EOPD,
    name="lsm",
    paper="arXiv:2603.25562",
    plans=(WithoutFirst(),),
    terms=(Distill(ReverseKL(), transforms=(TopK(32, rest="renormalised"),)),),
    reduction="token",
    sampling=Sampling(max_new_tokens=16384, top_p=0.9),
    optimizer=Optimizer(lr=2e-6),
)
PACED = replace(
    EOPD,
    name="paced",
    paper="arXiv:2603.11178",
    curriculum=BetaKernel(success=1.0, failure=1.0, rollouts=8, stages=(0.0, 0.5)),
    rollouts=Staged((FromDataset(), OnPolicy()), second=Switch(at=0.5)),
    plans=(),
    terms=(
        Distill(ForwardKL(), where=by_dataset),
        Distill(ReverseKL(), where=by_student),
    ),
)

RECIPES = (OPD, G_OPD, EXOPD, IW_OPD, FAST_OPD, EOPD, LSM, PACED)
