"""What must hold for every text and every answer."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import verifiers
from verifiers.answers.equivalence import judge
from verifiers.answers.notation.characters import tidy
from verifiers.answers.notation.grammar import parse
from verifiers.answers.notation.tokens import tokenise
from verifiers.answers.values.evaluation import FLOATS, Evaluation, Undefined
from verifiers.answers.values.exact import rational
from verifiers.answers.values.polynomial import normal_form, square_free

from .conftest import Problem, boxed

PIECES = st.sampled_from(
    [
        *[
            "\\boxed{",
            "}",
            "{",
            "Answer: ",
            "#### ",
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "\n",
            "\\frac",
            "\\sqrt",
        ],
        *[
            "1",
            "42",
            "x",
            "y",
            "+",
            "-",
            "/",
            "^",
            "_",
            "(",
            ")",
            "[",
            "]",
            ",",
            "=",
            "<",
            "\\cup",
            "\\text{",
            "°",
            "½",
            "√",
        ],
        *[
            "%",
            "$",
            "\\",
            ".",
            "\ud800",
            "\udfff",
            "\x00",
            "\u202e",
            "\u200b",
            "٣",
            "𝟒",
            "Å",
            "\\\\",
            "&",
            "\\pm",
            "or",
            "!",
        ],
        "\\begin{pmatrix}",
    ]
)
TEXTS = st.one_of(st.text(max_size=300), st.lists(PIECES, max_size=40).map("".join))

# Answers that are built to be readable.
NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.builds("{}.{}".format, st.integers(0, 999), st.integers(0, 999)),
    st.builds(r"\frac{{{}}}{{{}}}".format, st.integers(-99, 99), st.integers(1, 99)),
    st.builds(r"{}\sqrt{{{}}}".format, st.integers(2, 20), st.integers(1, 60)),
    st.builds(r"{}\pi".format, st.integers(2, 20)),
)
TERMS = st.one_of(NUMBERS, st.builds("{}{}".format, st.integers(2, 9), st.sampled_from(["x", "y", "x^2", "xy"])))
SUMS = st.lists(TERMS, min_size=1, max_size=3).map(" + ".join)
ANSWERS = st.one_of(
    SUMS,
    st.builds("({}, {})".format, NUMBERS, NUMBERS),
    st.builds("{}, {}".format, NUMBERS, NUMBERS),
    st.builds(r"\{{{}, {}\}}".format, NUMBERS, NUMBERS),
    st.builds(r"{} \text{{ {}}}".format, NUMBERS, st.sampled_from(["cm", "dollars", "apples"])),
    st.builds("{} = {}".format, st.sampled_from("xyz"), NUMBERS),
    st.sampled_from(["yes", "\\text{even}", "(C)", "\\emptyset", "x > 3", "2516_8", "50\\%", "90^\\circ"]),
)


@given(text=TEXTS, gold=TEXTS, truncated=st.booleans(), profile=st.sampled_from(list(verifiers.PROFILES)))
@settings(max_examples=400, deadline=None)
@example("\\boxed{\ud800}", "\ud800", False, "strict")
@example("\\boxed{" + "(" * 5000 + "}", "1", False, "strict")
def test_every_text_gets_a_verdict(text, gold, truncated, profile):
    verdict = verifiers.verify(Problem(gold), text, truncated=truncated, profile=profile)
    assert verdict.status in verifiers.STATUSES
    assert verdict.status != "error", verdict
    assert verdict.score in (0.0, 1.0, None)
    assert "\n" not in verdict.reason


@given(answer=TEXTS, gold=TEXTS)
@settings(max_examples=300, deadline=None)
def test_any_two_texts_compare_the_same_way_round(answer, gold):
    assert judge(gold, answer).status == judge(answer, gold).status
    assert verifiers.check_gold(gold) is None or verifiers.check_gold(gold).endswith(".")


@given(answer=ANSWERS)
@settings(max_examples=200, deadline=None)
def test_gold_accepts_gold(answer):
    assert verifiers.check_gold(answer) is None
    assert boxed(answer, answer).correct
    assert verifiers.verify(Problem(answer), f"Answer: {answer}").correct
    assert boxed(answer, f" {answer} .").correct


@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_gold_that_passes_its_check_accepts_itself(text):
    if verifiers.check_gold(text) is None and "boxed" not in text:
        assert boxed(text, text).correct


@given(one=ANSWERS, other=ANSWERS)
@settings(max_examples=300, deadline=None)
def test_equivalence_is_symmetric(one, other):
    assert judge(one, other).status == judge(other, one).status


@given(terms=st.lists(TERMS, min_size=2, max_size=4), data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_order_of_a_sum_does_not_matter(terms, data):
    assert judge(" + ".join(terms), " + ".join(data.draw(st.permutations(terms)))).status == "correct"


@given(term=SUMS, shift=st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_adding_something_changes_the_answer(term, shift):
    assert judge(term, f"{term} + {shift}").status == "wrong"


@given(p=st.integers(-999, 999), q=st.integers(1, 999), k=st.integers(2, 30))
@settings(max_examples=100, deadline=None)
def test_a_fraction_equals_its_expansions_and_no_neighbour(p, q, k):
    gold = f"\\frac{{{p}}}{{{q}}}"
    assert judge(gold, f"{p * k}/{q * k}").status == "correct"
    assert judge(gold, f"{p * k + 1}/{q * k}").status == "wrong"


def tree(text: str):
    tokens = tokenise(tidy(text))
    return parse(tokens, 0, len(tokens.items))


@given(text=SUMS)
@settings(max_examples=150, deadline=None)
def test_normal_forms_and_exact_values_agree_with_floats(text):
    node = tree(text)
    form, value = normal_form(node), rational(node)
    assert form is not None
    point = {"x": Fraction(7, 5), "y": Fraction(-3, 2)}
    seen, error = Evaluation(FLOATS, point).of(node)
    total = 0.0
    for key, coefficient in form.items():
        term = float(coefficient)
        for atom, power in key:
            base = (
                atom**0.5 if isinstance(atom, int) else {"const pi": 3.141592653589793}.get(atom) or float(point[atom])
            )
            term *= base**power
        total += term
    assert abs(seen - total) <= 1e-9 * (1 + abs(total))
    assert error < 1e-9 * (1 + abs(seen))
    if value is not None:
        assert form == ({(): value} if value else {})


@given(value=st.integers(1, 10**6))
@settings(max_examples=100, deadline=None)
def test_square_free_parts(value):
    outside, inside = square_free(value)
    assert outside**2 * inside == value
    assert all(inside % (d * d) for d in range(2, int(inside**0.5) + 1))


@pytest.mark.parametrize(
    "text", ["\\frac{1}{x-x}", "0^{-1}", "\\ln 0", "x^{x^{x^{x^{99}}}}", "(10^9)!", "\\infty - \\infty"]
)
def test_what_has_no_value_has_none(text):
    assert rational(tree(text)) is None
    with pytest.raises(Undefined):
        Evaluation(FLOATS, {"x": Fraction(17, 10)}).of(tree(text))
