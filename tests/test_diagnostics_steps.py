"""Diagnostics of steps, of where a divergence lies, of drift and of expected gain."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workbench.errors import InputError, UsageError
from workbench.inspector import diagnostics
from workbench.inspector.diagnostics import (
    DECISIONS,
    TokenRecord,
    accuracy_gap,
    around_first_error,
    concentration,
    concentration_of,
    drift,
    gain_line,
    score_steps,
    true_thinking_score,
)
from workbench.inspector.diagnostics.gain import t_quantile
from workbench.train.intervals import Estimate

EXACT = 1e-9
SHARES = st.floats(0, 1)


def record(divergence, *, problem="p", weight=None, entropy=0.5):
    n = len(divergence)
    return TokenRecord(
        problem, ("x",) * n, np.zeros(n), np.zeros(n), np.full(n, entropy), np.zeros(n), np.array(divergence, float),
        np.ones(n) if weight is None else np.array(weight, float),
    )  # fmt: skip


# Steps


def test_true_thinking_of_the_source():
    assert true_thinking_score((0.9, 0.4), (0.35, 0.2)) == pytest.approx(0.325, abs=EXACT)
    assert true_thinking_score((0.9, 0.2), (0.3, 0.2)) == pytest.approx(0.4, abs=EXACT)


def test_bands_of_steps():
    found = score_steps(np.array([[0.9, 0.1, 0.9, 0.2], [0.5, 0.5, 0.3, 0.295], [0.9, 0.4, 0.35, 0.2]]))
    assert found.scores == pytest.approx([0.75, 0.0025, 0.325], abs=EXACT)
    assert (found.true, found.decorative) == pytest.approx((1 / 3, 1 / 3), abs=EXACT)
    assert math.isnan(score_steps(np.zeros((0, 4))).mean)
    for bad in ((1.1, 0), (math.nan, 0), (0,)):
        with pytest.raises(InputError):
            true_thinking_score(bad, (0, 0))


@settings(deadline=None)
@given(SHARES, SHARES, SHARES, SHARES)
def test_a_step_and_its_absence_are_equally_true(a, b, c, d):
    score = true_thinking_score((a, b), (c, d))
    assert 0 <= score <= 1
    assert score == true_thinking_score((b, a), (d, c)) == true_thinking_score((c, d), (a, b))


# Where the divergence lies


def test_one_token_of_a_hundred_carries_most():
    found = concentration(record([*[0.2 / 99] * 50, 0.8, *[0.2 / 99] * 49]))
    assert found.positions.tolist() == [50]
    assert found.carried == pytest.approx(0.8, abs=EXACT)
    assert found.text() == "1 of 100 tokens carry 80 % of the divergence"
    masked = concentration(record([9.0, 1, 1, 1, 1, 1], weight=[0, 1, 1, 1, 1, 1]))
    assert (masked.positions.tolist(), masked.counted) == ([1, 2, 3, 4], 5)
    assert math.isnan(concentration(record([0.0])).carried)
    two = [record([1.0, 0, 0, 0]), record([1.0] * 5, problem="q"), record([0.0], problem="r")]
    assert concentration_of(two).value == pytest.approx((0.25 + 0.8) / 2, abs=EXACT)
    with pytest.raises(UsageError):
        concentration(record([1.0]), 0)


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.floats(0.01, 1), st.randoms())
def test_fewer_tokens_carry_less(divergence, part, chance):
    found = concentration(record(divergence), part)
    chance.shuffle(divergence)
    assert len(concentration(record(divergence), part).positions) == len(found.positions)
    if len(found.positions):
        values = np.sort(divergence)[::-1]
        assert found.carried >= part - 1e-9
        assert values[: len(found.positions) - 1].sum() < part * values.sum() + 1e-12


def test_a_divergence_put_on_the_error_is_found_there():
    records = [
        record([1, 1, 5, 5, 2, 2, 99], weight=[1, 1, 1, 1, 1, 1, 0], problem="a"),
        record([3.0, 1], problem="b"),
        record([7.0], problem="c"),
    ]
    found = around_first_error(records, [(2, 4), (0, 1), None])
    values = [e.value for e in (found.before, found.at, found.after, found.jump)]
    assert values == pytest.approx([1, 4, 1.5, 4], abs=EXACT)
    assert (found.before.n, found.at.n) == (1, 2)
    with pytest.raises(UsageError):
        around_first_error(records[:1], [(4, 8)])


def test_drift_is_what_changed_on_the_same_problems():
    before = [record([0] * 10, problem=p, entropy=1.0) for p in "ab"]
    after = [record([0] * n, problem=p, entropy=0.25) for p, n in (("a", 20), ("b", 30), ("b", 10))]
    found = drift(before, after)
    assert (found.entropy.value, found.length.value) == pytest.approx((-0.75, 2.0), abs=EXACT)
    with pytest.raises(InputError):
        drift(before, after[:1])
    with pytest.raises(UsageError):
        drift([record([], problem=p) for p in "ab"], after)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.floats(0, 3)), min_size=1), st.randoms())
def test_nothing_drifts_from_itself(rows, chance):
    records = [record([0] * n, problem=p, entropy=h) for p, n, h in rows]
    other = list(records)
    chance.shuffle(other)
    found = drift(records, other)
    assert (found.entropy.value, found.length.value) == pytest.approx((0, 1), abs=1e-12)


# Expected gain


def test_gain_line_of_the_source():
    gaps = np.array([0.02, 0.05, 0.10, 0.15])
    line = gain_line(gaps, 0.8 * gaps - 0.003)
    assert (line.slope, line.intercept) == pytest.approx((0.8, -0.003), abs=EXACT)
    found = line.expected(0.2)
    assert (found.value, found.low, found.high) == pytest.approx((0.157,) * 3, abs=EXACT)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=9), st.randoms())
def test_a_prediction_is_the_textbook_one_in_any_order(pairs, chance):
    x, y = (np.array(side) / 100 for side in zip(*pairs, strict=True))
    if len(set(x.tolist())) < 2:
        return
    line, gap = gain_line(x, y), 0.1
    fit = stats.linregress(x, y)
    n = len(x)
    s = math.sqrt(max(0.0, ((y - fit.slope * x - fit.intercept) ** 2).sum()) / (n - 2))
    half = stats.t.ppf(0.975, n - 2) * s * math.sqrt(1 + 1 / n + (gap - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    found = line.expected(gap)
    assert found.value == pytest.approx(fit.slope * gap + fit.intercept, abs=1e-9)
    assert found.high - found.value == pytest.approx(half, rel=1e-7, abs=1e-9)
    chance.shuffle(pairs)
    other = gain_line(*zip(*((a / 100, b / 100) for a, b in pairs), strict=True)).expected(gap)
    assert (other.low, other.high) == pytest.approx((found.low, found.high), abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0.5, 0.9999))
def test_t_quantile_is_scipys(freedom, share):
    assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-8, abs=1e-9)


def test_a_doubtful_gap_widens_what_is_expected():
    line = gain_line([0.0, 0.1, 0.2, 0.3], [0.0, 0.1, 0.1, 0.3])
    point, wide = line.expected(0.1), line.expected(Estimate(0.1, 0.0, 0.3, 50))
    assert wide.low < point.low < point.value == wide.value < point.high < wide.high
    assert gain_line([0, 1], [0, 1]).expected(0.5).high == math.inf
    gap = accuracy_gap({"a": [0.0, 1.0], "b": [0.0]}, {"a": [1.0], "b": [0.0, 1.0]})
    assert gap.value == 0.5
    with pytest.raises(UsageError):
        gain_line([0.1, 0.1], [0, 1])
    with pytest.raises(InputError):
        accuracy_gap({"a": [0.0]}, {"b": [0.0]})


# The decision table


def test_every_measure_of_the_table_can_be_called():
    assert len(DECISIONS) == len({d.symptom for d in DECISIONS}) == 8
    assert all(callable(getattr(diagnostics, name)) for d in DECISIONS for name in d.measures)
    assert all(d.look_at and d.sources for d in DECISIONS)
