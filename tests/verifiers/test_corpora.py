"""Corpora that are not part of the repository: how answers ought to be judged, and golds in prose."""

from __future__ import annotations

import verifiers

from .conftest import Problem, boxed
from .test_answers import SETTINGS

# Cases we judge otherwise than the corpus, each with the reason. All are refusals; a false acceptance is never listed.
KNOWN_GAPS: dict[str, str] = {}

PROSE = (
    "They add up.\n\nSo the final answer is $\\boxed{{{}}}$.",
    "We get\n\\[\\boxed{{{}}}\\]",
    "Step by step.\nAnswer: {}",
    "**Answer:** ${}$",
    "That makes {0}.\n#### {0}\n",
    "<think>5 or 6?</think>It is \\fbox{{{}}}",
)


def test_math_cases_are_judged_as_their_policies_say(shared):
    cases = shared("math-cases.jsonl.gz")
    accepted, refused = [], []
    for case in cases:
        verdict = verifiers.verify(Problem(case["gold"]), case["prediction_text"])
        assert verdict.status != "error", (case["id"], verdict)
        if verdict.correct and not case["expected"]:
            accepted.append((case["id"], case["why"], verdict))
        elif case["expected"] and not verdict.correct:
            refused.append(case["id"])
    assert not accepted
    unexplained = [name for name in refused if name not in KNOWN_GAPS]
    assert not unexplained
    agreement = 1 - len(refused) / len(cases)
    print(f"{len(cases)} cases: agreement {agreement:.1%}, false acceptances {len(accepted)}, refused {refused}")
    assert agreement >= 0.97


def test_math_cases_are_symmetric(shared):
    for case in shared("math-cases.jsonl.gz"):
        found = verifiers.extract(case["prediction_text"])
        if found.answer is None:
            continue
        forth = verifiers.verify(Problem(case["gold"]), f"\\boxed{{{found.answer}}}")
        back = verifiers.verify(Problem(found.answer), f"\\boxed{{{case['gold']}}}")
        assert forth.correct == back.correct, case["id"]


def test_golds_in_prose_agree_and_their_neighbours_do_not(shared):
    names = ("gsm8k-train.jsonl.gz", "gsm8k-test-public.jsonl.gz")
    for gold in sorted({row["answer"] for name in names for row in shared(name)}):
        assert verifiers.check_gold(gold) is None, gold
        for text in PROSE:
            assert verifiers.verify(Problem(gold), text.format(gold)).correct, (gold, text)
        assert not verifiers.verify(Problem(gold), PROSE[0].format(f"{gold}1")).correct


def test_competition_golds_in_prose_agree(shared):
    for row in shared("math500-public.jsonl.gz"):
        gold = row["answer"]
        assert verifiers.check_gold(gold) is None, gold
        for text in PROSE:
            verdict = verifiers.verify(Problem(gold), text.format(gold))
            assert verdict.correct, (gold, text, verdict)


def test_a_worked_solution_is_judged_by_its_last_box(shared):
    for row in shared("math500-public.jsonl.gz"):
        verdict = verifiers.verify(Problem(row["answer"]), row["solution"])
        assert verdict.correct, (row["answer"], verdict)


def test_golds_agree_however_they_are_set(shared):
    """Every distinct gold of both sets in a box, in each of the ways of setting one."""
    assert len(SETTINGS) >= 12
    names = ("gsm8k-train.jsonl.gz", "gsm8k-test-public.jsonl.gz", "math500-public.jsonl.gz")
    golds = sorted({row["answer"] for name in names for row in shared(name)})
    refused = []
    for gold in golds:
        refused += [
            (gold, name, set_so(gold)) for name, set_so in SETTINGS.items() if not boxed(gold, set_so(gold)).correct
        ]
    print(f"{len(golds)} golds in {len(SETTINGS)} settings: {len(refused)} refused")
    assert not refused
