r"""No answer is right for two golds that differ, however its numbers are stretched, and no verdict takes for ever."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import verifiers
from verifiers.answers.values import polynomial

from .conftest import Problem

GOLDS = (
    "5",
    "0",
    r"\pi",
    r"\frac13",
    r"\ln 3",
    "x+1",
    "10^9",
    "i",
    "e^x",
    r"\infty",
    "(1,2)",
    r"\mathbb{R}",
    "yes",
    "B",
)
"""Pairwise different."""


def boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


# ruff: noqa: SIM905
ATOMS = st.sampled_from(
    r"1 0 5 x \pi e i 10^{300} 10^{-300} 10^{290} \infty \ln{2} \sin(1) \tan(\pi/2) 1000! \sqrt{-1} 1e300 \ln{0} "
    r"\frac10 \pm1 \emptyset \mathbb{R} (0,0) \text{B} \lfloor10^{300}\sin{1}\rfloor \cot{0} 0^0 \arcsin{2}".split()
)
ROUND = st.sampled_from(
    [
        r"({})",
        r"\sqrt{{{}}}",
        r"\ln({})",
        r"\sin({})",
        r"\tan({})",
        r"e^{{{}}}",
        r"|{}|",
        r"\frac1{{{}}}",
        "x={}",
        "-{}",
    ]
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds(lambda shape, a: shape.format(a), ROUND, inner),
        st.builds(lambda a, sign, b: a + sign + b, inner, st.sampled_from(["+", "-", r"\cdot ", "/", "=", ","]), inner),
        st.builds(lambda a, b: f"{a}+{b}-{a}", st.sampled_from(["10^{300}", "10^{250}", r"10^{299}\sin{1}"]), inner),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(answer=EXPRESSIONS)
@example(answer=r"10^{300}+\ln 2-10^{300}")
@example(answer=r"10^{250}\sin(1)+\ln 2-10^{250}\sin(1)")
@example(answer=r"\sin(10^{300})")
@example(answer=r"\tan(10^{299})")
@example(answer=r"10^{290}(\ln 6-\ln 2-\ln 3)")
def test_no_answer_is_right_for_two_golds(answer):
    right = [gold for gold in GOLDS if verifiers.verify(Problem(gold), boxed(answer)).correct]
    assert len(right) <= 1


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\arcsin 1", r"\frac{\pi}{2}"),  # the edge of a domain
        (r"\sin^{-1}(1)", r"\frac{\pi}{2}"),
        (r"\arccos(-1)", r"\pi"),
        (r"10^{20}(\sqrt{3+2\sqrt2}-1)", r"10^{20}\sqrt2"),
        (r"\sqrt{3+2\sqrt2}-1-\sqrt2", "0"),  # what cancelled is measured by what it cancelled from
        (r"e^{-400}\sqrt{3+2\sqrt2}", r"e^{-400}(1+\sqrt2)"),
    ],
)
def test_honest_values_at_the_edge_are_still_told(answer, gold):
    assert verifiers.verify(Problem(gold), boxed(answer)).status == "correct"


@pytest.mark.parametrize(
    "condition", [r"\{x\in\mathbb{Z}:x>1\}", r"\{x\in(0,5):x>1\}", r"\{(x,y):x>1\}", r"\{2x:x>1\}"]
)
def test_a_condition_on_something_else_than_a_real_is_no_interval(condition):
    assert verifiers.verify(Problem(r"(1,\infty)"), boxed(condition)).status == "unparsed"
    for same in (r"\{x\in\mathbb{R}:x>1\}", r"\{x|x>1\}"):
        assert verifiers.verify(Problem(r"(1,\infty)"), boxed(same)).correct


@pytest.mark.parametrize(
    "word", "tenths ish invalid none lakh k bn halves doubled thereabouts upwards impossible".split()
)
def test_a_word_that_makes_another_number_of_it_is_no_unit(word):
    assert verifiers.verify(Problem("5"), boxed(rf"5\text{{ {word}}}")).status == "unparsed"


@pytest.mark.parametrize("phrase", ["odd numbers", "invalid votes", "maximum points", "fourth graders", "false coins"])
def test_such_a_word_before_a_noun_is_the_noun_s(phrase):
    assert verifiers.verify(Problem("5"), boxed(rf"5\text{{ {phrase}}}")).correct


@pytest.mark.parametrize(
    "text", ["1/42", "2^42", "x = a42", "1,42", "5-42", "x_42", "2^{42", "42x", "42/7", "42^2", "a-42"]
)
def test_the_last_number_is_none_where_it_is_a_part_of_something(text):
    for gold in ("42", "-42", "7", "2"):
        assert not verifiers.verify(Problem(gold), text, profile="last_number").correct


def test_an_overridden_direction_is_not_invisible():
    assert not verifiers.verify(Problem("42"), boxed("\u202e24")).correct
    assert not verifiers.verify(Problem("24"), boxed("\u202e24")).correct  # what is seen is 42
    assert verifiers.verify(Problem("42"), boxed("4\u200b2")).correct


@pytest.mark.parametrize(
    "opening", ["<THINK>", "<Thought>", "<thinking>", "<thought>", "<reasoning>", "◁think▷", "[THINK]"]
)
def test_a_thought_is_one_by_any_tag(opening):
    closing = opening.replace("<", "</").replace("◁", "◁/").replace("[", "[/")
    assert verifiers.verify(Problem("42"), rf"{opening}\boxed{{42}}").status == "no_answer"
    assert verifiers.verify(Problem("42"), rf"{opening}\boxed{{42}}{closing}").status == "no_answer"
    assert verifiers.verify(Problem("42"), rf"{opening}\boxed{{41}}{closing}\boxed{{42}}").correct


def test_a_chain_of_equal_sides_costs_no_more_than_its_budget(monkeypatch):
    products = 0
    multiply = polynomial._times

    def counted(left, right):
        nonlocal products
        products += 1
        return multiply(left, right)

    monkeypatch.setattr(polynomial, "_times", counted)
    side = r"(1+\sqrt2+\sqrt3+\sqrt5)^{12}"
    verifiers.verify(Problem("42"), boxed("=".join([side] * 65)))
    assert products <= 2 * polynomial.MOST_PRODUCTS_ALTOGETHER
