"""Does the signal teach? Known answers of the sources, cases built to have one, and laws."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers import Verdict, verify
from workbench.errors import InputError, UsageError
from workbench.inspector.diagnostics.alignment import (
    correctness_alignment,
    heads,
    marker_pressure,
    marker_pressure_split,
    markers,
)
from workbench.inspector.diagnostics.answers import (
    answer_positions,
    auroc,
    counted_answer,
    gate_open,
    noise_rate,
    open_probability,
    reliability,
)
from workbench.inspector.diagnostics.classes import CLASSES, classify, divergence_by_class
from workbench.inspector.diagnostics.contrast import contrast, contrast_by_class
from workbench.inspector.diagnostics.record import TokenRecord, spans
from workbench.records import Problem

EXACT = 1e-9
TEXTS = st.lists(st.text(max_size=12), max_size=30)


def record(text, difference, *, problem="p", divergence=None, weight=None, status=None, extracted=None, entropy=0.5):
    """A completion whose teacher differs by `difference` nats from a student of log-prob -1."""
    d = np.array(difference, dtype=float)
    n = len(text)
    return TokenRecord(
        problem=problem,
        text=tuple(text),
        student_logp=np.full(n, -1.0),
        teacher_logp=d - 1.0,
        student_entropy=np.broadcast_to(entropy, n),
        teacher_entropy=np.full(n, entropy),
        divergence=np.abs(d) if divergence is None else np.array(divergence, dtype=float),
        weight=np.ones(n) if weight is None else np.array(weight, dtype=float),
        verdict=None if status is None else Verdict(status, extracted),
    )


@st.composite
def some_records(draw):
    """Records of up to five problems with verdicts of every kind, markers and answers."""
    words = st.sampled_from([" wait", " so", " 12", " dog", "\n", "\\boxed{", " but", "x"])
    found = []
    for _ in range(draw(st.integers(1, 8))):
        text = draw(st.lists(words, min_size=1, max_size=12))
        d = [draw(st.floats(-2, 1)) for _ in text]
        weight = [draw(st.sampled_from([0.0, 1.0, 0.5])) for _ in text]
        status = draw(st.sampled_from(["correct", "wrong", "unjudged", "truncated"]))
        problem = draw(st.sampled_from("abcde"))
        found.append(record(text, d, problem=problem, weight=weight, status=status, extracted="12"))
    return found


# Token records


def test_a_record_that_cannot_be_counted_is_refused():
    with pytest.raises(InputError, match="beside 2 tokens"):
        record(["a", "b"], [1.0])
    with pytest.raises(InputError, match="not finite at position 1"):
        record(["a", "b"], [0.0, math.inf])
    with pytest.raises(InputError, match="negative"):
        record(["a"], [0.0], divergence=[-1.0])


# Classes


@settings(deadline=None)
@given(TEXTS, st.text(max_size=60), st.text(max_size=60))
def test_every_token_has_one_class_whatever_the_text(text, privileged, question):
    found = classify(text, privileged, question)
    assert len(found) == len(text)
    assert set(found) <= set(CLASSES)


@pytest.mark.parametrize(
    ("token", "kind"),
    [(" However", "style"), (" wait", "style"), (" 42", "maths"), ("\\frac", "maths"), (" x", "maths"), (" =", "maths"),
     ("\n\n", "format"), ("**", "format"), ("</think>", "format"), ("<|im_end|>", "format"), ("\\boxed", "format"),
     (".", "format"), (" triangle", "words"), ("", "format"), ("- ", "format"), ("<｜end▁of▁sentence｜>", "format")],
)  # fmt: skip
def test_a_token_is_what_the_table_says(token, kind):
    assert classify([token]) == (kind,)


def test_a_piece_is_judged_by_its_word():
    assert classify(["how", "ever", " tri", "angle"]) == ("style", "style", "words", "words")


def test_a_number_holds_its_separators():
    assert classify(["1", ",", "200", ".", "5", ".", "\n"]) == (*["maths"] * 5, "format", "format")


def test_quoting_the_solution_is_copying_and_quoting_the_question_is_not():
    solution = "first multiply seven boxes by nine apples then subtract"
    text = [" multiply", " seven", " boxes", " by", " nine", " apples", " dog"]
    assert classify(text, solution) == (*["copied"] * 6, "words")
    assert "copied" not in classify(text, solution, question="Please " + solution)
    assert "copied" not in classify(text[:5], solution), "five words are no copy"


def test_the_share_of_a_class_is_what_was_put_there():
    text = [" so", " 4", "\n", " dog"]
    one = record(text, [0, 0, 0, 0], problem="a", divergence=[6, 2, 1, 1])
    two = record(text, [0, 0, 0, 0], problem="b", divergence=[2, 6, 1, 1], weight=[1, 1, 1, 0])
    rows = {r.name: r for r in divergence_by_class([one, two], [classify(text)] * 2)}
    assert [rows[c].of_divergence.value for c in ("style", "maths", "format", "words")] == pytest.approx(
        [8 / 19, 8 / 19, 2 / 19, 1 / 19], abs=EXACT
    )
    assert rows["words"].tokens == 1
    assert rows["copied"].of_divergence.value == 0


@settings(deadline=None, max_examples=20)
@given(some_records(), st.randoms())
def test_shares_sum_to_one_and_depend_on_no_order_and_no_name(records, chance):
    kinds = [classify(r.text) for r in records]
    rows = divergence_by_class(records, kinds)
    total = sum(r.share_of_loss.sum() for r in records)
    assert sum(r.of_divergence.value for r in rows) == (
        pytest.approx(1) if total else pytest.approx(math.nan, nan_ok=True)
    )
    order = list(range(len(records)))
    chance.shuffle(order)
    other = [renamed(records[i]) for i in order]
    again = divergence_by_class(other, [kinds[i] for i in order])
    for a, b in zip(rows, again, strict=True):
        assert a.of_divergence.value == pytest.approx(b.of_divergence.value, nan_ok=True)
        assert a.tokens == b.tokens


def renamed(r):
    """The same completion of a problem that is called otherwise (and sorts otherwise)."""
    values = {name: getattr(r, name) for name in r.__dataclass_fields__}
    return TokenRecord(**values | {"problem": chr(200 - ord(r.problem[0]))})


# Right against wrong hints


def test_contrast_of_the_source():
    e = contrast(np.log([0.6]), np.log([[0.2], [0.4]]))
    assert e == pytest.approx([0.6931471806], abs=EXACT)
    mean_of_logs = math.log(0.6) - (math.log(0.2) + math.log(0.4)) / 2
    assert mean_of_logs == pytest.approx(0.7520386984, abs=EXACT)
    with pytest.raises(InputError):
        contrast(np.log([0.6]), np.log([0.2]))


def test_style_that_every_hint_moves_is_cancelled_and_knowledge_stays():
    text, kinds = [" so", " 4", " 9"], classify([" so", " 4", " 9"])
    records = [record(text, [0.8, 0.8, 9.0], weight=[1, 1, 0], problem=p) for p in "ab"]
    wrong = [np.array([[-0.2, -1.0, -1.0]] * 3)] * 2  # style moves as under the right hint, the number does not
    rows = {r.name: r for r in contrast_by_class(records, wrong, [kinds] * 2)}
    assert (rows["style"].right.value, rows["maths"].right.value) == pytest.approx((0.8, 0.8), abs=EXACT)
    assert (rows["style"].contrast.value, rows["maths"].contrast.value) == pytest.approx((0, 0.8), abs=EXACT)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 0), min_size=1, max_size=5), st.floats(-5, 0), st.randoms())
def test_contrast_takes_wrong_hints_in_any_order_and_is_at_most_the_mean_of_logs(wrong, right, chance):
    rows = np.array(wrong)[:, None]
    e = contrast(np.array([right]), rows)
    chance.shuffle(wrong)
    assert contrast(np.array([right]), np.array(wrong)[:, None]) == pytest.approx(e, abs=1e-12)
    assert e[0] <= right - rows.mean() + 1e-12
    assert contrast(rows[0], rows[:1]) == pytest.approx([0.0], abs=1e-12)


# Correctness alignment and marker pressure


def test_alignment_of_the_source_averages_inside_problems():
    one = [("one", d, s) for d, s in ((0.02, "correct"), (0.05, "correct"), (-0.04, "wrong"), (0.0, "wrong"))]
    two = [("two", d, s) for d, s in ((0.10, "correct"), (0.04, "wrong"), (0.02, "wrong"))]
    alone = [("three", 9.0, "correct"), ("four", -9.0, "wrong"), ("two", 5.0, "unjudged")]
    records = [record(["x", "y"], [d, d], problem=p, status=s) for p, d, s in one + two + alone]
    found = correctness_alignment(records)
    assert found.value == pytest.approx(0.0625, abs=EXACT)
    assert found.n == 2
    pooled = np.mean([d for _, d, s in one + two if s == "correct"]) - np.mean(
        [d for _, d, s in one + two if s == "wrong"]
    )
    assert pooled == pytest.approx(0.0516666667, abs=EXACT)
    assert 0.055 - EXACT <= found.low <= found.high <= 0.07 + EXACT


def test_marker_pressure_of_the_source():
    r = TokenRecord("p", (" wait", " dog"), np.log([0.3, 0.5]), np.log([0.05, 0.5]), *np.ones((4, 2)))
    found = marker_pressure([r])
    assert found.log_ratio.value == pytest.approx(-1.7917594692, abs=EXACT)
    assert found.mass.value == pytest.approx(-0.25, abs=EXACT)
    assert (found.elsewhere.value, found.entropy.value, found.tokens) == (0, 0, 1)
    assert markers(["But", " Button", " dog"]).tolist() == [True, True, False]


def test_marker_pressure_by_entropy_and_by_verdict():
    """Two problems, one right and one wrong; the teacher presses only where the student was sure."""
    text, entropy = [" wait", " dog", " but", " dog"], np.array([0.1, 9.0, 2.0, 9.0])
    records = [
        record(text, [-2.0 + more, 7.0, 1.0, 7.0], problem=status, status=status, entropy=entropy)
        for status, more in (("correct", 0.0), ("wrong", -1.0))
    ]
    found = {name: one.value for name, one in marker_pressure_split(records).items()}
    assert found == pytest.approx({"sure": -2.5, "unsure": 1.0, "right": -0.5, "wrong": -1.0})
    assert marker_pressure_split([])["sure"].n == 0


def test_a_teacher_that_would_rather_end():
    top = np.array([[1, 2, 3, 4], [1, 9, 9, 9]])
    stop = np.log([[0.1, 0.1, 0.3, 0.1], [0.5, 0.4, 0.2, 0.9]])
    found = heads(top, stop, np.array([True, True, True, False]))
    assert (found.disagree, found.leans_to_stop) == pytest.approx((2 / 3, 0.5), abs=EXACT)
    assert math.isnan(heads(top, stop, np.zeros(4, dtype=bool)).disagree)


@settings(deadline=None, max_examples=20)
@given(some_records(), st.randoms())
def test_alignment_and_pressure_depend_on_no_order_and_no_name(records, chance):
    other = [renamed(r) for r in records]
    chance.shuffle(other)
    same = {"abs": 1e-12, "nan_ok": True}
    assert correctness_alignment(other).value == pytest.approx(correctness_alignment(records).value, **same)
    assert marker_pressure(other).log_ratio.value == pytest.approx(marker_pressure(records).log_ratio.value, **same)
    assert noise_rate(other).rate.value == pytest.approx(noise_rate(records).rate.value, **same)


# Answer tokens and the teacher's reliability


def test_a_sign_against_the_verdict_is_noise():
    text = ["12", " so", " \\boxed{", "1", "2", "}"]
    problem = Problem("a", "?", answer="12")
    verdict = verify(problem, "".join(text))
    assert (verdict.status, verdict.extracted) == ("correct", "12")
    right = record(text, [-1, -1, 0, 0.5, -0.5, 0], problem="a", status=verdict.status, extracted=verdict.extracted)
    wrong = record(text, [9, 9, 9, 0.5, 0.0, 9], problem="b", status="wrong", extracted="12")
    unsaid = record(["dog"], [-1], problem="c", status="wrong", extracted="cat")
    assert answer_positions(right).tolist() == [3, 4], "the last place, not the first"
    found = noise_rate([right, wrong, unsaid, record(text, [-1] * 6, problem="d")])
    assert (found.rate.value, found.silent.value, found.tokens) == (0.5, 0.25, 4)
    assert noise_rate([right]).rate.value == 0.5
    unseen = record(
        text, [-1, -1, 0, 0.5, -0.5, 0], problem="a", status="correct", extracted="12", weight=[1] * 4 + [0, 1]
    )
    assert (noise_rate([unseen]).rate.value, noise_rate([unseen]).tokens) == (0, 1), (
        "what the loss leaves out is no signal"
    )


@settings(deadline=None)
@given(some_records())
def test_turning_every_sign_turns_the_noise(records):
    turned = [
        record(r.text, -r.difference, problem=r.problem, weight=r.weight, status=r.verdict.status, extracted="12")
        for r in records
    ]
    one, two = noise_rate(records), noise_rate(turned)
    if one.tokens:
        d = np.concatenate(
            [r.difference[counted_answer(r)] for r in records if r.verdict.status in ("correct", "wrong")]
        )
        if (d != 0).all():
            assert one.rate.value + two.rate.value == pytest.approx(1)
        assert 0 <= one.rate.low <= one.rate.value <= one.rate.high or one.rate.n < 2


@pytest.mark.parametrize(("success", "chance"), [(0.3, 0.216), (0.5, 0.5), (0.8, 0.896)])
def test_how_often_the_gate_opens(success, chance):
    assert open_probability(success) == pytest.approx(chance, abs=EXACT)


def test_two_of_three_open_the_gate_and_one_does_not():
    assert gate_open(2, 3)
    assert not gate_open(1, 3)
    assert gate_open(200, 300, Fraction(2, 3))
    with pytest.raises(UsageError):
        gate_open(4, 3)
    with pytest.raises(UsageError):
        open_probability(1.1)


def test_a_teacher_that_is_sure_when_wrong_is_told_by_its_probes():
    probes = {"a": [1.0, 1.0, 0.0], "b": [0.0, 0.0, 1.0]}
    found = reliability(probes, {"a": [0.2, 0.3, 0.9], "b": [0.8, 0.7, 0.1]})
    assert found.open == {"a": True, "b": False}
    assert (found.success.value, found.confident) == (0.5, 0.0)
    assert math.isnan(reliability(probes).confident)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20))
def test_auroc_counts_pairs(pairs):
    found = auroc([s for s, _ in pairs], [y for _, y in pairs])
    above, below = [s for s, y in pairs if y], [s for s, y in pairs if not y]
    if not above or not below:
        assert math.isnan(found)
    else:
        counted = [Fraction(1 if a > b else 0) + Fraction(a == b, 2) for a in above for b in below]
        assert found == pytest.approx(float(sum(counted) / len(counted)), abs=1e-12)


@settings(deadline=None)
@given(TEXTS)
def test_spans_cover_the_text(text):
    assert "".join("".join(text)[a:b] for a, b in spans(text)) == "".join(text)


def test_records_of_a_problem_are_resampled_together():
    chance = random.Random(0)
    shifts = [(str(p), chance.gauss(0, 1)) for p in range(8)]
    records = [record(["x"], [d], problem=p, status="correct") for p, d in shifts]
    records += [record(["x"], [0], problem=p, status="wrong") for p, _ in shifts]
    once, often = correctness_alignment(records), correctness_alignment(records * 9)
    assert (often.value, often.n) == (pytest.approx(once.value), 8)
    # Nine copies of what was seen are no more evidence.
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    assert once.low < once.value < once.high
