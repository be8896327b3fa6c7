"""Where terms pull: against autograd by hand and the laws that tie a sampled loss to its divergence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from verifiers import Verdict
from workbench.divergence import EntryClipped, ForwardKL, ReverseKL
from workbench.errors import UsageError
from workbench.inspector.gradients import Pull, agreement, both_roles, expected, pulls, table
from workbench.parts.contexts import question, with_solution
from workbench.parts.terms import CrossEntropy, Distill, PolicyGradient, SampledKL, SampledReverseKL
from workbench.parts.writers import OnPolicy
from workbench.recipe import Recipe
from workbench.records import Judged, Problem, Request, Sampling, Tokens, TokenStats

PROBLEM = Problem("p", "What is 3 + 4?", "7", "3 + 4 = 7")
RECIPE = Recipe(
    name="probe",
    paper="none",
    student=question,
    teacher=with_solution,
    rollouts=OnPolicy(),
    terms=(Distill(ForwardKL()),),
    sampling=Sampling(max_new_tokens=6),
)


def drawn(n: int = 5, v: int = 12, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, n, v, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    ids = torch.randint(v, (n,), generator=generator)
    at, zero = ids[:, None], torch.zeros(n)
    stats = TokenStats(ids, torch.arange(n), student.gather(1, at)[:, 0], teacher.gather(1, at)[:, 0], zero, zero)
    return Tokens(stats, student, teacher)


def test_pulls_are_the_closed_forms() -> None:
    """Forward KL pulls p_S - p_T, cross entropy p_S - e_y; half their L1 norms are total variation and 1 - p_S(y)."""
    tokens = drawn()
    found = pulls(tokens, {"forward": Distill(ForwardKL()), "text": CrossEntropy()})
    p, q = tokens.student.exp(), tokens.teacher.exp()
    assert torch.allclose(found["forward"].gradient, p - q, atol=1e-14)
    assert np.allclose(found["forward"].size, ((p - q).abs().sum(-1) / 2).numpy())
    assert np.allclose(found["forward"].value, (q * (tokens.teacher - tokens.student)).sum(-1).numpy())
    assert np.allclose(found["text"].size, 1 - tokens.stats.student_logp.exp().numpy())
    assert float(found["forward"].gradient.sum(-1).abs().max()) < 1e-14, "what goes up comes down"


@pytest.mark.parametrize(
    ("sampled", "whole"),
    [
        (SampledReverseKL(), ReverseKL()),
        (SampledKL(estimator="k2"), ReverseKL()),
        (SampledKL(estimator="k3"), ForwardKL()),
    ],
)
def test_a_sampled_loss_has_on_average_the_gradient_of_a_divergence(sampled, whole) -> None:
    tokens = drawn()
    gradient = pulls(tokens, {"whole": Distill(whole)})["whole"].gradient
    assert agreement(expected(tokens, sampled), gradient) < 1e-12
    other = ForwardKL() if isinstance(whole, ReverseKL) else ReverseKL()
    assert agreement(expected(tokens, sampled), pulls(tokens, {"other": Distill(other)})["other"].gradient) > 0.1


def test_the_average_is_the_average_of_what_is_drawn() -> None:
    """Every written token in turn, weighted with how likely it is: by the term's own gradient, not by its formula."""
    tokens, term = drawn(n=1), SampledReverseKL(clip=1.0)
    total = torch.zeros_like(tokens.student)
    for y in range(tokens.student.shape[1]):
        stats = replace(tokens.stats, ids=torch.tensor([y]), teacher_logp=tokens.teacher[:, y])
        one = pulls(replace(tokens, stats=stats), {"one": term})["one"].gradient
        total += tokens.student[0, y].exp() * one
    assert agreement(expected(tokens, term), total) < 1e-12


def test_a_term_over_the_vocabulary_has_no_average() -> None:
    with pytest.raises(UsageError, match="looks at the whole vocabulary"):
        expected(drawn(), Distill(ForwardKL()))


def test_clipped_entries_pull_nowhere() -> None:
    tokens = drawn()
    found = pulls(tokens, {c: Distill(EntryClipped(ForwardKL(), ceiling=float(c))) for c in ("0.05", "inf")})
    whole = pulls(tokens, {"whole": Distill(ForwardKL())})["whole"]
    assert agreement(found["inf"].gradient, whole.gradient) < 1e-12
    assert (found["0.05"].value <= whole.value).all()


def test_few_tokens_with_most_of_the_pull() -> None:
    pull = Pull(np.zeros(4), np.array([1.0, 6.0, 2.0, 1.0]), torch.zeros(4, 2))
    assert [pull.fewest(part) for part in (0.6, 0.61, 0.8, 1.0)] == [1, 2, 2, 4]
    assert Pull(np.zeros(2), np.zeros(2), torch.zeros(2, 2)).fewest() == 0
    head, row, none = table({"a\x1bb": pull, "none": Pull(np.zeros(2), np.zeros(2), torch.zeros(2, 2))}).splitlines()
    assert "80 %" in head
    assert row.startswith("a\\x1bb  0.000       10.000  2 of 4")
    assert row.endswith("60 % at token 1")
    assert none.endswith("0 of 2                        -")


def test_both_roles_on_a_model(tiny) -> None:
    """The distributions are those that the loss reads: the written token's log-probs are the engine's; equal contexts
    pull nowhere."""
    engine = tiny()
    (rollout,) = engine.generate([Request(PROBLEM, question)], RECIPE.sampling)
    judged = Judged(rollout, Verdict("wrong"))
    tokens = both_roles(engine, RECIPE, judged)
    assert tokens.student.shape == (len(rollout.tokens), engine.head("student").weight.shape[0])
    assert tokens.stats.student_logp.tolist() == pytest.approx(list(rollout.logprobs), abs=1e-6)
    assert float((tokens.student - tokens.teacher).abs().max()) > 1e-3, "the solution changes something"
    same = both_roles(engine, replace(RECIPE, teacher=question), judged)
    assert pulls(same, {"forward": Distill(ForwardKL())})["forward"].size.max() < 1e-9
    alone = replace(RECIPE, teacher=None, terms=(PolicyGradient(),))
    with pytest.raises(UsageError, match="has no teacher for this completion"):
        both_roles(engine, alone, judged)
