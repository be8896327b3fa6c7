"""GATES on programs: what its tutor reads, which problems may vote, and what the gate and the monitor make of votes."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import verifiers
from tests.verifiers.programs.plain import PlainBox
from tests.verifiers.programs.test_adapters import APPS_STDIN, HUMANEVAL, LIVE, MBPP
from verifiers.programs import built_in, extract_program, parse_tests
from workbench.config import RunConfig
from workbench.errors import InputError
from workbench.inspector.diagnostics.diversity import diversity
from workbench.inspector.report.collect import verdict_of
from workbench.parts.contexts import question_boxed, with_document
from workbench.parts.gates import Consensus
from workbench.planning import settle_problems, settle_recipe
from workbench.problems import load
from workbench.problems.manual import manual_pages
from workbench.recording import rollout_row
from workbench.records import Case, Judged, Problem, Rollout
from workbench.train.saturation import figures

# -- the document ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", built_in(), ids=lambda row: row["id"])
def test_a_packaged_problem_has_pages_that_hold_no_line_of_its_reference_and_nothing_of_a_test(row) -> None:
    pages = manual_pages(row["solution"]) or ""
    assert pages.count("\n") >= 2
    program = extract_program(row["solution"]).answer or ""
    assert [line for line in program.splitlines() if len(line.split()) > 1 and line.strip() in pages] == []
    suite = parse_tests([json.dumps(test) for test in row["tests"]])
    for case in suite.cases:
        shown = case.stdin if suite.kind == "stdin" else ", ".join(map(repr, case.arguments))
        assert len(shown) < 4 or shown not in pages
    assert suite.entry_point not in pages.split() or suite.kind == "stdin"


def test_pages_tell_neither_order_nor_number_of_uses() -> None:
    once = manual_pages("```python\ndef f(x):\n    return sorted(x), len(x)\n```")
    assert once == "From a manual of Python:\n\n" + "\n".join(
        [
            "len(items): how many there are.",
            "sorted(items, key=..., reverse=...): a new list in ascending order; equal ones keep their order.",
        ]
    )
    assert once == manual_pages("```python\ndef g(v):\n    return len(v), len(v), sorted(v)\n```")
    own = manual_pages("def sorted(x): return x\ndef f(x): return sorted(x), len(x)") or ""
    assert "ascending" not in own, "a name of the program's own is no function of Python"


@pytest.mark.parametrize(
    "solution", [None, "", "Think hard.", "```python\ndef f(:\n```", "```python\nx = 1\n```", "(" * 9999]
)
def test_without_a_program_to_read_there_are_no_pages(solution) -> None:
    assert manual_pages(solution) is None


def test_rows_of_public_sets_have_pages_or_the_document_that_came_with_them(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [HUMANEVAL, MBPP, APPS_STDIN, LIVE]
    for row in rows:
        path.write_text(json.dumps(row) + "\n")
        (problem,) = load(str(path)).train
        assert problem.document == manual_pages(problem.solution)
        path.write_text(json.dumps(row | {"document": "Read this."}) + "\n")
        assert load(str(path)).train[0].document == "Read this."
    assert load("sums").train[0].document != manual_pages(load("sums").train[0].solution), "problems without tests"
    path.write_text(json.dumps({"question": "q", "solution": "```python\nlen([])\n```", "answer": "0"}))
    assert load(str(path)).train[0].document is None


# -- which problems may vote -----------------------------------------------------------------------------------------


def settle(source: str, recipe: str = "gates", **more):
    config = RunConfig(problems=source, recipe=recipe, eval_problems=0, **more)
    return settle_problems(config, settle_recipe(config)[0])


@pytest.fixture
def _no_jail(monkeypatch) -> None:
    monkeypatch.setattr(verifiers, "open_sandbox", lambda level: level)


@pytest.mark.usefixtures("_no_jail")
def test_gates_takes_all_packaged_programs_and_shows_the_tutor_alone_the_pages() -> None:
    problems, _ = settle("code")
    assert len(problems.train) == 42
    case = Case(problems.train[0])
    tutor, student = (context(case)[0]["content"] for context in (with_document, question_boxed))
    assert case.problem.document
    assert case.problem.document in tutor
    assert "manual of Python" not in student


@pytest.mark.usefixtures("_no_jail")
def test_problems_whose_programs_cannot_vote_are_left_out_and_said(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"question": "a", "document": "d", "tests": [{"stdin": "1", "stdout": "2"}]},
        {"question": "b", "document": "d", "tests": [{"stdin": "1", "stdout": "2", "hidden": True}]},
        {"question": "c", "document": "d", "answer": "7"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    problems, said = settle(str(path))
    assert [p.question for p in problems.train] == ["a", "c"]
    assert any("1 of 3 problems have programs that cannot vote" in line and "hidden" in line for line in said)
    assert len(settle(str(path), "grpo")[0].train) == 3, "verdicts need no vote"
    assert len(settle(str(path), "gates_ungated")[0].train) == 3
    path.write_text(json.dumps(HUMANEVAL) + "\n")
    with pytest.raises(InputError, match=r"no problem is left.*cannot vote.*checks, whose inputs are source"):
        settle(str(path))
    path.write_text(json.dumps(rows[0] | {"document": None}))
    with pytest.raises(InputError, match="document"):
        settle(str(path))


# -- votes -----------------------------------------------------------------------------------------------------------

TESTS = tuple(json.dumps({"call": "f", "args": [n], "expected": 2 * n, "hidden": n > 3}) for n in (1, 2, 3, 4))
RIGHT = ["def f(n): return n + n", "def f(x):\n    # twice\n    return 2 * x", "f = lambda n: n << 1"]
WRONG = ["def f(n): return n * n", "def f(k): return k ** 2", "def f(n): return pow(n, 2)", "f = lambda n: n * n"]
SILENT = ["def f(n): print(2 * n)", "def f(n): print(2 * n)"]


@pytest.fixture(scope="module")
def judged() -> list[Judged]:
    """Nine programs of the tutor and as many of the student, as a step judges them."""
    verifiers.programs.install(PlainBox())
    try:
        problem = Problem("p", "Double it.", tests=TESTS)
        out = []
        for author in ("teacher", "student"):
            for at, program in enumerate([*RIGHT, *WRONG, *SILENT]):
                rollout = Rollout(problem, author, (1, 2), f"```python\n{program}\n```", (-0.5, -0.5), "stop", index=at)
                out.append(Judged(rollout, verifiers.verify(problem, rollout.text)))
        return out
    finally:
        verifiers.programs.install(None)


def test_the_gate_keeps_the_tutors_that_behave_as_most_do(judged) -> None:
    kept = Consensus(votes=4)(judged)
    assert [j.rollout.index for j in kept if j.rollout.author == "teacher"] == [3, 4, 5, 6], "agreement, not truth"
    assert sum(j.rollout.author == "student" for j in kept) == 9
    assert Consensus(votes=5)(judged) == []
    right = [j for j in judged if j.rollout.index < 3 or j.rollout.index > 5]
    assert [j.rollout.index for j in Consensus(votes=3)(right) if j.rollout.author == "teacher"] == [0, 1, 2]


def test_the_monitor_sees_a_wrong_majority_of_programs(judged) -> None:
    found = figures(judged)
    assert found["consensus_agreement"] == pytest.approx(4 / 9)
    assert found["consensus_right"] == 0.0
    assert found["answer_diversity"] == pytest.approx((2 - 1) / (7 - 1))
    assert found["mean_at_k"] == pytest.approx(3 / 9)
    good = [replace(j, rollout=replace(j.rollout, author="student")) for j in judged if j.rollout.index in (0, 1, 2, 3)]
    assert figures(good)["consensus_right"] == 1.0


def test_a_recorded_verdict_votes_as_it_did(judged) -> None:
    assert diversity({"p": [j.verdict for j in judged[:9]]}).answers.value == 2.0
    report: Any = SimpleNamespace(step=1, entries={})
    rows = [json.loads(json.dumps(rollout_row(report, j))) for j in judged]
    assert [verdict_of(row).vote for row in rows] == [j.verdict.vote for j in judged]
    older = {key: value for key, value in rows[0].items() if key != "behaviour"}
    assert verdict_of(older).vote == judged[0].verdict.extracted, "of a run that did not know votes"
