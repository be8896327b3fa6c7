"""Diagnostics of whole outputs: known answers of the sources, cases built to have one, and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers import Verdict, verify
from workbench.errors import InputError, UsageError
from workbench.inspector.diagnostics import (
    Generation,
    Reshaping,
    best_without_context,
    budget_sweep,
    distinct_answers,
    distinct_solutions,
    diversity,
    fork_threshold,
    leakage,
    mentions,
    overlap,
    relative_change,
)
from workbench.records import Problem

EXACT = 1e-9
ROWS = st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=1, max_size=4).map(
    lambda rows: np.array(rows) / np.array(rows).sum(-1, keepdims=True)
)


# Reshaping


def test_reshaping_of_the_source():
    e = np.array([math.log(2)])
    assert Reshaping().signal(e) == pytest.approx([0.5], abs=EXACT)
    assert Reshaping(width=1.3).signal(e) == pytest.approx([0.2439079350], abs=EXACT)
    found = [Reshaping(width=w).threshold for w in (0.02, 0.03, 1.3)]
    assert found == pytest.approx([0.0008004271, 0.0012006406, 0.0520277600], abs=EXACT)
    assert Reshaping().selected(np.array([0.00080, 0.00081, -0.1, 0.0])) == 0.5
    # tanh(2.5) = .98661, tanh(3) = .99505
    assert Reshaping().saturated(np.array([0.05, -0.05, 0.06, -0.06, 1.0])) == 0.6
    assert Reshaping(most=0.4).saturated(np.array([0.05])) == 1, "the clip is the bound where it is the lower one"
    assert math.isnan(Reshaping().saturated(np.array([])))
    with pytest.raises(UsageError):
        Reshaping(least=0.5)


def test_reshaped_loss_takes_two_means():
    far, near = 1.0, 0.0
    e = np.array([far, far, near, far])
    assert Reshaping().loss(1.0, e) == pytest.approx(-2.5, abs=EXACT)
    assert -Reshaping().reshaped(1.0, e).mean() == pytest.approx(-1.375, abs=EXACT), "one mean is another loss"
    assert Reshaping(selected_weight=2.0).loss(1.0, e) == pytest.approx(-4, abs=EXACT)
    assert Reshaping().weights(e) == pytest.approx([1 / 3, 1 / 3, 1, 1 / 3], abs=EXACT)
    assert Reshaping().weight_of_others(e) == pytest.approx(3, abs=EXACT)
    for kind, loss in ((far, -1.5), (near, -1.0)):
        alone = np.full(3, kind)
        assert math.isnan(Reshaping().weight_of_others(alone))
        assert Reshaping().loss(1.0, alone) == pytest.approx(loss, abs=EXACT), "no mean of no token"
    assert Reshaping().loss(1.0, np.array([])) == 0
    # a token that is not selected keeps its advantage: r = .5 tanh(.0005 / .02) = .0125 is under the least
    assert Reshaping().loss(1.0, np.array([0.0005])) == -1


def test_reshaped_loss_clips_as_ppo_does():
    near = np.zeros(1)
    pairs = [(1.5, 1.0, -1.2), (0.5, 1.0, -0.5), (1.5, -1.0, 1.5), (0.5, -1.0, 0.8), (1.1, 1.0, -1.1)]
    for ratio, advantage, loss in pairs:
        assert Reshaping().loss(advantage, near, ratio) == pytest.approx(loss, abs=EXACT)


# Leakage


def test_a_contrast_never_turns_a_verdict():
    far = np.array([1.0])  # saturated: r is .5 on e's side
    pairs = [(0.3, -0.5, 0.0), (0.3, 0.5, 0.8), (-0.75, 0.5, -0.25), (-0.3, 0.5, 0.0), (0.0, 0.5, 0.0)]
    for advantage, r, wanted in pairs:
        assert Reshaping().signal(np.sign(r) * far) == pytest.approx([r], abs=EXACT)
        assert Reshaping().reshaped(advantage, np.sign(r) * far) == pytest.approx([wanted], abs=EXACT)


def test_floor_of_the_source():
    rows = np.array([[0.9, 0.1], [0.2, 0.8]])
    forward = best_without_context(rows)
    assert forward.distribution == pytest.approx([0.55, 0.45], abs=EXACT)
    assert forward.floor == pytest.approx(0.2753961152, abs=EXACT)
    reverse = best_without_context(rows, direction="reverse")
    assert reverse.distribution == pytest.approx([0.6, 0.4], abs=EXACT)
    assert reverse.floor == pytest.approx(0.3465735903, abs=EXACT)


def test_two_demonstrations_of_the_source():
    rows, weights = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1]]), (0.75, 0.25)
    forward = best_without_context(rows, weights).distribution
    assert forward == pytest.approx([0.675, 0.225, 0.1], abs=EXACT)
    reverse = best_without_context(rows, weights, direction="reverse").distribution
    assert reverse == pytest.approx([0.70935279, 0.17733820, 0.11330902], abs=5e-9)  # as printed: eight digits
    assert reverse[0] / reverse[1] == pytest.approx(4.0, abs=EXACT)
    again = best_without_context(rows, reverse[:2], direction="reverse").distribution
    assert again[0] / again[1] == pytest.approx(4.5947934, abs=5e-8)


@settings(deadline=None)
@given(ROWS, st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.sampled_from(["forward", "reverse"]))
def test_nothing_without_the_context_does_better_than_the_best(rows, other, direction):
    q = np.array(other) / sum(other)
    p, r = (rows, q) if direction == "forward" else (q, rows)
    divergence = float((p * (np.log(p) - np.log(r))).sum(-1).mean())
    best = best_without_context(rows, direction=direction)
    assert best.distribution.sum() == pytest.approx(1)
    assert -1e-12 <= best.floor <= divergence + 1e-12


def test_no_distribution_is_refused():
    for rows, weights in (([[0.5, 0.6]], None), ([[0.5, 0.5]], [1, 1]), ([[1.5, -0.5]], None)):
        with pytest.raises(UsageError):
            best_without_context(np.array(rows), weights)


def test_an_output_that_quotes_what_it_never_saw_leaks():
    solution = "add the seven boxes to nine crates and halve the result"
    other = "draw a circle through all three corners of the field"
    outputs = {"a": ["As the reference solution states, " + solution, "x"], "b": ["I add and halve.", "y"]}
    found = leakage(outputs, {"a": solution, "b": solution}, {"a": other, "b": other})
    assert found.phrases.value == pytest.approx(250, abs=EXACT)
    assert found.phrases.unit == "per 1,000 outputs"
    # One of four outputs; of its 13 runs of four words the solution has 8.
    assert found.overlap is not None
    assert found.overlap.value == pytest.approx(8 / 13 / 4, abs=EXACT)
    swapped = leakage(outputs, {"a": other, "b": other}, {"a": solution, "b": solution}).overlap
    assert swapped is not None
    assert swapped.value == pytest.approx(-8 / 13 / 4, abs=EXACT), "words that any solution has are no leak"
    assert leakage(outputs).overlap is None
    with pytest.raises(UsageError):
        leakage(outputs, {"a": "", "b": ""})
    with pytest.raises(InputError):
        leakage(outputs, {"a": ""}, {"a": ""})


@pytest.mark.parametrize(
    ("text", "leaks"),
    [("the given solution", True), ("according to the reference", True), ("As the solution states", True),
     ("The reference shows 4", True), ("The solution is x = 4", False), ("the given number", False),
     ("for reference, 4", False), ("So the answer is 4", False)],
)  # fmt: skip
def test_what_speaks_of_a_reference(text, leaks):
    assert bool(mentions(text)) == leaks
    assert not mentions(text, question="Q: " + text.upper())


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_overlap_is_a_share(text, context, question):
    assert 0 <= overlap(text, context, question, 2) <= 1
    assert overlap(text, text, question, 2) in (0, 1)


# Budgets


def judge(problem, text, truncated):
    return verify(Problem(problem, "?", answer="7"), text, truncated=truncated)


def test_a_sweep_cuts_the_same_generations():
    quick = Generation("a", ("\\boxed{", "7", "}", " but", " wait", " no"), True, np.array([0, 0, 0, 2.0, 2.0, 0]))
    slow = Generation("b", ("a", " but", " so", " \\boxed{", "7", "}"), True, np.array([0, 2.0, 0, 0, 0, 0]))
    cut = Generation("c", ("no", " end"), False, np.zeros(2))
    short, long = budget_sweep([quick, slow, cut], judge, (100, 3), fork=1.0)
    assert (short.tokens, long.tokens) == (3, 100)
    assert (short.accuracy.value, long.accuracy.value) == pytest.approx((1 / 3, 2 / 3), abs=EXACT)
    assert (short.truncated.value, long.truncated.value) == pytest.approx((1, 1 / 3), abs=EXACT)
    assert (short.markers.value, long.markers.value) == pytest.approx((1000 / 8, 3000 / 14), abs=EXACT)
    assert short.forks is not None
    assert short.forks.value == pytest.approx(1 / 9, abs=EXACT)
    assert budget_sweep([quick], judge, (9,))[0].forks is None
    with pytest.raises(UsageError):
        budget_sweep([quick], judge, (0,))


@settings(deadline=None)
@given(st.integers(1, 40))
def test_a_fifth_of_the_base_lies_above_its_own_threshold(n):
    entropies = np.arange(5.0 * n)
    assert (entropies > fork_threshold(entropies)).mean() == pytest.approx(0.2)


def test_a_relative_loss_is_of_what_was_there():
    assert relative_change({"a": [1.0], "b": [1.0, 0.0]}, {"a": [1.0], "b": [0.0]}) == pytest.approx(-1 / 3, abs=EXACT)
    assert math.isnan(relative_change({"a": [0.0]}, {"a": [1.0]}))


# Diversity


def pool(correct, n=16, problem_answers=("7",)):
    wrong = [Verdict("wrong", str(1000 + i)) for i in range(n - correct)]
    return [Verdict("correct", problem_answers[i % len(problem_answers)]) for i in range(correct)] + wrong


def test_pass_at_k_of_the_source():
    assert diversity({"a": pool(4)}).pass_at[8].value == pytest.approx(0.9615384615, abs=EXACT)
    narrow, wide = diversity({"a": pool(16), "b": pool(0)}), diversity({"a": pool(8), "b": pool(8)})
    assert narrow.pass_at[1].value == wide.pass_at[1].value == 0.5
    assert narrow.pass_at[8].value == 0.5
    assert wide.pass_at[8].value == pytest.approx(0.9999222999, abs=EXACT)


def test_equivalent_answers_are_one_and_unjudged_rollouts_none():
    found = diversity({"a": [*pool(4, 6, ("1/2", "0.5")), Verdict("unjudged", "9")], "b": [Verdict("no_answer")]})
    assert found.answers.value == (3 + 0) / 2
    assert (found.pass_at[1].n, found.pass_at[4].n, found.pass_at[16].n) == (2, 1, 0)
    assert distinct_answers(["1/2", "0.5", None, "3"]) == 2
    with pytest.raises(UsageError):
        diversity({"a": pool(1)}, ks=(0,))


def test_the_same_path_with_another_slip_is_the_same_path():
    path, slip = "add 3 to 4 and halve the sum twice", "add 30 to 4 and halve the sum twice"
    other = "draw a circle through all corners of the field"
    assert distinct_solutions([path, slip, other]) == 2
    half = "a b c d e f", "a b c d e g"  # three of five runs are shared
    assert (distinct_solutions(half), distinct_solutions(half, similar=0.7)) == (1, 2)
    found = diversity({"a": pool(1, 3)}, {"a": [path, slip, other]})
    assert found.solutions is not None
    assert found.solutions.value == 2


@settings(deadline=None)
@given(st.lists(st.text("ab ", min_size=0, max_size=14), max_size=6), st.randoms())
def test_clusters_depend_on_no_order(texts, chance):
    other = list(texts)
    chance.shuffle(other)
    assert distinct_solutions(texts) == distinct_solutions(other) <= len(texts)
    assert distinct_solutions(texts + texts) == distinct_solutions(texts)
