"""Mistakes that others' losses had, each with the number it gives and the number that is right (fixture F3)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.divergence import (
    JSD,
    AdaptiveKL,
    Divergence,
    EntryClipped,
    ForwardKL,
    Jeffreys,
    Pair,
    ReverseKL,
    SkewReverseKL,
    ToDi,
    TopK,
)
from workbench.errors import UsageError

P = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
Q = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)
TEACHER, STUDENT = P.log(), Q.log()


def near(value: object) -> object:
    return pytest.approx(value, abs=1e-9)


def gradient(divergence: Divergence, teacher: Tensor = TEACHER, student: Tensor = STUDENT) -> Tensor:
    logits = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(divergence(teacher, logits.log_softmax(-1)), logits)
    return found


def test_kl_div_takes_the_student_first_and_means_the_teacher_first() -> None:
    """F.kl_div(input, target) is KL(target || input): swapped in review more than once (trl 4935, slime 2254)."""
    forward = F.kl_div(STUDENT, TEACHER, log_target=True, reduction="sum")
    reverse = F.kl_div(TEACHER, STUDENT, log_target=True, reduction="sum")
    assert float(forward) == near(0.3446178373)
    assert float(reverse) == near(0.3526532007)
    torch.testing.assert_close(ForwardKL()(TEACHER, STUDENT), forward)
    torch.testing.assert_close(ReverseKL()(TEACHER, STUDENT), reverse)


def test_mixtures_average_probabilities_not_their_logs() -> None:
    """Trl 2202."""
    logs = 0.5 * (TEACHER + STUDENT)
    wrong = 0.5 * ((P * (TEACHER - logs)).sum() + (Q * (STUDENT - logs)).sum())
    assert abs(float(wrong - JSD()(TEACHER, STUDENT))) > 0.05
    assert float(JSD()(TEACHER, STUDENT)) == near(0.0842937501)


def test_a_mixture_weight_is_the_teacher_s() -> None:
    """Trl 3043 had it on the student; three "GKD" baselines use two opposite ones."""
    mixture = 0.1 * P + 0.9 * Q
    spelt = 0.1 * (P * (P / mixture).log()).sum() + 0.9 * (Q * (Q / mixture).log()).sum()
    torch.testing.assert_close(JSD(teacher_weight=0.1)(TEACHER, STUDENT), spelt)
    swapped = JSD(teacher_weight=0.1)(STUDENT, TEACHER)
    assert float(swapped) == near(0.0312532237)
    assert float(spelt) == near(0.0307157710)


def test_jensen_shannon_compares_with_the_mixture_not_the_mixture_with_each() -> None:
    """Speculative KD's code has the arguments of F.kl_div the other way round."""
    mixture = (P + Q) / 2
    wrong = 0.5 * sum((mixture * (mixture / side).log()).sum() for side in (P, Q))
    assert float(wrong) == near(0.0900240094)
    assert float(JSD()(TEACHER, STUDENT)) == near(0.0842937501)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_ends_of_a_jsd_are_refused_not_clamped_to_nearly_zero(end: float) -> None:
    """A clamp to 1 - 1e-6 trains on a millionth of the loss and says nothing (verl-recipe 151)."""
    with pytest.raises(UsageError, match="ReverseKL"):
        JSD(end)
    clamped = gradient(JSD(1 - 1e-6)).norm() / gradient(ReverseKL()).norm()
    assert float(clamped) < 1e-5


def test_undetached_todi_is_jeffreys() -> None:
    live = STUDENT.clone().requires_grad_()
    logp = live.log_softmax(-1)
    weight = torch.sigmoid(TEACHER - logp)  # forgotten: .detach()
    loss = (weight * P * (TEACHER - logp) + (1 - weight) * logp.exp() * (logp - TEACHER)).sum()
    (forgetful,) = torch.autograd.grad(loss, live)
    torch.testing.assert_close(forgetful, gradient(Jeffreys()))
    assert (forgetful - gradient(ToDi())).abs().max() > 0.08


def test_todi_leans_to_forward_kl_where_the_student_is_too_low() -> None:
    """A survey tells it backwards, and as one weight a position."""
    _, forward = ToDi().slope(Pair.of(TEACHER, STUDENT))
    assert isinstance(forward, Tensor)
    assert forward.tolist() == near([0.7, 1 / 3, 0.25])


def test_distillm_2_detaches_the_mixture_and_distillm_does_not() -> None:
    through, held = SkewReverseKL(0.9), SkewReverseKL(0.9, detached=True)
    assert through(TEACHER, STUDENT) == held(TEACHER, STUDENT)
    assert (gradient(through) - gradient(held)).abs().max() > 0.02


def test_adaptive_kl_gathers_its_gaps_in_the_order_of_its_mask() -> None:
    """One baseline masks in ascending order and sums gaps in the vocabulary's: its weight turns with the numbering."""
    p = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
    q = torch.tensor([0.1, 0.5, 0.2, 0.2], dtype=torch.float64)
    ours, theirs = [], []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        teacher, student = p[order], q[order]
        tail = teacher.sort().values.cumsum(0) < 0.5 - 1e-12
        gap = (teacher - student).abs()
        weight = (gap * ~tail).sum() / gap.sum()
        theirs.append(float(weight))
        ours.append(float(AdaptiveKL()(teacher.log(), student.log())))
    assert sorted(theirs) == near([0.125, 0.875])
    assert ours == near([0.4939885513] * 2)


@pytest.mark.parametrize("head", ["crossing_is_tail", "smallest_set"])
def test_adaptive_kl_of_equals_is_zero_not_nothing_over_nothing(head: str) -> None:
    member = AdaptiveKL(head=head)
    assert member(TEACHER, TEACHER) == 0.0
    assert torch.equal(gradient(member, TEACHER, TEACHER.log_softmax(-1)).abs() < 1e-12, torch.ones(3).bool())


def test_one_renormalised_entry_teaches_nothing() -> None:
    """LSM with K = 1: zero, with zero gradient, whatever the student does. A tail bucket does teach."""
    with pytest.raises(UsageError, match="always 1"):
        TopK(1, rest="renormalised")
    bucketed = ReverseKL()(*TopK(1)(TEACHER, STUDENT))
    assert float(bucketed) > 0.3


def test_truncated_kls_fall_when_mass_leaves_the_support() -> None:
    """Verl 5041, 7856: without the rest, a student that drops the teacher's entries looks better. A bucket sees it."""
    fled = torch.tensor([0.03, 0.04, 0.93], dtype=torch.float64).log()
    truncated, bucket = TopK(2, rest="unnormalised"), TopK(2)
    assert ReverseKL()(*truncated(TEACHER, fled)) < ReverseKL()(*truncated(TEACHER, STUDENT))
    assert ReverseKL()(*truncated(TEACHER, fled)) < 0  # and a clamp at zero would hide it
    assert ReverseKL()(*bucket(TEACHER, fled)) > ReverseKL()(*bucket(TEACHER, STUDENT))


def test_clipping_signed_entries_can_turn_the_loss() -> None:
    """Trl 5990: terms of a KL are signed, so a ceiling can leave the negative ones alone."""
    assert float(EntryClipped(ForwardKL(), 0.05)(TEACHER, STUDENT)) < 0 < float(ForwardKL()(TEACHER, STUDENT))


def test_a_divergence_is_no_advantage() -> None:
    """Miles 2362: a top-k KL used as a detached advantage has no gradient in expectation over the student's tokens."""

    def expected(advantage: Tensor) -> Tensor:
        live = STUDENT.clone().requires_grad_()
        (found,) = torch.autograd.grad((Q * advantage * live.log_softmax(-1)).sum(), live)
        return found

    assert expected(ReverseKL()(*TopK(2)(TEACHER, STUDENT))).abs().max() < 1e-12
    exact = expected(STUDENT - TEACHER)
    torch.testing.assert_close(exact, gradient(ReverseKL()))
