"""`python -m workbench.inspect_run`: from a run directory alone, dead or alive, to the terminal and to files."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.pages import HOSTILE, seen
from verifiers import Verdict
from workbench import inspect_run, opsd
from workbench.inspector import token_records
from workbench.inspector.page import static

ROOT = Path(__file__).resolve().parents[1]


def one(step: int, problem: str, index: int, loss: float, **others):
    """A recorded rollout that adds `loss` to its step's loss."""
    made = seen(["So", " it", " is", " 4", "."], problem=problem, step=step, index=index, source="recorded", **others)
    made = replace(made, rollout=f"{step}/{problem}/student/{index}", run="a-run", recipe="opsd", answer="4")
    made = replace(made, verdict=Verdict("correct", "4", "exact"), student_prompt=(1, 2), teacher_prompt=(1, 2, 3))
    return replace(made, weights=np.full((1, 5), loss / made.values.sum()))


@pytest.fixture
def run(tmp_path):
    """A run that was killed at step 2, with tokens of both steps."""
    folder = tmp_path / "runs" / "a-run"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"name": "a-run"}')
    status = {"phase": "update", "step": 2, "pid": 2**22 + 1, "heartbeat": "2026-01-01T00:00:00+00:00"}
    (folder / "status.json").write_text(json.dumps(status))
    tokens = folder / token_records.FOLDER
    token_records.write(token_records.path_of(tokens, 1), [one(1, "p-1", 0, 9.0)])
    second = [one(2, "p-1", 0, 0.1), one(2, "p-2", 0, 0.7), one(2, "p-2", 1, 0.3), one(2, "p-3", 0, 0.9, k=0)]
    token_records.write(token_records.path_of(tokens, 2), second)
    return folder


def call(capsys, *argv: object) -> tuple[int, str, str]:
    code = inspect_run.main([str(a) for a in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_most_telling_rollout_of_the_newest_step_is_shown(run, capsys):
    code, out, err = call(capsys, run)
    assert (code, err) == (0, "")
    assert out.startswith("rollout 2/p-2/student/0")  # p-3 adds more, but of it nothing but the tokens was recorded
    assert "student sees 2 tokens  teacher sees 3 tokens" in out
    assert "verdict correct (exact)  gold 4" in out
    assert "\nSo it is 4.\n" in out
    assert "others of these steps" in out
    others = out.split("problem\n")[1].splitlines()
    assert [line.split()[:2] + line.split()[-1:] for line in others[:2]] == [["2", "1", "p-2"], ["2", "0", "p-1"]]
    assert others[2].endswith("p-3 (no top-k)")
    assert "\x1b" not in out


def test_totals_are_the_record_s(run, capsys):
    made = one(2, "p-2", 0, 0.7)
    _, out, _ = call(capsys, run)
    assert f"{made.divergence.mean():.4f} nat/token, {made.divergence.sum():.2f} nat over 5 tokens" in out.replace(
        "\n  ", " "
    )


def test_filters_and_list(run, capsys):
    assert call(capsys, run, "--step", 1)[1].startswith("rollout 1/p-1/student/0")
    assert call(capsys, run, "--problem", "p-2", "--index", 1)[1].startswith("rollout 2/p-2/student/1")
    listed = call(capsys, run, "--list")[1].splitlines()
    assert len(listed) == 6
    assert call(capsys, run, "--list", "--problem", "p-1")[1].count("\n") == 3


def test_files_hold_what_was_asked_for_and_their_twin(run, capsys, tmp_path):
    page, table = tmp_path / "page.html", tmp_path / "table.csv"
    code, out, _ = call(capsys, run, "--step", 2, "--html", page, "--csv", table)
    assert code == 0
    assert out.count("4 rollouts") == 3
    twin = json.loads((tmp_path / "page.json").read_text())
    assert twin[0]["value"]["rollout"] == "2/p-2/student/0"
    assert page.read_text() == static.page_of(twin)
    with table.open(newline="") as stream:
        assert sum(1 for _ in csv.reader(stream)) == 1 + 4 * 5
    code, _, err = call(capsys, run, "--html", page)
    assert code == 2
    assert err.startswith(f"error: {page} exists.")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["{runs}/a-rum"], 3, "is no run. It is not there. Did you mean 'a-run'?"),
        (["{runs}"], 3, "is no run. It has no run.json"),
        (["{run}", "--step", "7"], 2, "--step 7 was not recorded. Valid: 1, 2."),
        (["{run}", "--problem", "p-9"], 2, "--problem p-9 was not recorded. Did you mean 'p-"),
        (["{run}", "--step", "1", "--problem", "p-2"], 2, "Recorded of that step and problem: none; --list"),
        (["{run}", "--problem", "p-2", "--index", "5"], 2, "Recorded of that step and problem: 0, 1."),
        (["{run}", "--stepp", "7"], 2, "See python -m workbench.inspect_run --help"),
        (["{run}", "--html", "{runs}/no/x.html"], 2, "no folder"),
        (["{run}", "--html", "{runs}/x.json", "--json", "{runs}/x.json"], 2, "have one name"),
    ],
)
def test_what_cannot_be_shown_says_what_why_and_what_to_do(run, capsys, argv, code, said):
    argv = [a.format(run=run, runs=run.parent) for a in argv]
    found, out, err = call(capsys, *argv)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert said in " ".join(err.split())


def test_a_run_without_token_records_says_so(run, capsys):
    for path in (run / token_records.FOLDER).iterdir():
        path.unlink()
    code, _, err = call(capsys, run)
    assert code == 3
    assert "recorded no tokens" in err


def test_a_torn_file_is_named_and_the_others_are_shown(run, capsys):
    newest = token_records.path_of(run / token_records.FOLDER, 2)
    newest.write_bytes(newest.read_bytes()[:100])
    code, out, err = call(capsys, run)
    assert code == 0
    assert err == "note: step-00000002.parquet cannot be read and is left out\n"
    assert out.startswith("rollout 1/p-1/student/0")


def test_hostile_records_reach_neither_the_terminal_nor_the_files_as_commands(run, capsys, tmp_path):
    name = "".join(HOSTILE)
    bad = seen(HOSTILE, problem=name, rollout=name, run=name, recipe=name, answer=name, question=name, step=3)
    bad = replace(bad, verdict=Verdict("wrong", name, name), source="recorded")
    token_records.write(token_records.path_of(run / token_records.FOLDER, 3), [bad, replace(bad, index=1)])
    for argv in ([], ["--list"]):
        code, out, err = call(capsys, run, *argv)
        assert (code, err) == (0, "")
        assert not set(out) & {"\x1b", "\x07", "\x00", "\u202e", "\u200b", "\r", "\u2028"}
    assert call(capsys, run, "--html", tmp_path / "x.html")[0] == 0
    (tmp_path / "x.html").read_text(encoding="ascii")


def test_help_is_fast_because_nothing_heavy_is_imported():
    code = (
        "import sys; from workbench import inspect_run\n"
        "assert inspect_run.main(['--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'gradio', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_record_is_shown_without_torch_in_any_locale(run):
    code = (
        "import sys; from workbench import inspect_run\n"
        f"assert inspect_run.main([{str(run)!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "40", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, env=plain)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("ascii").splitlines()
    assert max(map(len, lines[: lines.index("")])) <= 40


def test_colour_only_on_a_terminal_that_did_not_refuse_it():
    class Terminal:
        encoding = "utf-8"

        def __init__(self, is_one: bool) -> None:
            self.isatty = lambda: is_one

    assert inspect_run._pen(Terminal(True), {"TERM": "xterm"}).colour
    assert not inspect_run._pen(Terminal(True), {"TERM": "xterm", "NO_COLOR": "1"}).colour
    assert not inspect_run._pen(Terminal(True), {"TERM": "dumb"}).colour
    assert not inspect_run._pen(Terminal(False), {"TERM": "xterm"}).colour


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """Two real steps of a tiny model."""
    output = tmp_path_factory.mktemp("runs")
    argv = ["--model", tiny_folder, "--problems", "sums:terms=2,maximum=9", "--limit", 12, "--eval-problems", 2]
    argv += ["--steps", 2, "--batch", 2, "--group", 2, "--max-new-tokens", 10, "--eval-tokens", 4, "--adapter", "none"]
    argv += ["--progress", "quiet", "--output", output, "--name", "a"]
    assert opsd.main([str(a) for a in argv]) == 0
    return output / "a"


def test_a_real_run_is_shown_with_the_numbers_of_its_log(trained, capsys, tmp_path):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"]: row for row in rows if "loss" in row}
    assert call(capsys, trained, "--step", 2, "--json", tmp_path / "two.json")[0] == 0
    documents = json.loads((tmp_path / "two.json").read_text())
    assert len(documents) == 4
    for one in documents:
        value = one["value"]
        assert value["source"] == "recorded"
        assert one["tops"] is None or len(one["tops"]) == len(value["id"])
        assert value["prompts"]["teacher"]["tokens"] > value["prompts"]["student"]["tokens"]
    code, out, err = call(capsys, trained)
    assert (code, err) == (0, "")
    assert out.startswith("rollout 2/")
    listed = [seen.loss for seen in token_records.load_run(trained).of(step=2)]
    assert sum(listed) == pytest.approx(steps[2]["loss"], rel=1e-4)
