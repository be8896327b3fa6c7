"""Which answers state a gold: our own cases, both ways round, and in many settings."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

import verifiers

from .conftest import boxed, own

CASES = own("answers.jsonl")

# What worker-level equality is for: no normal form, no rational value.
HARD = (
    ("\\sqrt2-1", "\\frac{1}{1+\\sqrt2}"),
    ("1+\\sqrt2", "\\sqrt{3+2\\sqrt2}"),
    ("\\cot x", "\\frac{\\cos x}{\\sin x}"),
    ("\\frac{\\pi}{4}", "\\tan^{-1} 1"),
)

GOLDS = (
    "72", "-50", "58500", "\\frac{3}{56}", "-\\frac{35}{9}", "11\\sqrt{2}", "18+2\\pi", "6+9i", "\\cot x", "(6,31,-1)",
    "1,-2", "x^3+3x-6", "5x - 7y + 11z + 4 = 0", "(0,9) \\cup (9,36)", "x \\in [-2,7]", "\\{1\\pm\\sqrt{5},-2\\}",
    "\\begin{pmatrix} -2 \\\\ -14 \\\\ -7 \\end{pmatrix}", "\\text{even}", "90^\\circ", "2516_8", "0.15",
    "864 \\mbox{ inches}^2", "y = 2x + 3", "\\left[ \\frac{\\pi^2}{8}, \\frac{5 \\pi^2}{4} \\right]",
)  # fmt: skip

SETTINGS: dict[str, Callable[[str], str]] = {
    "dfrac": lambda gold: gold.replace("\\frac", "\\dfrac"),
    "spaces": lambda gold: re.sub(r"([-+,=])", r" \1 ", gold),
    "dollars": lambda gold: f"${gold}$",
    "full stop": lambda gold: f"{gold}.",
    "display style": lambda gold: f"\\displaystyle {gold}",
    "minus sign": lambda gold: gold.replace("-", "−"),
    "braces": lambda gold: f"{{{gold}}}",
    "thin space": lambda gold: f"{gold}\\,",
    "said": lambda gold: f"The answer is {gold}",
    "bold": lambda gold: f"\\mathbf{{{gold}}}",
    "markdown": lambda gold: f"**{gold}**",
    "colour": lambda gold: f"\\color{{blue}}{{{gold}}}",
    "line end": lambda gold: f"{gold}\\\\",
    "root sign": lambda gold: re.sub(r"\\sqrt\{(\d+)\}", r"√\1", gold),
    "pi sign": lambda gold: gold.replace("\\pi", "π"),
    "slash": lambda gold: re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2", gold),
}


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['gold']}|{case['answer']}"[:60].encode("ascii", "replace")
)
def test_own_cases(case):
    verdict = boxed(case["gold"], case["answer"])
    assert verdict.correct == case["same"], (case["why"], verdict)


def test_own_cases_are_many_and_of_both_kinds():
    assert len(CASES) > 200
    assert sum(case["same"] for case in CASES) > 80
    assert sum(not case["same"] for case in CASES) > 80


def test_equivalence_is_symmetric_on_own_cases():
    for case in CASES:
        assert boxed(case["gold"], case["answer"]).correct == boxed(case["answer"], case["gold"]).correct, case


@pytest.mark.parametrize("setting", SETTINGS)
def test_how_a_gold_is_set_does_not_matter(setting):
    for gold in GOLDS:
        verdict = boxed(gold, SETTINGS[setting](gold))
        assert verdict.correct, (gold, SETTINGS[setting](gold), verdict)


def test_different_golds_are_different():
    for gold in GOLDS:
        for other in GOLDS:
            if gold != other:
                assert boxed(gold, other).status == "wrong", (gold, other)


@pytest.mark.parametrize(("gold", "answer"), HARD)
def test_what_plain_forms_leave_open_goes_to_the_worker(gold, answer):
    verdict = boxed(gold, answer)
    assert (verdict.status, verdict.level) == ("correct", "worker")


def test_ordinary_answers_need_no_worker():
    verifiers.close()
    for gold, answer in (
        ("72", "72.0"),
        ("\\frac12", "0.5"),
        ("11\\sqrt2", "\\sqrt{242}"),
        ("72", "71"),
        ("x+1", "x-1"),
    ):
        assert boxed(gold, answer).level == "plain"


def test_golds_are_checked():
    for gold in (*GOLDS, "Evelyn", "no solution", "\\text{(C)}", "\\boxed{7}", "3:4"):
        assert verifiers.check_gold(gold) is None, gold
    for unusable in (None, "", "  ", "?", "nan", "\\frac{1}{2", "x" * 3000, "\\int_0^1 x dx", "4 2", "\\weird{3}"):
        reason = verifiers.check_gold(unusable)
        assert reason is not None, unusable
        assert reason.endswith("."), unusable
