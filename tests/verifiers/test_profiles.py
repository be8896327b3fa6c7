"""Profiles beside each other, the dual-path one, the cache, and the seam where a jail starts the worker."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import verifiers
from verifiers.answers import equivalence
from verifiers.answers.dual_path import answer_field

from .conftest import Problem, boxed

PIECES = st.sampled_from(
    ["\\boxed{41}", "\\boxed{42}", "\\boxed{", "Answer: 41", "Answer: 42.", "The answer is 42.", "<think>", "</think>",
     "7", "\n", " ", "#### 42", "<answer>41</answer>", "it is", "```\n"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=8).map("".join)


def right(text: str, profile: str, gold: str = "42") -> bool:
    return verifiers.verify(Problem(gold), text, profile=profile).correct


@pytest.mark.parametrize(
    ("text", "correct"),
    [
        ("Answer: 42", True),
        ("so the answer : 42.", True),
        ('Answer: "42"', True),
        ("Answer: \\boxed{42}", True),
        ("Answer: $42$\n", True),
        ("Answer: 42\nAnswer: 41", False),
        ("Answer: 41\nso \\boxed{42}", True),
        ("Answer: 42\nso \\boxed{41}", True),
        ("<think>\\boxed{42}", True),
        ("<think>Answer: 42</think> none", True),
        ("\\boxed{42} \\boxed{41}", False),
        ("\\boxed{42} then 41 \\boxed{4", True),
        ("in all 42", True),
        ("42 and then 41", False),
        ("Answer: 5!", False),
        ("none", False),
        ("", False),
    ],
)
def test_the_dual_path_finds_what_either_place_states(text, correct):
    assert right(text, "crisp") == correct


def test_the_dual_path_keeps_a_factorial_and_drops_a_sentence_end():
    assert answer_field("Answer: 5!") == "5!"
    assert answer_field("Answer: 5?!?.") == "5?!"
    assert answer_field("Answer: ...") is None
    assert answer_field("no such line") is None
    assert right("Answer: 5!", "crisp", "120")


@given(text=TEXTS)
@settings(max_examples=300, deadline=None)
def test_a_looser_profile_finds_an_answer_wherever_a_stricter_one_does(text):
    strict, lenient, last = (verifiers.extract(text, name) for name in ("strict", "lenient", "last_number"))
    if strict.answer is not None:
        assert lenient.answer is not None or lenient.rule.startswith("the last mark")
    if lenient.answer is not None:
        assert last == lenient


@given(text=TEXTS)
@settings(max_examples=300, deadline=None)
def test_the_dual_path_is_right_exactly_if_one_of_its_places_is(text):
    field = answer_field(text)
    without_lines = text.replace("Answer:", "answer is").replace("answer :", "answer is")
    assert right(text, "crisp") == ((field is not None and boxed("42", field).correct) or right(without_lines, "crisp"))


def test_spellings_of_one_answer_are_compared_once(monkeypatch):
    monkeypatch.setattr(equivalence, "_CACHE", equivalence._Cache(100))
    asked = []
    compare = equivalence._compare
    monkeypatch.setattr(equivalence, "_compare", lambda gold, answer: asked.append(answer) or compare(gold, answer))
    for answer in (
        "\\frac{1}{2}",
        "\\dfrac{1}{2}",
        "$\\tfrac{1}{2}$",
        " {\\frac{1}{2}} ",
        "\\displaystyle \\frac{1}{2}",
    ):
        assert equivalence.judge("0.5", answer).status == "correct"
    assert len(asked) <= 2
    equivalence.judge("0.25", "\\frac{1}{2}")
    assert asked[-1] == "\\frac{1}{2}", "another gold is another question"
