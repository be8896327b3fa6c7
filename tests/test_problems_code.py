"""Programs as problems of the workbench: the packaged set, public layouts from a file, the jail and its refusal."""

from __future__ import annotations

import json

import pytest

import verifiers
from tests.conftest import build_tiny
from tests.verifiers.programs.plain import PlainBox
from tests.verifiers.programs.test_adapters import APPS_STDIN, HUMANEVAL, LIVE, MBPP
from verifiers.programs import link
from workbench import planning
from workbench.config import RunConfig
from workbench.errors import InputError, UsageError
from workbench.opsd import main
from workbench.planning import sandboxed, settle_problems, settle_recipe
from workbench.problems import graded, load
from workbench.records import Problem
from workbench.train.run_directory import read_jsonl


def test_the_packaged_set_has_levels_and_a_held_out_part_of_its_own():
    everything = load("code")
    assert (len(everything.train), len(everything.held_out)) == (42, 19)
    easy = load("code:difficulty=easy")
    assert {p.difficulty for p in (*easy.train, *easy.held_out)} == {"easy"}
    assert set(easy.train) < set(everything.train)
    both = load("code:difficulty=easy+hard", limit=3)
    assert len(both.train) == 3
    assert {p.difficulty for p in both.held_out} == {"easy", "hard"}
    kept, said = graded((*everything.train, *everything.held_out), verifiers.check_gold)
    assert (len(kept), said) == (61, ())
    assert all(p.solution and "```python" in p.solution for p in kept)


@pytest.mark.parametrize("source", ["code:difficulty=esy", "code:level=easy", "code:easy"])
def test_an_option_that_does_not_exist_is_refused(source):
    with pytest.raises(UsageError, match="code has no"):
        load(source)


@pytest.mark.parametrize("row", [HUMANEVAL, MBPP, APPS_STDIN, LIVE], ids=["HumanEval", "MBPP", "APPS", "LiveCodeBench"])
def test_a_file_in_a_public_layout_is_read_as_it_is(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in (row, dict.fromkeys(row))))
    found = load(str(path))
    (problem,) = found.train
    assert verifiers.check_tests(problem.tests) is None
    assert found.dropped[0][1] == 1
    assert "no tests that can be read" in found.dropped[0][0]


def test_a_cell_may_hold_the_list_of_tests_as_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    tests = [{"stdin": "1", "stdout": "2"}, {"stdin": "2", "stdout": "3"}]
    path.write_text(json.dumps({"question": "q", "tests": json.dumps(tests)}))
    assert [json.loads(text) for text in load(str(path)).train[0].tests] == tests


def test_tests_that_cannot_be_used_are_left_out_and_said():
    good = Problem("a", "q", tests=('{"stdin": "1", "stdout": "2"}',))
    bad = Problem("b", "r", tests=('{"stdin": "1"}',))
    kept, said = graded([good, bad], verifiers.check_gold)
    assert kept == (good,)
    assert said[0].startswith("tests of 1 problem cannot be used (ids b): left out, not scored 0. First reason: Test 1")


def test_problems_with_tests_open_the_jail_and_say_its_level(monkeypatch):
    asked = []
    monkeypatch.setattr(verifiers, "open_sandbox", lambda level: asked.append(level) or "landlock")
    config = RunConfig(problems="code:difficulty=easy", sandbox="landlock")
    problems, notes = settle_problems(config, settle_recipe(config)[0])
    assert asked == ["landlock"]
    assert notes == ("programs run in the sandbox, level landlock",)
    assert (len(problems.train), len(problems.held_out)) == (15, 7)
    assert sandboxed([Problem("a", "q", "1")], "auto") == ()
    monkeypatch.setattr(verifiers, "open_sandbox", lambda level: level)
    assert "WITHOUT ISOLATION" in sandboxed(problems.train, "unsafe")[0]


def test_a_refused_jail_is_said_and_ends_with_three(monkeypatch, capsys, tmp_path):
    def refuse(level):
        raise verifiers.SandboxRefused("bwrap not found: install the package bubblewrap.")

    monkeypatch.setattr(planning.verifiers, "open_sandbox", refuse)
    assert main(["--problems", "code", "--output", str(tmp_path), "--name", "a"]) == 3
    said = capsys.readouterr().err
    assert "install the package bubblewrap" in " ".join(said.split())
    assert "--sandbox unsafe" in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError):
        sandboxed([Problem("a", "q", tests=("{}",))], "bwrap")


class Lost(PlainBox):
    """Its level stops working at the next program after so many."""

    def __init__(self, programs: int) -> None:
        super().__init__()
        self.programs, self.sources = programs, set[str]()

    def call(self, source, *given, **named):
        self.seen(source)
        return super().call(source, *given, **named)

    def script(self, source, *given):
        self.seen(source)
        return super().script(source, *given)

    def seen(self, source: str) -> None:
        self.sources.add(source)
        if len(self.sources) > self.programs:
            raise verifiers.SandboxRefused("bwrap: namespaces exceeded.")


def test_a_run_whose_jail_is_lost_is_saved_and_goes_on_when_it_is_back(monkeypatch, capsys, tmp_path):
    """References are what is judged here: a tiny model writes no program."""
    monkeypatch.chdir(tmp_path)
    boxes = [Lost(3), PlainBox()]
    monkeypatch.setattr(verifiers, "open_sandbox", lambda level: link.install(boxes.pop(0)) or "plain")
    told = f"--model {build_tiny(tmp_path / 'tiny')} --problems code:difficulty=easy --recipe rejection_sft --batch 2"
    told += " --set rollouts=FromDataset() --eval-problems 1 --eval-tokens 2 --max-new-tokens 4000 --progress plain"
    told += " --name a --adapter none"
    assert main([*told.split(), "--steps", "3"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "namespaces exceeded" in said
    assert "last good checkpoint: step 1" in said
    assert "--resume" in said
    rows = read_jsonl(tmp_path / "runs/a/rollouts.jsonl")
    assert {row["status"] for row in rows} == {"correct"}, "no verdict for what nobody could judge"
    assert main([*told.split(), "--steps", "3", "--resume"]) == 0
    assert [row["step"] for row in read_jsonl(tmp_path / "runs/a/metrics.jsonl")] == [1, 2, 3]
    link.install(None)
