"""Laws every transform obeys, each one function over `TRANSFORMS`; then known answers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import workbench.divergence
from workbench.divergence import (
    ALL,
    TRANSFORMS,
    AlphaMixture,
    Divergence,
    ForwardKL,
    GeometricBridge,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    Temperature,
    TopK,
    TowardsTeacher,
    Transform,
)
from workbench.errors import UsageError
from workbench.parts.terms import Distill
from workbench.records import Tokens, TokenStats

IDENTITIES = (
    Temperature(1.0),
    Temperature(1.0, squared=True),
    TopK(50),
    TopK(2**31),
    TopK(50, support="student", rest="renormalised"),
    TopK(9, support="union", rest="unnormalised"),
    TopK(50, rest="teacher_renormalised"),
    TowardsTeacher(1.0),
    GeometricBridge(0.0),
    AlphaMixture(0.0),
    AlphaMixture(1.0, replaces="teacher"),
)

every = pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
laws = settings(max_examples=25, deadline=None, derandomize=True)
F3 = tuple(torch.tensor(p, dtype=torch.float64).log() for p in ((0.7, 0.2, 0.1), (0.3, 0.4, 0.3)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    size = draw(st.integers(4, 9))
    vector = st.lists(st.floats(-12, 12, width=32), min_size=size, max_size=size)
    teacher, student = (torch.tensor([draw(vector)], dtype=torch.float64) for _ in range(2))
    return teacher.log_softmax(-1), student.log_softmax(-1)


def compared(divergence: Divergence, transform: Transform, teacher: Tensor, student: Tensor) -> Tensor:
    """As a recipe's term has it: gain included."""
    unknown = torch.zeros(len(student))
    stats = TokenStats(unknown.long(), unknown.long(), unknown, unknown, unknown, unknown)
    return Distill(divergence, transforms=(transform,))(Tokens(stats, student, teacher))


def slope(divergence: Divergence, transform: Transform, teacher: Tensor, student: Tensor) -> Tensor:
    """Gradient in the student's logits."""
    logits = student.clone().requires_grad_()
    value = compared(divergence, transform, teacher[None], logits.log_softmax(-1)[None]).sum()
    return torch.autograd.grad(value, logits)[0]


@every
@laws
@given(pair=pairs())
def test_sides_sum_to_one_where_promised_and_only_there(transform: Transform, pair: tuple[Tensor, Tensor]) -> None:
    teacher, student = transform(*pair)
    assert teacher.shape == student.shape
    for logp, whole in zip((teacher, student), transform.sums_to_one, strict=True):
        total = logp.logsumexp(-1)
        assert total <= 1e-12
        assert total > -1e-12 or not whole


@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if t.sums_to_one != (True, True)], ids=str)
def test_a_side_that_promises_less_does_less(transform: Transform) -> None:
    generator = torch.Generator().manual_seed(0)
    outcome = transform(*torch.randn(2, 1, 9, generator=generator, dtype=torch.float64).log_softmax(-1))
    for logp, whole in zip(outcome, transform.sums_to_one, strict=True):
        assert whole == (float(logp.logsumexp(-1)) > -1e-6)


@pytest.mark.parametrize("transform", IDENTITIES, ids=str)
@laws
@given(pair=pairs())
def test_settings_that_change_nothing_change_nothing(transform: Transform, pair: tuple[Tensor, Tensor]) -> None:
    teacher, student = transform(*pair)
    assert torch.equal(teacher, pair[0])
    assert torch.equal(student, pair[1])
    assert transform.gain == 1.0


@every
@laws
@given(pair=pairs(), seed=st.integers(0, 99))
def test_blind_to_the_numbering_of_the_vocabulary(transform: Transform, pair: tuple[Tensor, Tensor], seed: int) -> None:
    teacher, student = pair
    if isinstance(transform, TopK) and any(logp.unique().numel() < logp.numel() for logp in pair):
        return  # which of two equal entries is among the k likeliest is a matter of numbering
    order = torch.randperm(teacher.shape[-1], generator=torch.Generator().manual_seed(seed))
    direct, renumbered = transform(*pair), transform(teacher[:, order], student[:, order])
    for divergence in (ForwardKL(), ReverseKL()):
        torch.testing.assert_close(divergence(*renumbered), divergence(*direct), rtol=1e-10, atol=1e-12)


@every
@laws
@given(pair=pairs(), up=st.floats(-20, 20), down=st.floats(-20, 20))
def test_blind_to_a_constant_in_either_logits(
    transform: Transform, pair: tuple[Tensor, Tensor], up: float, down: float
) -> None:
    if isinstance(transform, TopK) and any(logp.unique().numel() < logp.numel() for logp in pair):
        return  # a constant's rounding decides which of two equal entries is among the k likeliest
    shifted = transform((pair[0] + up).log_softmax(-1), (pair[1] + down).log_softmax(-1))
    for divergence in (ForwardKL(), ReverseKL()):
        expected = divergence(*transform(*pair))
        torch.testing.assert_close(divergence(*shifted), expected, rtol=1e-8, atol=1e-10)


@every
@pytest.mark.parametrize(
    "teacher",
    [[0.0, -1e4, -1e4, -2e4], [0.0, -math.inf, -math.inf, -math.inf], [1.0, 0.0, -math.inf, -math.inf]],
    ids=["sure", "no mass but one", "no mass in the tail"],
)
def test_finite_with_finite_gradient_at_the_extremes(transform: Transform, teacher: list[float]) -> None:
    target = torch.tensor([teacher]).log_softmax(-1)
    logits = torch.tensor([[0.0, 3.0, -1e4, 1.0]], requires_grad=True)
    barred = torch.tensor([[0.0, 3.0, -math.inf, 1.0]]).log_softmax(-1)
    for divergence in ALL:
        value = divergence(*transform(target, logits.log_softmax(-1))).sum()
        assert value.isfinite()
        (gradient,) = torch.autograd.grad(value, logits)
        assert gradient.isfinite().all()
        assert divergence(*transform(target, barred)).isfinite()


@every
def test_the_gradient_is_the_student_s_with_the_target_held(transform: Transform) -> None:
    generator = torch.Generator().manual_seed(0)
    target, student = torch.randn(2, 6, dtype=torch.float64, generator=generator).log_softmax(-1)
    held, _ = transform(target, student)

    def value(logits: Tensor) -> Tensor:
        return ReverseKL()(held, transform(target, logits.log_softmax(-1))[1]) * transform.gain

    steps = 1e-5 * torch.eye(6, dtype=torch.float64)
    expected = torch.stack([(value(student + d) - value(student - d)) / 2e-5 for d in steps])
    found = slope(ReverseKL(), transform, target, student)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    assert transform == TowardsTeacher(0.0) or found.abs().max() > 1e-3  # TAID's first step teaches nothing


@every
def test_no_gradient_reaches_the_teacher_nor_the_target(transform: Transform) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (
        torch.randn(2, 6, generator=generator).log_softmax(-1).detach().requires_grad_() for _ in range(2)
    )
    target, _ = transform(teacher.detach(), student)
    assert not target.requires_grad
    ReverseKL()(*transform(teacher, student)).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


@every
def test_is_a_value_that_prints_compares_and_hashes(transform: Transform) -> None:
    assert eval(repr(transform), vars(workbench.divergence)) == transform
    assert hash(dataclasses.replace(transform)) == hash(transform)


# Relations.


@pytest.mark.parametrize("divergence", [d for d in ALL if d.f_divergence], ids=str)
@laws
@given(pair=pairs(), k=st.integers(1, 5), support=st.sampled_from(["teacher", "student", "union"]))
def test_a_tail_bucket_never_adds_divergence(
    divergence: Divergence, pair: tuple[Tensor, Tensor], k: int, support: str
) -> None:
    """Data processing: what merges entries can only hide differences; and one entry more hides less."""
    full = divergence(*pair)
    coarse, finer = (divergence(*TopK(n, support=support)(*pair)) for n in (k, k + 1))
    assert coarse <= finer + 1e-10
    assert finer <= full + 1e-10


@pytest.mark.parametrize("support", ["teacher", "student"])
def test_top_k_keeps_the_likeliest_of_its_support(support: str) -> None:
    teacher, student = F3
    leader = {"teacher": teacher, "student": student}[support]
    kept = TopK(2, support=support)(teacher, student)
    for logp, cut in zip((teacher, student), kept, strict=True):
        best = logp[leader.topk(2).indices]
        torch.testing.assert_close(cut[:2], best)
        torch.testing.assert_close(cut[2].exp(), 1 - best.exp().sum())


@laws
@given(pair=pairs(), k=st.integers(1, 3))
def test_a_union_holds_each_entry_of_either_once(pair: tuple[Tensor, Tensor], k: int) -> None:
    ids = {*pair[0][0].topk(k).indices.tolist(), *pair[1][0].topk(k).indices.tolist()}
    for logp, cut in zip(pair, TopK(k, support="union", rest="unnormalised")(*pair), strict=True):
        torch.testing.assert_close(cut.exp().sum(), logp[0, list(ids)].exp().sum())


def test_a_tail_far_below_rounding_is_still_its_mass() -> None:
    logp = torch.tensor([0.0, -1.0, -60.0, -60.0]).log_softmax(-1)
    tail = TopK(2)(logp, logp)[0][-1]
    torch.testing.assert_close(tail, logp[2] + math.log(2))


@laws
@given(pair=pairs(), k=st.integers(2, 3))
def test_eopd_s_form_also_pulls_mass_onto_the_support(pair: tuple[Tensor, Tensor], k: int) -> None:
    """Renormalising the student too forgets exactly -log of its mass there."""
    whole = ForwardKL()(*TopK(k, rest="teacher_renormalised")(*pair))
    relative = ForwardKL()(*TopK(k, rest="renormalised")(*pair))
    outside = -pair[1][0, pair[0][0].topk(k).indices].logsumexp(-1)
    torch.testing.assert_close(whole - relative, outside[None], rtol=1e-9, atol=1e-10)


@laws
@given(pair=pairs(), share=st.floats(0.05, 0.95))
def test_mixtures_contain_one_another(pair: tuple[Tensor, Tensor], share: float) -> None:
    taid, geometric = TowardsTeacher(share)(*pair), AlphaMixture(share, power=0.0, replaces="teacher")(*pair)
    torch.testing.assert_close(taid[0], geometric[0], rtol=1e-9, atol=1e-10)
    skew = ForwardKL()(*AlphaMixture(share, power=1.0)(*pair))
    torch.testing.assert_close(skew, SkewKL(share)(*pair), rtol=1e-9, atol=1e-10)
    held = AlphaMixture(share, power=1.0, replaces="teacher")
    member = SkewReverseKL(share, detached=True)
    torch.testing.assert_close(ReverseKL()(*held(*pair)), member(*pair), rtol=1e-9, atol=1e-10)
    logits = pair[1][0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(member(pair[0][0], logits.log_softmax(-1)), logits)
    torch.testing.assert_close(slope(ReverseKL(), held, pair[0][0], pair[1][0]), expected, rtol=1e-8, atol=1e-10)


@laws
@given(pair=pairs(), weight=st.floats(0.05, 0.95))
def test_a_small_power_is_nearly_geometric(pair: tuple[Tensor, Tensor], weight: float) -> None:
    for near, limit in ((1e-6, 0.0), (-1e-6, 0.0)):
        found, expected = (AlphaMixture(weight, power)(*pair)[1] for power in (near, limit))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


# Known answers.


@pytest.mark.parametrize(
    ("transform", "divergence", "value"),
    [
        (Temperature(1.0), ForwardKL(), 0.3446178373),
        (Temperature(2.0), ForwardKL(), 0.0929340638),
        (Temperature(2.0, squared=True), ForwardKL(), 0.3717362550),
        (Temperature(4.0, squared=True), ForwardKL(), 0.3677422849),
        (Temperature(1000.0, squared=True), ForwardKL(), 0.3514179126),
        (TopK(3, rest="renormalised"), ReverseKL(), 0.3526532007),
        (TopK(2, rest="renormalised"), ReverseKL(), 0.2842708770),
        (TopK(2, rest="unnormalised"), ReverseKL(), 0.0230695141),
        (TopK(1, rest="unnormalised"), ReverseKL(), -0.2541893581),
        (TopK(2, rest="renormalised"), ForwardKL(), 0.2536623119),
        (TopK(2, rest="teacher_renormalised"), ForwardKL(), 0.6103372558),
        (TopK(3, rest="teacher_renormalised"), ForwardKL(), 0.3446178373),
        (TowardsTeacher(0.4), ForwardKL(), 0.0574401913),
        (TowardsTeacher(0.0), ForwardKL(), 0.0),
        (GeometricBridge(0.8), ForwardKL(), 0.2981773657),
        (GeometricBridge(0.8), ReverseKL(), 0.3110567225),
        (GeometricBridge(0.3), ForwardKL(), 0.3268571282),
        (GeometricBridge(0.3), ReverseKL(), 0.3359984520),
        (GeometricBridge(1.0), ForwardKL(), 0.2871395207),
        (GeometricBridge(1.0), ReverseKL(), 0.3021188929),
        (GeometricBridge(0.0), ReverseKL(), 0.3526532007),
        (AlphaMixture(0.1, power=1.0), ForwardKL(), 0.2741615833),
    ],
    ids=str,
)
def test_known_answers_on_f3(transform: Transform, divergence: Divergence, value: float) -> None:
    """Hinton, LSM (2603.25562), EOPD (2603.07079), TAID (2501.16937), Veto (2601.07155), AMiD (2510.15982)."""
    found = compared(divergence, transform, F3[0][None], F3[1][None])
    assert float(found) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("transform", "divergence", "gradient"),
    [
        (TowardsTeacher(0.4), ForwardKL(), (-0.1588919122, 0.0695951394, 0.0892967728)),
        (TowardsTeacher(1.0), ForwardKL(), (-0.4, 0.2, 0.2)),
        (TowardsTeacher(0.0), ForwardKL(), (0.0, 0.0, 0.0)),
        (GeometricBridge(0.8), ForwardKL(), (-0.3655531837, 0.1606322100, 0.2049209738)),
        (GeometricBridge(0.8), ReverseKL(), (-0.3323678393, 0.0809626340, 0.2514052053)),
    ],
    ids=str,
)
def test_known_gradients_on_f3(transform: Transform, divergence: Divergence, gradient: tuple[float, ...]) -> None:
    assert slope(divergence, transform, *F3).tolist() == pytest.approx(list(gradient), abs=1e-9)


def test_squared_temperature_has_hintons_gradient_and_limit() -> None:
    for tau in (2.0, 7.0):
        expected = tau * ((F3[1] / tau).softmax(-1) - (F3[0] / tau).softmax(-1))
        torch.testing.assert_close(slope(ForwardKL(), Temperature(tau, squared=True), *F3), expected)
    teacher, student = (logp - logp.mean() for logp in F3)
    limit = float((teacher - student).square().sum() / 6)
    assert limit == pytest.approx(0.3513299548, abs=1e-9)
    hot = compared(ForwardKL(), Temperature(1e6, squared=True), F3[0][None], F3[1][None])
    assert float(hot) == pytest.approx(limit, abs=1e-4)


@pytest.mark.parametrize(
    ("transform", "target"),
    [
        (TowardsTeacher(0.4), (0.4588919122, 0.3304048606, 0.2107032272)),
        (GeometricBridge(0.8), (0.6655531837, 0.2393677900, 0.0950790262)),
        (GeometricBridge(1.0), (0.65625, 0.25, 0.09375)),
        (AlphaMixture(0.4, power=1.0, replaces="teacher"), (0.46, 0.32, 0.22)),
    ],
    ids=str,
)
def test_known_targets_on_f3(transform: Transform, target: tuple[float, ...]) -> None:
    """TAID in logits; in probabilities it would be another."""
    assert transform(*F3)[0].exp().tolist() == pytest.approx(list(target), abs=1e-9)


@pytest.mark.parametrize(
    ("weight", "rest"),
    [
        (0.5, (0.9074074074, 0.0740740741, 0.0185185185)),
        (0.8, (0.9980403800, 0.0019002375, 0.0000593824)),
    ],
)
def test_where_a_bridge_comes_to_rest(weight: float, rest: tuple[float, ...]) -> None:
    """Sharper than the teacher: p^(1 / (1 - weight))."""
    point = (F3[0] / (1 - weight)).log_softmax(-1)
    assert point.exp().tolist() == pytest.approx(list(rest), abs=1e-9)
    assert slope(ReverseKL(), GeometricBridge(weight), F3[0], point).abs().max() < 1e-12


@laws
@given(pair=pairs(), weight=st.floats(0.0, 1.5))
def test_a_bridge_under_reverse_kl_trades_entropy_for_the_teacher(pair: tuple[Tensor, Tensor], weight: float) -> None:
    teacher, student = (x[0] for x in pair)
    logits = student.clone().requires_grad_()
    live = logits.log_softmax(-1)
    spelt = -(live.exp() * teacher).sum() + (1 - weight) * (live.exp() * live).sum()
    (expected,) = torch.autograd.grad(spelt, logits)
    torch.testing.assert_close(slope(ReverseKL(), GeometricBridge(weight), teacher, student), expected)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: TopK(0), "k >= 2"),
        (lambda: TopK(1, rest="renormalised"), "always 1"),
        (lambda: TopK(1, support="union", rest="renormalised"), "always 1"),
        (lambda: Temperature(0.0), "> 0"),
        (lambda: Temperature(-1.0), "> 0"),
        (lambda: TowardsTeacher(1.1), "in \\[0, 1\\]"),
        (lambda: GeometricBridge(-0.1), ">= 0"),
        (lambda: AlphaMixture(-0.1), "in \\[0, 1\\]"),
        (lambda: AlphaMixture(1.0), "teacher with itself"),
        (lambda: AlphaMixture(0.0, replaces="teacher"), "student with itself"),
    ],
)
def test_degenerate_settings_are_refused(wrong, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        wrong()
