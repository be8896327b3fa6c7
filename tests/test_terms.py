"""Sampled terms have the gradients they are named by: enumerated over every token a student could have written."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.errors import RecipeError
from workbench.parts.terms import PolicyGradient, SampledKL, SampledReverseKL
from workbench.records import Tokens, TokenStats

P, Q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)
FORWARD, REVERSE = (-0.4, 0.2, 0.2), (-0.3599853183, 0.1361975919, 0.2237877264)


def everywhere(behaviour=Q, advantage: torch.Tensor | None = None) -> tuple[torch.Tensor, Tokens]:
    """Logits (3,) and one row for each token that could have been written."""
    logits = Q.log().requires_grad_()
    logp = logits.log_softmax(0).expand(3, 3)
    ids = torch.arange(3)
    given = torch.zeros(3, dtype=torch.float64) if advantage is None else advantage
    stats = TokenStats(ids, ids * 0, Q.log(), P.log(), behaviour.log(), given)
    return logits, Tokens(stats, logp, P.log().expand(3, 3))


def mean_gradient(term, behaviour=Q, advantage: torch.Tensor | None = None) -> list[float]:
    """Of the logits, averaged over the token drawn from `behaviour`."""
    logits, tokens = everywhere(behaviour, advantage)
    (gradient,) = torch.autograd.grad((behaviour * term(tokens)).sum(), logits)
    return gradient.tolist()


def test_estimators_have_the_gradients_they_are_named_by() -> None:
    assert mean_gradient(SampledReverseKL()) == pytest.approx(REVERSE, abs=1e-9)
    assert mean_gradient(SampledKL(estimator="k2")) == pytest.approx(REVERSE, abs=1e-9)
    assert mean_gradient(SampledKL(estimator="k3")) == pytest.approx(FORWARD, abs=1e-9)
    with pytest.raises(RecipeError, match="gradient zero on average"):
        SampledKL(estimator="k1")
    with pytest.raises(RecipeError, match=r"Write SampledKL\(estimator='k3'\)"):
        SampledKL("k3")


def test_k1_as_a_loss_teaches_nothing_when_its_draws_are_constants() -> None:
    """Differentiated through log p_S(y) alone, as every trainer does, the average is sum_v q_v grad log q_v = 0."""
    logits, tokens = everywhere()
    written = tokens.student.gather(1, tokens.stats.ids[:, None])[:, 0]
    (gradient,) = torch.autograd.grad((Q * written).sum(), logits)
    assert gradient.tolist() == pytest.approx([0.0] * 3, abs=1e-12)


def test_importance_corrects_who_wrote() -> None:
    """Averaged over the mixture's draws the gradient is the student's own: MiniLLM's w, sum ptilde w = 1."""
    mixture = 0.2 * P + 0.8 * Q
    assert mixture.tolist() == pytest.approx((0.38, 0.36, 0.26))
    assert (Q / mixture).tolist() == pytest.approx((0.7894736842, 1.1111111111, 1.1538461538), abs=1e-9)
    advantage = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    own = mean_gradient(PolicyGradient(), advantage=advantage)
    assert mean_gradient(PolicyGradient(correction="importance"), mixture, advantage) == pytest.approx(own, abs=1e-12)
    assert mean_gradient(PolicyGradient(), mixture, advantage) != pytest.approx(own, abs=1e-3)


@pytest.mark.parametrize(("sign", "inside", "outside"), [(1.0, 1.19, 1.21), (-1.0, 0.81, 0.79)])
def test_the_clip_takes_the_gradient_where_it_binds(sign: float, inside: float, outside: float) -> None:
    term = PolicyGradient(correction="clipped", clip=0.2)
    for ratio, scale in ((inside, inside), (outside, 0.0), (1 / outside, 1 / outside)):
        advantage = torch.full((3,), sign, dtype=torch.float64)
        behaviour = Q / ratio
        logits, tokens = everywhere(behaviour, advantage)
        (gradient,) = torch.autograd.grad(term(tokens)[0], logits)
        expected = -sign * scale * (torch.tensor([1.0, 0.0, 0.0]) - Q)
        assert gradient.tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_the_ceiling_cuts_the_ratio() -> None:
    term = PolicyGradient(correction="importance", ceiling=2.0)
    stats = everywhere(Q / 10, torch.ones(3, dtype=torch.float64))[1].stats
    assert term.coefficient(stats).tolist() == pytest.approx([2.0] * 3)
    assert PolicyGradient(correction="importance").coefficient(stats).tolist() == pytest.approx([10.0] * 3)
    assert PolicyGradient().needs == {"advantage"}
    assert term.needs == {"advantage", "behaviour"}
    assert math.isinf(PolicyGradient().ceiling)
