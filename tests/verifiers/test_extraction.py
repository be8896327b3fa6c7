"""Which text is the answer, and that finding it is linear work within caps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

import verifiers
from verifiers.answers import extract as extraction
from verifiers.answers.normalise import read

from .conftest import Problem, own

CASES = own("extraction.jsonl")

HOSTILE: dict[str, Callable[[int], str]] = {
    "open boxes": lambda n: "\\boxed{" * (n // 7),
    "whole boxes": lambda n: "\\boxed{4}" * (n // 9),
    "nested boxes": lambda n: "\\boxed{" * (n // 8) + "}" * (n // 8),
    "braces": lambda n: "{" * (n // 2) + "}" * (n // 2),
    "backslashes": lambda n: "\\" * n,
    "blanks": lambda n: "\\boxed{" + " " * n + "42}",
    "answer lines": lambda n: "Answer:" * (n // 7),
    "empty answer lines": lambda n: "Answer:\n\n\n\n" * (n // 11),
    "hashes": lambda n: "#### 1\n" * (n // 7),
    "thoughts": lambda n: "<think></think>" * (n // 15),
    "open thoughts": lambda n: "<think>" * (n // 7),
    "tags": lambda n: "<answer>" * (n // 8),
    "digits": lambda n: f"\\boxed{{{'9' * n}}}",
    "dollars": lambda n: f"\\boxed{{{'$' * n}}}",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_own_cases(case):
    found = verifiers.extract(case["text"], case["profile"], truncated=case["truncated"])
    assert found.answer == case["answer"], found


def steps(call: Callable[[], Any]) -> int:
    """Lines of this room that a call executes."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if "verifiers" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("profile", verifiers.PROFILES)
def test_twice_the_text_is_no_more_than_the_capped_work(kind, profile):
    texts = [HOSTILE[kind](n) for n in (100_000, 200_000)]
    once, twice = (steps(lambda text=text: verifiers.extract(text, profile)) for text in texts)
    # A text of one repeated piece costs the same; one with a middle shows another part of itself in the window.
    assert max(once, twice) < 8 * extraction.TAIL
    assert twice <= 1.5 * once + 50


@pytest.mark.parametrize("kind", HOSTILE)
def test_work_below_the_cap_is_linear(kind):
    texts = [HOSTILE[kind](n) for n in (15_000, 30_000)]
    once, twice = (steps(lambda text=text: verifiers.extract(text, "lenient")) for text in texts)
    assert twice <= 2.2 * once + 50


def test_only_the_tail_is_looked_at():
    for make in HOSTILE.values():
        region, _ = extraction.answer_region(make(200_000))
        assert len(region) <= extraction.TAIL


def test_an_answer_before_the_tail_is_out_of_sight():
    assert verifiers.extract("\\boxed{42}" + "a" * extraction.TAIL).answer is None


def test_long_answers_are_not_read():
    verdict = verifiers.verify(Problem("42"), f"\\boxed{{{'1+' * 2000}1}}")
    assert (verdict.status, verdict.level) == ("unparsed", "plain")


@pytest.mark.parametrize(
    "unit", ["(", "{", "\\frac{", "\\sqrt", "x^", "-", "1+", "|", "\\text{", ",", "=", "1:", "\\pm1", "5 cm "]
)
def test_reading_is_at_most_linear_in_the_answer(unit):
    tail = {"(": ")", "{": "}", "\\frac{": "}", "\\text{": "}"}.get(unit, "")
    texts = [unit * n + "1" + tail * n for n in (100, 200)]
    once, twice = (steps(lambda text=text: read.__wrapped__(text)) for text in texts)
    assert twice <= 2.5 * once + 100


def test_an_unknown_profile_is_the_callers_mistake():
    with pytest.raises(ValueError, match="strict"):
        verifiers.extract("x", "loose")


def test_the_last_number_counts_in_its_own_profile_alone():
    from verifiers import extract

    for text, expected in (
        ("24 + 16 = 40", "40"),
        ("24 + 16 = 40.", "40"),
        ("so 1,250.5 in all", "1,250.5"),
        ("it is -3", "-3"),
        (r"\boxed{7}, after 3 tries", "7"),
        ("Answer: 7\nfound in 3 tries", "7"),
        ("none", None),
        ("<think>5", None),
    ):
        assert extract(text, "last_number").answer == expected
        if "boxed" not in text and "Answer" not in text:
            assert extract(text, "strict").answer is None
            assert extract(text, "lenient").answer is None
    cut = extract("24 + 16 = 4", "last_number", truncated=True)
    assert (cut.answer, cut.cut) == (None, True)
