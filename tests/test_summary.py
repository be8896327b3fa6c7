"""What a run says at its end: signs, pairing and words, from answers whose outcome is known."""

from __future__ import annotations

import pytest

from workbench.evaluate import differences_of, pooled
from workbench.recipes import ALL
from workbench.summary import evaluation_text
from workbench.train.evaluate import Answer, ArmResult, Evaluation


def arm(name: str, right: list[bool], tokens: int) -> ArmResult:
    status = ("wrong", "correct")
    return ArmResult(
        name, tuple(Answer(f"p{i}", 0, status[r], float(r), tokens, "stop", "", None, "1") for i, r in enumerate(right))
    )


def ended(before: list[bool], after: list[bool], nats: tuple[float, float]) -> tuple[list[tuple[str, str]], dict]:
    first = Evaluation("before", (arm("before", before, 50),), {f"p{i}": [nats[0]] for i in range(len(before))})
    last = Evaluation("after", (arm("after", after, 30),), {f"p{i}": [nats[1]] for i in range(len(after))})
    return evaluation_text(ALL["opsdc"], first, last)


def test_better_is_positive_and_called_moved() -> None:
    text, data = ended([False] * 20, [True] * 15 + [False] * 5, (0.4, 0.1))
    accuracy = next(d for d in data["differences"] if d["figure"] == "accuracy")
    assert accuracy["estimate"]["value"] == pytest.approx(0.75)
    assert accuracy["clear"]
    assert data["divergence"]["name"] == "held-out reverse KL"
    assert (data["divergence"]["before"]["value"], data["divergence"]["after"]["value"]) == pytest.approx((0.4, 0.1))
    assert data["verdict"]["word"] == "moved"
    line = dict(text)["verdict"]
    assert "answers more problems right" in line
    assert "moved towards the teacher" in line
    assert "writes shorter completions" in line


def test_worse_is_negative_and_called_so() -> None:
    _, data = ended([True] * 15 + [False] * 5, [False] * 20, (0.1, 0.4))
    assert data["verdict"]["word"] == "got worse"
    assert data["differences"][0]["estimate"]["value"] == pytest.approx(-0.75)


def test_nothing_evaluated_is_said() -> None:
    text, data = evaluation_text(ALL["opsdc"], Evaluation("before", (), None), Evaluation("after", (), None))
    assert "nothing was evaluated" in text[0][1]
    assert data == {}


def test_pooled_seeds_are_averaged_within_a_problem() -> None:
    """Problem 0 right in both seeds, problem 1 in one, problem 2 in none."""
    (after,) = pooled([arm("after", [True, True, False], 9), arm("after", [True, False, False], 9)])
    assert after.scores == {"p0": [1.0, 1.0], "p1": [1.0, 0.0], "p2": [0.0, 0.0]}
    assert after.arm.accuracy.value == pytest.approx(0.5)
    assert after.pass_at(2) == pytest.approx(2 / 3)
    floor = pooled([arm("after", [False] * 10, 9)] * 2)[0]
    assert floor.arm.accuracy.high > 0.1, "0 of 20 is not certainty"


def test_ends_of_two_runs_are_compared_with_each_other() -> None:
    runs = [
        arm("a: before", [False] * 8, 9),
        arm("a: after", [True] * 8, 9),
        arm("b: after", [True] * 4 + [False] * 4, 9),
    ]
    found = {(d.name, d.figure): d.estimate.value for d in differences_of(runs)}
    assert found["b: after - a: after", "accuracy"] == pytest.approx(-0.5)
    assert found["a: after - a: before", "accuracy"] == pytest.approx(1.0)
