"""Every recipe with another model as teacher is set as its paper or its released code sets it; what is not is said."""

from __future__ import annotations

import pytest

from tests.board import at_start
from workbench.divergence import (
    JSD,
    AdaptiveKL,
    ConcreteScore,
    ForwardKL,
    GeometricBridge,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    Temperature,
    ToDi,
    TopK,
    TotalVariation,
    TowardsTeacher,
)
from workbench.parts.adaptive import ShareByLoss, ShareByProgress, ThresholdByValidation
from workbench.parts.contexts import question_boxed
from workbench.parts.curricula import BetaKernel, Shuffled
from workbench.parts.plans import LogRatio, ReverseKLToGo, ScaledLogRatio
from workbench.parts.schedules import Clock, Cosine, Growing, Linear, Memory, Seen, Switch
from workbench.parts.selection import EarlyDisagreement, Hardest, TeacherAgrees, TemperatureByDifficulty, WithoutFirst
from workbench.parts.terms import CrossEntropy, Distill, PolicyGradient, by_dataset, by_student, by_teacher
from workbench.parts.weights import EntropyAbove
from workbench.parts.writers import AdaptiveOffPolicy, ByTeacher, FromDataset, Mixture, OnPolicy, Staged, TokenMixture
from workbench.recipes import ALL, on_policy, white_box

EXTERNAL = sorted(recipe.name for recipe in (*white_box.RECIPES, *on_policy.RECIPES))
"""Those that mix in rewards are in `test_outcome.py`."""

TERMS = {
    "kd": (Distill(ForwardKL(), coef=0.5, transforms=(Temperature(2.0, squared=True),)), CrossEntropy(coef=0.5)),
    "word_kd": (Distill(ForwardKL()),),
    "seqkd": (CrossEntropy(where=by_teacher),),
    "rkl_kd": (Distill(ReverseKL()),),
    "gkd": (Distill(JSD(teacher_weight=0.1)),),
    "f_distill": (Distill(TotalVariation()),),
    "minillm": (Distill(ReverseKL(), where=by_student), PolicyGradient(correction="clipped", clip=0.2)),
    "distillm": (Distill(SkewKL(teacher_weight=0.1)),),
    "distillm2": (
        Distill(SkewKL(teacher_weight=0.1), where=by_teacher),
        Distill(SkewReverseKL(teacher_weight=0.9, detached=True), where=by_student),
    ),
    "akl": (Distill(AdaptiveKL(head="crossing_is_tail")),),
    "todi": (Distill(ToDi(), coef=0.5, transforms=(Temperature(2.0, squared=False),)), CrossEntropy(coef=0.5)),
    "taid": (Distill(ForwardKL(), transforms=(TowardsTeacher(ShareByProgress(0.4, 1.0, 5e-4, 0.99)),)),),
    "veto": (Distill(ForwardKL(), transforms=(GeometricBridge(Linear(0.8, 0.0)),)),),
    "csd": (Distill(ConcreteScore(partner="student", temperature=1.0)),),
    "adakd": (Distill(ReverseKL()),),
    "selectkd": (Distill(ForwardKL()),),
    "topk_kd": (Distill(ForwardKL(), transforms=(TopK(64, rest="bucket"),)),),
    "opd": (PolicyGradient(correction="importance"),),
    "g_opd": (PolicyGradient(correction="importance", ceiling=5.0),),
    "exopd": (PolicyGradient(correction="importance", ceiling=5.0),),
    "iw_opd": (PolicyGradient(correction="none"),),
    "fast_opd": (PolicyGradient(correction="importance"),),
    "eopd": (
        PolicyGradient(correction="clipped", clip=0.2),
        Distill(
            ForwardKL(),
            transforms=(TopK(16, support="teacher", rest="teacher_renormalised"),),
            token_weight=EntropyAbove(threshold=0.8, of="teacher"),
        ),
    ),
    "lsm": (Distill(ReverseKL(), transforms=(TopK(32, support="teacher", rest="renormalised"),)),),
    "paced": (Distill(ForwardKL(), where=by_dataset), Distill(ReverseKL(), where=by_student)),
}

PLANS = {
    "minillm": (ReverseKLToGo(scale=1.0, clip=100.0, discount=1.0, own=False, whiten=True),),
    "adakd": (
        Hardest(ShareByLoss(tolerance=0.05, change=0.05, least=0.1, decay=0.99, warmup=0.05)),
        TemperatureByDifficulty(base=1.0, strength=0.5),
    ),
    "selectkd": (TeacherAgrees(by="top_k", k=5, rejected=0.01),),
    "opd": (LogRatio(future=0.0, clip=None),),
    "g_opd": (ScaledLogRatio(scale=1.0),),
    "exopd": (ScaledLogRatio(scale=1.25),),
    "iw_opd": (LogRatio(), EarlyDisagreement(strength=0.5)),
    "fast_opd": (LogRatio(),),
    "eopd": (LogRatio(),),
    "lsm": (WithoutFirst(texts=("<", "think", "<|im_end|>")),),
}

OFF_POLICY = dict.fromkeys(
    ("kd", "word_kd", "rkl_kd", "akl", "todi", "taid", "csd", "adakd", "selectkd", "topk_kd"), FromDataset()
)
WRITERS = OFF_POLICY | {
    "seqkd": ByTeacher(),
    "gkd": Mixture(student=0.5, dataset=0.5, per="batch"),
    "f_distill": Mixture(student=0.5, dataset=0.5),
    "minillm": TokenMixture(teacher_share=0.2),
    "distillm": AdaptiveOffPolicy(ThresholdByValidation(0.0, 0.1, 0.1), fresh=Linear(1.0, 0.0), remembers=1000),
    "veto": OnPolicy(),
    "opd": OnPolicy(per_problem=4),
    "g_opd": OnPolicy(),
    "exopd": OnPolicy(),
    "iw_opd": OnPolicy(),
    "fast_opd": OnPolicy(per_problem=4, horizon=Growing(256, 256, 4096)),
    "eopd": OnPolicy(),
    "lsm": OnPolicy(),
    "paced": Staged((FromDataset(), OnPolicy()), second=Switch(at=0.5)),
}
"""DistiLLM-2's two authors are in `test_two_authors`."""

RATES = {
    "minillm": 5e-6,
    "distillm": Cosine(5e-4, 0.0),
    "distillm2": Cosine(5e-5, 0.0),
    "todi": Cosine(5e-4, 0.0),
    "taid": 1e-4,
    "veto": 1e-5,
    "csd": 1e-4,
    "adakd": 5e-4,
    "opd": 1e-4,
    "g_opd": 1e-5,
    "exopd": 1e-5,
    "iw_opd": 1e-6,
    "lsm": 2e-6,
}
BATCHES = {"taid": 64, "csd": 8, "adakd": 32, "distillm2": 32, "opd": 1024, "g_opd": 1024, "eopd": 128, "lsm": 128}
ROOM = {"distillm2": 512, "veto": 512, "opd": 4096, "g_opd": 16384, "iw_opd": 512, "eopd": 8192, "lsm": 16384}
PER_SEQUENCE = {"gkd", "f_distill", "distillm2", "veto", "selectkd", "eopd", "paced"}
ADAPTERS = {"distillm2": "lora:r=16,alpha=128", "opd": "lora:r=128,alpha=32", "fast_opd": "lora:r=128,alpha=32"}


@pytest.mark.parametrize("name", EXTERNAL)
def test_as_published(name: str) -> None:
    recipe = ALL[name]
    assert recipe.terms == TERMS[name]
    assert recipe.plans == PLANS.get(name, ())
    assert recipe.rollouts == WRITERS.get(name, recipe.rollouts)
    assert recipe.optimizer.lr == RATES.get(name, recipe.optimizer.lr)
    assert recipe.batch == BATCHES.get(name, recipe.batch)
    assert recipe.sampling.max_new_tokens == ROOM.get(name, recipe.sampling.max_new_tokens)
    assert recipe.reduction == ("sum" if name == "opd" else "sequence" if name in PER_SEQUENCE else "token")
    assert recipe.adapter == ADAPTERS.get(name)
    assert recipe.student == recipe.teacher == question_boxed, "nothing is privileged: another model knows more"
    assert recipe.gates == ()
    assert recipe.token_weight is None
    assert recipe.curriculum == (
        BetaKernel(success=1.0, failure=1.0, rollouts=8, stages=(0.0, 0.5)) if name == "paced" else Shuffled()
    )


def test_two_authors() -> None:
    recipe = ALL["distillm2"]
    assert recipe.rollouts.writers == (ByTeacher(), OnPolicy())
    assert (recipe.sampling.temperature, recipe.sampling.top_p, recipe.temperature) == (0.8, 0.95, 1.0)


def test_the_rest_of_what_is_published() -> None:
    assert ALL["minillm"].optimizer.warmup_steps == 100
    assert ALL["lsm"].sampling.top_p == 0.9
    assert {ALL[name].optimizer.weight_decay for name in ("distillm", "todi")} == {0.01}
    temperatures = {name: ALL[name].temperature for name in EXTERNAL}
    assert (ALL["veto"].sampling.temperature, ALL["veto"].sampling.top_p) == (0.5, 0.5)
    assert set(temperatures.values()) == {1.0}, "a divergence compares at the temperature of the papers' softmaxes"


def test_schedules_of_the_catalogue_move_as_published() -> None:
    total = 10_000
    shares = [at_start(ALL["veto"], total, k).terms[0].transforms[0].student_weight for k in (0, total - 1)]
    assert shares == pytest.approx([0.8, 0.0])
    memory, taid = Memory(), ALL["taid"]
    shares = []
    for step, loss in enumerate((2.0, 1.8, 1.9, 1.5)):
        memory.observe(taid, Clock(step, total), Seen(loss=loss))
        shares.append(taid.at(Clock(step, total), memory).terms[0].transforms[0].share)
    assert shares == pytest.approx((0.4, 0.4001500750, 0.4003000701, 0.4004501851), abs=1e-9)
    memory, adakd = Memory(), ALL["adakd"]
    for step in range(600):
        memory.observe(adakd, Clock(step, total), Seen(loss=2.0 if step < 500 else 0.5))
        share = adakd.at(Clock(step, total), memory).plans[0].share
        assert share == 1.0 if step < 500 else share <= 1.0
    assert share < 1.0, "after 5 % of the run a loss that falls shrinks the share"
    assert [at_start(ALL["paced"], 10, k).rollouts.second for k in (4, 5)] == [0.0, 1.0]
    assert [k for k in range(10) if ALL["paced"].curriculum.surveys(Clock(k, 10))] == [0, 5]
