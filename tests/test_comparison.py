"""Arms beside each other: fronts, pairs, bins and columns, on answers whose outcome is known."""

from __future__ import annotations

import math

import pytest

from workbench.errors import InputError
from workbench.train.comparison import against, beside, by_group, moved, needed_for, pareto, passes_table
from workbench.train.evaluate import Answer, ArmResult
from workbench.train.intervals import needed_n


def answer(problem: str, right: bool | None, tokens: int = 10, index: int = 0, text: str = "said") -> Answer:
    status = "truncated" if right is None else "correct" if right else "wrong"
    return Answer(problem, index, status, None if right is None else float(right), tokens, "stop", text, "7", "7")


def arm(name: str, *rights: bool, tokens: int = 10, samples: int = 1) -> ArmResult:
    """Problems p0, p1, ...: `samples` answers each, all alike."""
    return ArmResult(name, tuple(answer(f"p{i}", r, tokens, k) for i, r in enumerate(rights) for k in range(samples)))


def test_the_front_holds_whom_nobody_beats() -> None:
    long_right = arm("long", True, True, tokens=50)
    short_wrong = arm("short", True, False, tokens=5)
    beaten = arm("beaten", True, False, tokens=60)
    twin = arm("twin", True, False, tokens=5)
    assert pareto([long_right, short_wrong, beaten]) == ("short", "long")
    assert set(pareto([short_wrong, twin])) == {"short", "twin"}, "equals beat nobody"
    assert pareto([arm("same length", False, False, tokens=5), short_wrong]) == ("short",), "one strictly is enough"
    assert pareto([]) == ()


def test_pairs_are_signed_and_lengths_are_ratios() -> None:
    base, other = arm("base", False, True, tokens=40), arm("other", True, True, tokens=10)
    accuracy, tokens = against(base, [other])
    assert (accuracy.name, accuracy.estimate.value, accuracy.reference) == ("other - base", 0.5, 0.0)
    assert (tokens.name, tokens.estimate.value, tokens.reference) == ("other / base", 0.25, 1.0)
    assert tokens.estimate.n == 2
    assert not tokens.clear, "two problems show nothing"
    with pytest.raises(ValueError, match="not the same problems"):
        against(base, [arm("fewer", True)])


def test_how_many_problems_a_claim_needs() -> None:
    base = arm("base", *[False, True] * 4)
    mixed = arm("mixed", *[True, False] * 4)  # differences +1 and -1, four each: deviation sqrt(8 / 7)
    assert needed_for(base, mixed, 0.02) == needed_n(0.02, math.sqrt(8 / 7))
    assert needed_for(base, base, 0.02) == needed_n(0.02, 1 / math.sqrt(8)), "agreement of eight is no certainty"
    assert needed_for(base, mixed, 0.1) < needed_for(base, mixed, 0.02)
    with pytest.raises(InputError, match=r"1 problems were judged .* Ask more problems"):
        needed_for(arm("a", True), arm("b", True))


def test_bins_hold_their_problems_alone() -> None:
    arms = [arm("a", True, False, True), arm("b", False, False, True)]
    found = by_group(arms, {"p0": "1 step", "p1": "2 steps", "p2": "2 steps"})
    assert list(found) == ["1 step", "2 steps"]
    assert [a.name for a in found["2 steps"]] == ["a", "b"]
    assert [a.arm.correct for a in found["1 step"]] == [1, 0]
    assert [a.arm.correct for a in found["2 steps"]] == [1, 1]
    assert list(by_group(arms, {"p1": "2 steps"})) == ["2 steps"], "others are left out"


def test_one_answer_and_several() -> None:
    """Two of four right on the one problem, none on the other: pass@1 1/4, pass@2 (1 - 1/6) / 2, pass@4 1/2."""
    rights = [("p0", True), ("p0", False), ("p0", True), ("p0", False), *[("p1", False)] * 4]
    text = passes_table([ArmResult("a\x1b[31m", tuple(answer(p, r, index=i) for i, (p, r) in enumerate(rights)))])
    head, row = text.splitlines()
    assert head.split()[:5] == ["arm", "mean@4", "pass@1", "pass@2", "pass@4"]
    assert row.split()[1:5] == ["0.250", "0.250", "0.417", "0.500"]
    assert row.startswith("a\\x1b[31m "), "a name is hostile"
    cut = passes_table([ArmResult("cut", (answer("p0", True), answer("p1", None, index=0)))])
    assert cut.splitlines()[1].split()[-3:] == ["1/2", "0/2", "0/2"], "cut, no answer, unparsed apart"
    assert passes_table([]).startswith("arm")


def test_what_got_worse_is_shown_first_and_never_invented() -> None:
    before = ArmResult("b", (answer("worse", True, 9), answer("better", False, 9), answer("longer", True, 10)))
    after = ArmResult("a", (answer("worse", False, 8), answer("better", True, 9), answer("longer", True, 90)))
    found = moved(before, after)
    assert list(found) == ["worse", "better", "longer"]
    assert found["worse"] == "got worse: right 1.00 -> 0.00, tokens 9 -> 8"
    assert found["better"].startswith("got better")
    assert found["longer"] == "as often right: right 1.00 -> 1.00, tokens 10 -> 90"
    assert "worse" not in " ".join(moved(before, before).values())
    assert len(moved(before, after, 1)) == 1


def test_columns_show_the_usual_answer_with_nothing_invisible() -> None:
    texts = ["right one", "wrong\x1b[2J one\nsecond line", "wrong two"]
    answers = [answer("p\u202e", k == 0, 10 + k, k, text) for k, text in enumerate(texts)]
    text = beside("p\u202e", [ArmResult("one", tuple(answers)), ArmResult("other", ())], width=20)
    lines = text.splitlines()
    assert lines[0] == "p\\u202e"
    assert lines[2] == "wrong, 11 tokens     | not asked"
    assert "wrong\\x1b[2J one" in lines[4]
    assert "second line" in lines[5]
    assert "wrong two" not in text
    long = beside("p", [ArmResult("one", (answer("p", True, text="word " * 200),))], width=20, lines=3)
    assert long.splitlines()[-1] == "..."
    assert len(long.splitlines()) == 1 + 3 + 3
