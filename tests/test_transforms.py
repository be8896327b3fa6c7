"""Laws every transform obeys, then known answers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.divergence import ALL, Divergence, ForwardKL, ReverseKL, Temperature, TopK, Transform
from workbench.errors import UsageError

TRANSFORMS = (
    Temperature(0.5),
    Temperature(3.0),
    TopK(1),
    TopK(3),
    TopK(3, support="student"),
    TopK(3, tail=False),
    TopK(2, support="student", tail=False),
)
IDENTITIES = (Temperature(1.0), TopK(50), TopK(50, support="student", tail=False), TopK(2**31))

laws = settings(max_examples=25, deadline=None, derandomize=True)
F3 = tuple(torch.tensor(p, dtype=torch.float64).log() for p in ((0.7, 0.2, 0.1), (0.3, 0.4, 0.3)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    size = draw(st.integers(4, 9))
    vector = st.lists(st.floats(-12, 12, width=32), min_size=size, max_size=size)
    teacher, student = (torch.tensor([draw(vector)], dtype=torch.float64) for _ in range(2))
    return teacher.log_softmax(-1), student.log_softmax(-1)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@laws
@given(pair=pairs())
def test_both_sides_still_sum_to_one(transform: Transform, pair: tuple[Tensor, Tensor]) -> None:
    teacher, student = transform(*pair)
    assert teacher.shape == student.shape
    for logp in (teacher, student):
        torch.testing.assert_close(logp.logsumexp(-1), torch.zeros(1, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("transform", IDENTITIES, ids=str)
@laws
@given(pair=pairs())
def test_settings_that_change_nothing_change_nothing(transform: Transform, pair: tuple[Tensor, Tensor]) -> None:
    teacher, student = transform(*pair)
    assert torch.equal(teacher, pair[0])
    assert torch.equal(student, pair[1])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@laws
@given(pair=pairs(), seed=st.integers(0, 99))
def test_blind_to_the_numbering_of_the_vocabulary(transform: Transform, pair: tuple[Tensor, Tensor], seed: int) -> None:
    teacher, student = pair
    leader = student if getattr(transform, "support", "") == "student" else teacher
    if leader.unique().numel() < leader.numel():
        return  # which of two equal entries is among the k likeliest is a matter of numbering
    order = torch.randperm(teacher.shape[-1], generator=torch.Generator().manual_seed(seed))
    direct, renumbered = transform(*pair), transform(teacher[:, order], student[:, order])
    for divergence in (ForwardKL(), ReverseKL()):
        torch.testing.assert_close(divergence(*renumbered), divergence(*direct), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize(
    "teacher",
    [[0.0, -1e4, -1e4, -2e4], [0.0, -math.inf, -math.inf, -math.inf], [1.0, 0.0, -math.inf, -math.inf]],
    ids=["sure", "no mass but one", "no mass in the tail"],
)
def test_finite_with_finite_gradient_at_the_extremes(transform: Transform, teacher: list[float]) -> None:
    target = torch.tensor([teacher]).log_softmax(-1)
    logits = torch.tensor([[0.0, 3.0, -1e4, 1.0]], requires_grad=True)
    for divergence in ALL:
        value = divergence(*transform(target, logits.log_softmax(-1))).sum()
        assert value.isfinite()
        (gradient,) = torch.autograd.grad(value, logits)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_gradient_flows_through_the_student(transform: Transform) -> None:
    logits = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).log_softmax(-1)

    def loss(z: Tensor) -> Tensor:
        return ReverseKL()(*transform(target, z.log_softmax(-1)))

    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("divergence", [d for d in ALL if d.genuine], ids=str)
@laws
@given(pair=pairs(), k=st.integers(1, 5), support=st.sampled_from(["teacher", "student"]))
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


def test_a_tail_far_below_rounding_is_still_its_mass() -> None:
    logp = torch.tensor([0.0, -1.0, -60.0, -60.0]).log_softmax(-1)
    tail = TopK(2)(logp, logp)[0][-1]
    torch.testing.assert_close(tail, logp[2] + math.log(2))


@pytest.mark.parametrize(
    ("transform", "divergence", "value"),
    [
        (Temperature(2.0), ForwardKL(), 0.0929340638),
        (Temperature(4.0), ForwardKL(), 0.3677422849 / 16),
        (TopK(3, tail=False), ReverseKL(), 0.3526532007),
        (TopK(2, tail=False), ReverseKL(), 0.2842708770),
        (TopK(2, tail=False), ForwardKL(), 0.2536623119),
    ],
    ids=str,
)
def test_known_answers_on_f3(transform: Transform, divergence: Divergence, value: float) -> None:
    """Hinton's temperature, LSM's and EOPD's truncated supports."""
    assert float(divergence(*transform(*F3))) == pytest.approx(value, abs=1e-10)


@pytest.mark.parametrize(
    "wrong", [lambda: TopK(0), lambda: TopK(1, tail=False), lambda: Temperature(0.0), lambda: Temperature(-1.0)]
)
def test_degenerate_settings_are_refused(wrong) -> None:
    with pytest.raises(UsageError):
        wrong()
