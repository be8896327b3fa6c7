"""What each recipe with an external teacher computes, through its own terms and plans: the cards' numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from verifiers import Verdict
from workbench.divergence import Jeffreys, ReverseKL
from workbench.parts.measures import Hellinger, Overlap, RankOfFavourite
from workbench.parts.plans import Reading
from workbench.parts.refresh import EXTERNAL
from workbench.parts.schedules import Clock
from workbench.recipes import ALL
from workbench.recipes.on_policy import RECIPES as ON_POLICY
from workbench.recipes.white_box import RECIPES as WHITE_BOX
from workbench.records import Judged, Problem, Rollout, Tokens, TokenStats

START = Clock(0, 10_000)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


P, Q = row(0.7, 0.2, 0.1), row(0.3, 0.4, 0.3)
"""F3, the fixture of the cards; both logits shifted, which must not matter."""


def term_of(name: str, index: int = 0, **changes):
    now = ALL[name].at(START)
    return replace(now.terms[index], **changes) if changes else now.terms[index]


def value_and_gradient(term, p=P, q=Q, written: int = 0, advantage: float = 0.0):
    logits = (q.log() - 3.0)[None].requires_grad_()
    logp, teacher = logits.log_softmax(-1), (p.log() + 5.0)[None].log_softmax(-1)
    ids = torch.tensor([written])
    known = (x.detach()[:, written] for x in (logp, teacher))
    student_logp, teacher_logp = known
    entropy = [-(x.exp() * x).sum(-1).detach() for x in (logp, teacher)]
    stats = TokenStats(ids, ids * 0, student_logp, teacher_logp, student_logp, row(advantage), *entropy)
    value = term(Tokens(stats, logp, teacher))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return float(value.detach()), gradient[0].tolist(), stats


FORWARD, REVERSE = (-0.4, 0.2, 0.2), (-0.3599853183, 0.1361975919, 0.2237877264)


@pytest.mark.parametrize(
    ("name", "index", "value", "gradient"),
    [
        ("kd", 0, 0.3717362550, None),  # tau 2, with its square
        ("word_kd", 0, 0.3446178373, FORWARD),
        ("rkl_kd", 0, 0.3526532007, REVERSE),
        ("gkd", 0, 0.0307157710, None),
        ("f_distill", 0, 0.4, None),
        ("minillm", 0, 0.3526532007, REVERSE),
        ("distillm", 0, 0.2741615833, (-0.3033469704, 0.1472401593, 0.1561068111)),
        ("distillm2", 0, 0.2741615833, (-0.3033469704, 0.1472401593, 0.1561068111)),
        ("distillm2", 1, 0.2774848118, (-0.3197826516, 0.1281408755, 0.1916417760)),
        ("csd", 0, 0.3226378566, REVERSE),
        ("veto", 0, 0.2981773657, (-0.3655531837, 0.1606322100, 0.2049209738)),
        ("taid", 0, 0.0574401913, (-0.1588919122, 0.0695951394, 0.0892967728)),
        ("adakd", 0, 0.3526532007, REVERSE),
        ("selectkd", 0, 0.3446178373, FORWARD),
        ("topk_kd", 0, 0.3446178373, FORWARD),  # V = 3 < K: nothing is cut
        ("lsm", 0, 0.3526532007, REVERSE),
        ("paced", 0, 0.3446178373, FORWARD),
        ("paced", 1, 0.3526532007, REVERSE),
        ("eopd", 1, 0.3446178373, FORWARD),  # k = V
    ],
)
def test_terms_on_the_shared_fixture(name: str, index: int, value: float, gradient) -> None:
    found, slope, _ = value_and_gradient(term_of(name, index, coef=1.0))
    assert found == pytest.approx(value, abs=1e-9)
    if gradient is not None:
        assert slope == pytest.approx(gradient, abs=1e-9)


def test_todi_shows_jeffreys_and_pulls_otherwise() -> None:
    term = replace(term_of("todi"), coef=1.0, transforms=())  # its temperature is 2
    found, slope, _ = value_and_gradient(term)
    assert found == pytest.approx(0.6972710380, abs=1e-9)
    assert found == pytest.approx(float(Jeffreys()(P.log(), Q.log())), abs=1e-12)
    assert slope == pytest.approx((-0.5829878691, 0.2425311659, 0.3404567032), abs=1e-9)
    assert [t.value for t in ALL["todi"].terms[0].transforms] == [2.0]
    assert ALL["todi"].terms[0].transforms[0].gain == 1.0, "no tau squared"


def test_akl_has_the_official_head() -> None:
    p, q = row(0.4, 0.3, 0.2, 0.1), row(0.25, 0.1, 0.3, 0.35)
    assert value_and_gradient(term_of("akl"), p, q)[0] == pytest.approx(0.3281311605, abs=1e-9)
    for order in ((3, 2, 1, 0), (1, 3, 0, 2)):
        p, q = row(0.5, 0.2, 0.2, 0.1)[list(order)], row(0.1, 0.5, 0.2, 0.2)[list(order)]
        assert value_and_gradient(term_of("akl"), p, q)[0] == pytest.approx(0.4939885513, abs=1e-9)


def test_distillm2_adds_both_sides() -> None:
    first = value_and_gradient(term_of("distillm2", 0))[0]
    second = value_and_gradient(term_of("distillm2", 1), row(0.2, 0.3, 0.5), row(0.6, 0.3, 0.1))[0]
    assert first + second == pytest.approx(0.6713303920, abs=1e-9)


def test_the_gate_of_entropy_aware_distillation() -> None:
    """H(p) = 0.8018 nats: on at 0.8, off at 0.81; k = 2 of 3 with the student not renormalised."""
    term = term_of("eopd", 1)
    _, _, stats = value_and_gradient(term)
    assert term.token_weight(stats).tolist() == [1.0]
    assert replace(term.token_weight, threshold=0.81)(stats).tolist() == [0.0]
    two = replace(term, transforms=(replace(term.transforms[0], k=2),))
    assert value_and_gradient(two)[0] == pytest.approx(0.6103372558, abs=1e-9)
    assert [type(t).__name__ for t in ALL["eopd"].terms] == ["PolicyGradient", "Distill"], "added, not mixed"


def test_lsm_on_two_of_three() -> None:
    term = term_of("lsm")
    for k, value in ((3, 0.3526532007), (2, 0.2842708770)):
        cut = replace(term, transforms=(replace(term.transforms[0], k=k),))
        assert value_and_gradient(cut)[0] == pytest.approx(value, abs=1e-9)


def reading(student, teacher, **more) -> Reading:
    rollout = Rollout(Problem("p", "?"), "student", tuple(range(len(student))), "", tuple(student.tolist()), "stop")
    flat = torch.ones(len(student), dtype=torch.float64)
    return Reading(Judged(rollout, Verdict("correct")), student, teacher, 0 * flat, flat, **more)


def planned(name: str, one: Reading) -> Reading:
    step = [one]
    for plan in ALL[name].at(START).plans:
        step = plan(step)
    return step[0]


def test_advantages_of_the_on_policy_methods() -> None:
    three = reading(Q.log(), P.log(), reference_logp=row(0.2, 0.5, 0.3).log())
    own = (0.8472978604, -0.6931471806, -1.0986122887)
    for name in ("opd", "g_opd", "fast_opd", "eopd"):
        assert planned(name, three).advantage.tolist() == pytest.approx(own, abs=1e-9), name
    beyond = planned("exopd", three).advantage.tolist()
    assert beyond == pytest.approx((1.1604886025, -0.9222198635, -1.3732653608), abs=1e-9)
    weighted = planned("iw_opd", three)
    size = torch.tensor(own, dtype=torch.float64).abs()
    assert weighted.advantage.tolist() == pytest.approx(own, abs=1e-9)
    assert weighted.weight.tolist() == pytest.approx((1.5 - 0.5 * size.cumsum(0) / size.sum()).tolist(), abs=1e-9)


def test_minillm_takes_the_paper_s_return() -> None:
    s3 = reading(row(0.3, 0.4, 0.25).log(), row(0.7, 0.1, 0.5).log())
    (plan,) = ALL["minillm"].plans
    assert plan.returns(s3.log_ratio).tolist() == pytest.approx((-0.3465735903, 0.6931471806, 0.0), abs=1e-9)
    assert ALL["minillm"].rollouts.teacher_share == 0.2


def test_adakd_on_two_tokens() -> None:
    """The card's loss: mean of T^2 KL(q_T || p_T), temperatures from the Hellinger distances of the two."""
    p, q = (row(0.7, 0.2, 0.1), row(0.4, 0.35, 0.25)), (row(0.3, 0.4, 0.3), row(0.5, 0.3, 0.2))
    distance = [(0.5 * (a.sqrt() - b.sqrt()).square().sum()).sqrt() for a, b in zip(p, q, strict=True)]
    two = reading(row(0.0, 0.0), row(0.0, 0.0), measured={Hellinger(): torch.stack(distance)})
    after = planned("adakd", two)
    assert after.temperature.tolist() == pytest.approx((0.6418587944, 1.0), abs=1e-9)
    losses = [
        ReverseKL()((a.log() / t).log_softmax(-1), (b.log() / t).log_softmax(-1))
        for a, b, t in zip(p, q, after.temperature, strict=True)
    ]
    assert float((after.weight * torch.stack(losses)).mean()) == pytest.approx(0.1765636412, abs=1e-9)


def test_selectkd_keeps_what_the_teacher_s_five_hold() -> None:
    one = reading(row(0.0, 0.0), row(0.0, 0.0), measured={RankOfFavourite(): row(4.0, 5.0), Overlap(): row(1.0, 0.0)})
    assert planned("selectkd", one).weight.tolist() == [1.0, 0.01]
    assert ALL["selectkd"].reduction == "sequence", "divided by the length, not by what was accepted"


def test_defaults_are_the_originals() -> None:
    expected = {
        "kd": {"batch": 32},
        "gkd": {"reduction": "sequence"},
        "distillm2": {"reduction": "sequence", "adapter": "lora:r=16,alpha=128"},
        "csd": {"batch": 8},
        "opd": {"reduction": "sum", "adapter": "lora:r=128,alpha=32"},
        "g_opd": {"batch": 1024, "reduction": "token"},
        "eopd": {"batch": 128, "reduction": "sequence"},
        "lsm": {"reduction": "token"},
    }
    for name, fields in expected.items():
        assert {k: getattr(ALL[name], k) for k in fields} == fields, name
    rates = {"minillm": 5e-6, "veto": 1e-5, "csd": 1e-4, "adakd": 5e-4, "taid": 1e-4, "lsm": 2e-6, "g_opd": 1e-5}
    assert {name: ALL[name].optimizer.lr for name in rates} == rates
    assert ALL["distillm"].optimizer.lr(Clock(0, 10)) == 5e-4
    assert ALL["gkd"].rollouts.student == 0.5
    assert ALL["gkd"].rollouts.per == "batch"
    assert ALL["veto"].terms[0].transforms[0].student_weight(Clock(0, 9)) == 0.8
    assert ALL["distillm2"].sampling.temperature == 0.8


@pytest.mark.parametrize("recipe", [*WHITE_BOX, *ON_POLICY], ids=lambda r: r.name)
def test_each_is_taught_by_another_model_on_plain_prompts(recipe) -> None:
    assert recipe.refresh == EXTERNAL
    assert recipe.student == recipe.teacher, "what is taught is what the model knows, not what it was shown"
    assert "given by --teacher" in recipe.describe()
