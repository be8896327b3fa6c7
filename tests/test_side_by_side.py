"""Several verifiers on the same recorded text, through the command."""

from __future__ import annotations

import json

import pytest

from workbench import evaluate
from workbench.train.evaluate import Answer, ArmResult, Evaluation

TEXTS = {
    "a": ("so \\boxed{42}", "42"),
    "b": ("The answer is 42.", "42"),
    "c": ("Answer: 41, or \\boxed{42}", "42"),
    "d": ("Answer: 42\nno, \\boxed{41}", "42"),
    "e": ("it is 42", "42"),
    "f": ("so \\boxed{42}", None),
    "g": ("so \\boxed{4 2}", "42"),
}
RIGHT = {"strict": "ac", "lenient": "abc", "crisp": "abcde"}


@pytest.fixture
def run_folder(tmp_path):
    def answer(name: str, text: str, gold: str | None) -> Answer:
        status, score = ("wrong", 0.0) if gold is not None else ("unjudged", None)
        return Answer(name, 0, status, score, 5, "stop", text, None, gold)

    answers = tuple(answer(name, *written) for name, written in TEXTS.items())
    row = Evaluation("after", (ArmResult("after", answers),), None).as_row()
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def test_each_verifier_has_its_arm_and_its_statuses(run_folder, capsys):
    assert evaluate.main([str(run_folder), "--verifier", "strict,lenient,crisp", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {arm["name"]: arm["correct"] for arm in data["arms"]} == {
        f"after ({name})": len(right) for name, right in RIGHT.items()
    }
    assert {arm["judged"] for arm in data["arms"]} == {len(TEXTS) - 1}, "no score leaves the denominator"
    found = data["verifiers"]["after"]
    assert found["total"] == len(TEXTS)
    for name, counts in found["statuses"].items():
        assert sum(counts.values()) == len(TEXTS)
        assert (counts["correct"], counts["unjudged"]) == (len(RIGHT[name]), 1)
    for pair in found["apart"]:
        only = set(RIGHT[pair["right"]]) - set(RIGHT[pair["not_right"]])
        assert (pair["answers"], set(pair["problems"])) == (len(only), only)


def test_the_table_says_where_two_verifiers_part(run_folder, capsys):
    assert evaluate.main([str(run_folder), "--verifier", "strict,crisp"]) == 0
    out = capsys.readouterr().out
    assert "the same 7 answers by 2 verifiers" in out
    assert "1 unjudged (no score)" in out
    assert "right by crisp, not by strict: 3 (b, d, e)" in out
    assert "right by strict, not by crisp" not in out


def test_one_verifier_is_compared_with_none(run_folder, capsys):
    assert evaluate.main([str(run_folder), "--verifier", "lenient"]) == 0
    assert "verifiers" not in capsys.readouterr().out
    assert evaluate.main([str(run_folder), "--verifier", "strict,crips"]) == 2
    assert "crisp" in capsys.readouterr().err
