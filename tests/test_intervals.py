"""Intervals and rates against closed forms, and what may be said of a run."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from verifiers.verdict import Status, Verdict
from workbench.train.intervals import (
    DRAWS,
    FEWEST,
    Arm,
    Difference,
    Estimate,
    Scores,
    arms_dict,
    arms_table,
    bootstrap_mean,
    bootstrap_ratio,
    mean_at_k,
    needed_n,
    paired_bootstrap,
    pass_at_k,
    problem_means,
    wilson,
)
from workbench.train.outcome import verdict_line
from workbench.train.significance import bootstrap_p, corrected, holm, t_quantile, welch

COUNTS = st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


def by_problem(values: list[list[float]]) -> dict[str, list[float]]:
    return {f"p{i:03d}": group for i, group in enumerate(values)}


# Wilson


@given(COUNTS)
def test_wilson_solves_its_equation(counts: tuple[int, int]) -> None:
    n, correct = counts
    estimate, z = wilson(correct, n), NormalDist().inv_cdf(0.975)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    # Its ends are the shares p from which the observed one is exactly z standard errors away.
    for p in (estimate.low, estimate.high):
        assert (correct / n - p) ** 2 == pytest.approx(z * z * p * (1 - p) / n, abs=1e-12)


@given(COUNTS)
def test_wilson_of_wrong_is_the_mirror_of_right(counts: tuple[int, int]) -> None:
    n, correct = counts
    right, wrong = wilson(correct, n), wilson(n - correct, n)
    assert (right.low, right.high) == pytest.approx((1 - wrong.high, 1 - wrong.low), abs=1e-12)


def test_wilson_at_the_ends() -> None:
    assert wilson(0, 16).low == 0.0
    assert wilson(0, 16).high == pytest.approx(0.1936, abs=5e-5)
    assert (wilson(1, 16).low, wilson(1, 16).high) == pytest.approx((0.0111, 0.2833), abs=5e-5)
    assert wilson(16, 16).high == 1.0
    nothing = wilson(0, 0)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high, nothing.n) == (0.0, 1.0, 0)
    with pytest.raises(ValueError, match="17 of 16"):
        wilson(17, 16)


def test_wilson_against_scipy() -> None:
    binomtest = pytest.importorskip("scipy.stats").binomtest
    for correct, n in ((0, 7), (3, 7), (41, 48), (500, 1000)):
        reference = binomtest(correct, n).proportion_ci(0.95, method="wilson")
        ours = wilson(correct, n)
        assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), abs=1e-12)


# pass@k


def test_pass_at_k_known_answers() -> None:
    assert pass_at_k(16, 4, 8) == pytest.approx(0.9615384615, abs=1e-10)
    # Two problems with 16 rollouts each: the same mean@16, not the same pass@8.
    assert (pass_at_k(16, 16, 8) + pass_at_k(16, 0, 8)) / 2 == 0.5
    assert (pass_at_k(16, 8, 8) + pass_at_k(16, 8, 8)) / 2 == pytest.approx(0.9999222999, abs=1e-10)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_ratio_of_binomials(case: tuple[int, int, int]) -> None:
    n, correct, k = case
    exact = 1 - Fraction(math.comb(n - correct, k), math.comb(n, k))
    assert pass_at_k(n, correct, k) == pytest.approx(float(exact), abs=1e-12)
    assert pass_at_k(n, correct, 1) == pytest.approx(correct / n)
    assert pass_at_k(n, correct, n) == float(correct > 0)
    if k < n:
        assert pass_at_k(n, correct, k) <= pass_at_k(n, correct, k + 1) + 1e-15


def test_pass_at_k_is_unbiased_and_stable() -> None:
    # Averaged over binomial draws it is 1 - (1 - p)^k; the plug-in 1 - (1 - c/n)^k is not.
    n, k, p = 10, 4, 0.3
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(w * pass_at_k(n, c, k) for c, w in enumerate(chance))
    assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


@pytest.mark.parametrize("case", [(4, 2, 5), (4, 5, 2), (4, -1, 2), (4, 2, 0)])
def test_pass_at_k_refuses_what_has_no_unbiased_estimate(case: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(*case)


# Averages by problem


def test_a_problem_has_one_vote_however_often_it_was_tried() -> None:
    # arXiv:2609.20612: contrasts of right and wrong completions, averaged inside a problem first.
    right = {"1": [0.02, 0.05], "2": [0.10]}
    wrong = {"1": [-0.04, 0.0], "2": [0.04, 0.02]}
    contrast = {key: [problem_means(right)[key] - problem_means(wrong)[key]] for key in right}
    assert problem_means(contrast) == pytest.approx({"1": 0.055, "2": 0.07})
    assert mean_at_k(contrast) == pytest.approx(0.0625)
    assert paired_bootstrap(wrong, right).value == pytest.approx(0.0625)
    pooled = sum((0.02, 0.05, 0.10)) / 3 - sum((-0.04, 0.0, 0.04, 0.02)) / 4
    assert pooled == pytest.approx(0.0516666667)


def test_the_unjudged_leave_the_denominator() -> None:
    scores: Scores = {"a": [1.0, None], "b": [None, None], "c": [0.0, 1.0]}
    assert problem_means(scores) == {"a": 1.0, "c": 0.5}
    assert mean_at_k(scores) == 0.75
    assert math.isnan(mean_at_k({"b": [None]}))
    change = paired_bootstrap(scores, {"a": [None], "b": [1.0], "c": [1.0]})
    assert (change.value, change.n) == (0.5, 1)


# Bootstrap

GROUPS = st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=3), min_size=2, max_size=12)


@given(GROUPS, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_interval_is_a_function_of_the_problems_and_not_of_their_order(
    values: list[list[float]], generator: random.Random
) -> None:
    scores = by_problem(values)
    keys = list(scores)
    generator.shuffle(keys)
    shuffled = {key: scores[key] for key in keys}
    assert bootstrap_mean(scores, draws=200) == bootstrap_mean(shuffled, draws=200)


@given(GROUPS, st.floats(-5, 5))
@settings(max_examples=40, deadline=None)
def test_a_constant_change_has_no_width_and_shifts_nothing_else(values: list[list[float]], shift: float) -> None:
    before = by_problem(values)
    after = {key: [v + shift for v in group] for key, group in before.items()}
    change = paired_bootstrap(before, after, draws=200)
    assert (change.value, change.low, change.high) == pytest.approx((shift, shift, shift), abs=1e-9)
    forth, back = paired_bootstrap(before, after, draws=200), paired_bootstrap(after, before, draws=200)
    assert back.value == -forth.value


def test_pairing_takes_out_how_hard_a_problem_is() -> None:
    generator = np.random.default_rng(0)
    hardness = generator.normal(0, 10, 40)
    before = by_problem([[h] for h in hardness])
    after = by_problem([[h + 1 + e] for h, e in zip(hardness, generator.normal(0, 0.1, 40), strict=True)])
    paired = paired_bootstrap(before, after)
    alone = bootstrap_mean(after)
    assert paired.clear_of_zero
    assert paired.high - paired.low < (alone.high - alone.low) / 20


def test_the_bootstrap_interval_is_the_normal_one_where_that_holds() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    ours = bootstrap_mean(by_problem([[v] for v in values]), seed=3)
    half = 1.96 * values.std() / math.sqrt(400)
    assert (ours.low, ours.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert bootstrap_mean(by_problem([[v] for v in values]), seed=3) == ours
    assert bootstrap_mean(by_problem([[v] for v in values]), seed=4) != ours


def test_more_rollouts_of_a_problem_are_not_more_problems() -> None:
    few = by_problem([[float(i % 2)] for i in range(20)])
    often = {key: group * 8 for key, group in few.items()}
    assert bootstrap_mean(few) == bootstrap_mean(often)


def test_a_block_more_does_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = by_problem([[float(i)] for i in range(10)])
    whole = bootstrap_mean(scores, draws=500)
    monkeypatch.setattr("workbench.train.intervals._BLOCK", 70)
    assert bootstrap_mean(scores, draws=500) == whole


def test_a_ratio_of_means() -> None:
    before, after = by_problem([[100.0], [300.0]] * 5), by_problem([[50.0], [90.0]] * 5)
    ratio = bootstrap_ratio(after, before)
    assert ratio.value == pytest.approx(0.35)
    assert ratio.low < 0.35 < ratio.high < 1
    assert ratio.clear_of(1.0)
    assert bootstrap_ratio(before, before).clear_of(1.0) is False
    with pytest.raises(ValueError, match="positive denominator"):
        bootstrap_ratio(before, by_problem([[0.0], [1.0]] * 5))


def test_pairs_must_be_about_the_same_problems() -> None:
    with pytest.raises(ValueError, match="2 differ"):
        paired_bootstrap({"a": [1.0], "b": [1.0]}, {"a": [1.0], "c": [1.0]})


def test_one_problem_says_nothing_about_the_next() -> None:
    one = paired_bootstrap({"a": [0.0]}, {"a": [1.0]})
    assert (one.value, one.low, one.high) == (1.0, -math.inf, math.inf)
    none = bootstrap_mean({})
    assert math.isnan(none.value)
    assert none.n == 0


@pytest.mark.parametrize(("n", "clear"), [(FEWEST - 1, False), (FEWEST, True)])
def test_five_of_five_is_no_evidence_and_six_of_six_is(n: int, clear: bool) -> None:
    change = paired_bootstrap(by_problem([[0.0]] * n), by_problem([[1.0]] * n))
    assert change.low == 1.0
    assert change.clear_of_zero is clear


def test_needed_n_reaches_its_power() -> None:
    n = needed_n(0.5, 2.0)
    z = NormalDist()
    assert z.cdf(0.5 / (2.0 / math.sqrt(n)) - z.inv_cdf(0.975)) == pytest.approx(0.8, abs=0.005)
    assert needed_n(0.02, 0.5) == 4906
    assert needed_n(-0.02, 0.5) == 4906
    assert needed_n(1.0, 0.0) == FEWEST
    with pytest.raises(ValueError, match="other than 0"):
        needed_n(0.0, 1.0)


def test_an_estimate_carries_unit_and_interval() -> None:
    assert Estimate(0.4123, 0.38, 0.45, 9, "nat/token").text(3) == "0.412 nat/token [0.380, 0.450]"
    assert Estimate(0.06, -0.02, 0.15, 48).text(signed=True) == "+0.06 [-0.02, +0.15]"


# The table and the sentence


def arm(name: str, statuses: list[Status], tokens: int, rollouts: int = 1) -> Arm:
    verdicts = {f"p{i}": [Verdict(s)] * rollouts for i, s in enumerate(statuses)}
    return Arm.of(name, verdicts, {key: [tokens] * rollouts for key in verdicts})


def test_an_arm_counts_every_status_apart() -> None:
    row = arm("before", ["correct", "wrong", "truncated", "truncated", "no_answer", "unparsed", "timeout", "error"], 80)
    assert (row.correct, row.judged, row.total) == (1, 7, 8)
    assert (row.truncated, row.no_answer, row.unparsed) == (2, 1, 1)
    assert row.accuracy == wilson(1, 7)
    assert row.tokens.value == 80


def test_rollouts_of_one_problem_do_not_narrow_an_arm() -> None:
    statuses: list[Status] = ["correct", "wrong"] * 10
    once, often = arm("once", statuses, 9), arm("often", statuses, 9, rollouts=8)
    assert (often.correct, often.judged, often.accuracy.n) == (80, 160, 20)
    width = often.accuracy.high - often.accuracy.low
    assert width > 0.9 * (once.accuracy.high - once.accuracy.low)
    assert width > 2 * (wilson(80, 160).high - wilson(80, 160).low)


def test_the_table_says_what_is_clear_and_what_is_not() -> None:
    late: list[Status] = ["truncated" for _ in range(15)]
    arms = [arm("before", ["wrong"] * 16, 80), arm("after\x1b[2J\u202e", ["correct", *late], 60)]
    differences = [
        Difference("after - before", "tokens", Estimate(-20.0, -22.0, -18.0, 16)),
        Difference("after - before", "accuracy", Estimate(0.06, 0.0, 0.19, 16)),
        Difference("after / before", "tokens", Estimate(0.75, 0.7, 0.8, 16), reference=1.0),
    ]
    lines = arms_table(arms, differences).split("\n")
    assert " ".join(lines[0].split()) == "arm correct accuracy [95 %] tokens [95 %] truncated no answer unparsed"
    assert "0/16" in lines[1]
    assert "0.00 [0.00, 0.19]" in lines[1]
    assert "1/16" in lines[2]
    assert "15/16" in lines[2]
    assert "after\\x1b[2J\\u202e" in lines[2]
    assert lines[5].endswith("16  clear of noise")
    assert "-20.0 [-22.0, -18.0]" in lines[5]
    assert lines[6].endswith("16  within noise")
    assert "0.750 [0.700, 0.800]" in lines[7]
    assert lines[7].endswith("clear of noise")
    data = arms_dict(arms, differences)
    assert [row["correct"] for row in data["arms"]] == [0, 1]
    assert [row["clear"] for row in data["differences"]] == [True, False, True]
    assert data["arms"][0]["accuracy"]["high"] == wilson(0, 16).high


UP, DOWN = Estimate(0.2, 0.1, 0.3, 48), Estimate(-0.2, -0.3, -0.1, 48)
UNSURE, FEW = Estimate(0.2, -0.1, 0.5, 48), Estimate(0.2, 0.1, 0.3, 4)


@pytest.mark.parametrize(
    ("accuracy", "tokens", "divergence", "word", "phrases"),
    [
        (UP, None, None, "moved", ["answers more problems right", "clear of zero (48 problems)"]),
        (UNSURE, None, DOWN, "moved", ["towards the teacher", "accuracy +0.20 [-0.10, +0.50], within noise"]),
        (UNSURE, DOWN, None, "moved", ["writes shorter completions"]),
        (UNSURE, UNSURE, UNSURE, "did not move", ["no change that can be told from noise"]),
        (None, None, None, "did not move", ["no change"]),
        (FEW, FEW, FEW, "did not move", ["too few problems to tell (needs 6) (4 problems)"]),
        (DOWN, DOWN, DOWN, "got worse", ["answers fewer problems right and moved towards the teacher"]),
        (UNSURE, None, UP, "got worse", ["moved away from the teacher"]),
        (UP, None, UP, "moved", ["more problems right and moved away from the teacher"]),
    ],
)
def test_the_verdict_is_what_the_intervals_allow(
    accuracy: Estimate | None, tokens: Estimate | None, divergence: Estimate | None, word: str, phrases: list[str]
) -> None:
    outcome = verdict_line(accuracy, tokens, divergence, divergence_name="held-out reverse KL")
    assert outcome.word == word
    assert outcome.line.startswith(f"{word}: the student ")
    for phrase in phrases:
        assert phrase in outcome.line
    assert "\n" not in outcome.line


# Significance


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.randoms())
def test_holm_is_the_step_down_of_its_definition(ps, chance):
    order = list(range(len(ps)))
    chance.shuffle(order)
    found = holm(ps)
    assert holm([ps[i] for i in order]) == [found[i] for i in order], "the order asked in says nothing"
    smallest = sorted(ps)
    for p, q in zip(ps, found, strict=True):
        expected = max(min(1.0, (len(ps) - i) * x) for i, x in enumerate(smallest) if x <= p)
        assert q == expected >= p
    assert holm([math.nan, *ps])[1:] == found, "what was not asked does not count"


def test_holm_of_a_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(*[st.lists(st.integers(-99, 99).map(lambda x: x / 10), min_size=2, max_size=6, unique=True)] * 2)
def test_welch_is_scipys(before, after):
    found = welch(before, after)
    low, high = stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    assert welch(before[:1], after).low == -math.inf


def test_t_quantile_of_the_tables():
    assert [t_quantile(0.975, n) for n in (1, 4, 30)] == pytest.approx([12.706204736, 2.776445105, 2.042272456])


def test_p_is_twice_the_smaller_tail_and_never_zero():
    n = 12
    zero, one = ({str(i): [float(x)] for i in range(n)} for x in (0, 1))
    assert bootstrap_p(zero, one) == bootstrap_p(one, zero) == 1 / DRAWS
    assert bootstrap_p(one, one) == 1.0
    half = {str(i): [float(i % 2)] for i in range(n)}
    assert 0.9 < bootstrap_p({k: [0.5] for k in half}, half) <= 1.0
    assert math.isnan(bootstrap_p({"a": [0.0]}, {"a": [1.0]}))


def test_corrections_stay_within_a_figure():
    estimate = Estimate(0.1, 0.0, 0.2, 9)
    asked = [("accuracy", 0.01), ("tokens", None), ("accuracy", 0.02), ("other", 0.5)]
    found = corrected([Difference("x", figure, estimate, p=p) for figure, p in asked])
    assert [d.p for d in found] == [0.02, None, 0.02, 0.5]
