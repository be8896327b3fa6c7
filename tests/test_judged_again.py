"""Programs that a run recorded, judged again by the tests that judged them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import verifiers
from tests.conftest import build_tiny
from tests.verifiers.programs.plain import PlainBox
from verifiers.programs import link
from workbench import evaluate
from workbench.opsd import main
from workbench.problems.coding import code_problems
from workbench.records import Rollout
from workbench.train.evaluate import Answer, ArmResult, Evaluation, verify_with
from workbench.train.run_directory import read_jsonl


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on programs whose evaluations hold references and a wrong solution, judged when they were written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verifiers, "open_sandbox", lambda level: link.install(PlainBox()) or "plain")
    told = f"--model {build_tiny(tmp_path / 'tiny')} --problems code:difficulty=easy --recipe rejection_sft --batch 2"
    told += " --set rollouts=FromDataset() --eval-problems 2 --eval-tokens 2 --progress plain --name a --adapter none"
    assert main([*told.split(), "--steps", "1", "--max-new-tokens", "4000"]) == 0
    _, (one, other, *_) = code_problems("difficulty=easy", None)
    verify = verify_with("strict")
    written = [(one, one.solution), (one, "```python\npass\n```"), (other, other.solution.replace("python", ""))]
    answers = []
    for at, (problem, text) in enumerate(written):
        rollout = Rollout(problem, "student", (1,), text, None, "stop", index=at)
        answers.append(Answer.of(rollout, verify(rollout)))
    assert [a.score for a in answers] == [1.0, 0.0, 0.0]
    line = json.dumps(Evaluation("after", (ArmResult("after", tuple(answers)),), None).as_row())
    Path("runs/a/evaluations.jsonl").write_text(line + "\n")
    yield Path("runs/a"), answers
    link.install(None)


def test_they_are_judged_by_their_own_tests_whatever_was_once_said(run, capsys):
    folder, answers = run
    forged = [replace(a, score=1.0 - a.score, status="correct" if a.score == 0.0 else "wrong") for a in answers]
    line = json.dumps(Evaluation("after", (ArmResult("after", tuple(forged)),), None).as_row())
    (folder / "evaluations.jsonl").write_text(line + "\n")
    assert evaluate.main([str(folder), "--verifier", "strict,lenient", "--out", "out"]) == 0
    rows = read_jsonl(Path("out/eval.jsonl"))
    assert [row["score"] for row in rows if row["arm"] == "after (strict)"] == [1.0, 0.0, 0.0]
    assert [row["score"] for row in rows if row["arm"] == "after (lenient)"] == [1.0, 0.0, 1.0]


def test_other_tests_than_those_are_refused_and_so_is_a_run_that_cannot_say(run, capsys):
    folder, answers = run
    changed = [replace(answers[0], tests="0" * 16)]
    line = json.dumps(Evaluation("after", (ArmResult("after", tuple(changed)),), None).as_row())
    (folder / "evaluations.jsonl").write_text(line + "\n")
    assert evaluate.main([str(folder), "--verifier", "strict"]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "are not those that judged it" in said
    assert "leave --verifier out" in said
    assert evaluate.main([str(folder)]) == 0, "as recorded it is shown all the same"
    (folder / "run.json").unlink()
    assert evaluate.main([str(folder), "--verifier", "strict"]) == 3
    assert "no run.json" in " ".join(capsys.readouterr().err.split())
