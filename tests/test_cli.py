"""What a command says and returns: messages that name a way on, exit codes, and nothing loaded before its time."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from workbench import cli, opsd
from workbench.cli import Arguments, fold, parse, run_command
from workbench.config import ALIASES, HINTS, RunConfig, flag
from workbench.errors import (
    InputError,
    Interrupted,
    RecipeError,
    ResourceError,
    TrainingError,
    UsageError,
    WorkbenchError,
)
from workbench.text import printable

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def job(monkeypatch):
    """The main job replaced by one that only notes what it was asked; returns the notes."""
    asked: list[RunConfig] = []
    module = types.ModuleType("workbench.job")
    module.run = lambda config: asked.append(config) or 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "workbench.job", module)
    return asked


def command(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
        text=True,
        env={**os.environ, **environment},
    )


# --- flags ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alias", "field"), ALIASES.items())
def test_an_alias_is_the_same_flag(alias, field):
    value = {int: "7", float: "0.5"}.get(HINTS[field], "wandb" if field == "track" else "7" if field != "lr" else "0.5")
    assert parse([flag(alias), value]) == parse([flag(field), value]) == parse([f"--{alias}={value}"])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--max-new-tokens", "3"], {"max_new_tokens": 3}),
        (["--max_new_tokens=3"], {"max_new_tokens": 3}),
        (["--steps", "1", "--steps", "2"], {"steps": 2}),
        (["--set", "a=1", "--set", "b=-2", "c=3"], {"set": ("a=1", "b=-2", "c=3")}),
        (
            ["--columns", "problem=q", "solution=s", "--limit", "3"],
            {"columns": ("problem=q", "solution=s"), "limit": 3},
        ),
        (["--require", "solution,document", "--require=answer"], {"require": ("solution", "document", "answer")}),
        (["--debug", "--no-debug", "--dry_run"], {"dry_run": True}),
        (["--model=--odd"], {"model": "--odd"}),
        (["--lr", "1e-5"], {"lr": 1e-5}),
        (["--max-grad-norm", "inf"], {"max_grad_norm": float("inf")}),
        ([], {}),
    ],
)
def test_flags(argv, expected):
    assert parse(argv) == RunConfig(**expected)


@pytest.mark.parametrize(
    ("argv", "phrases"),
    [
        (["--stepz", "3"], ["no flag --stepz", "Did you mean '--steps'?", "Valid:", "--warmup-steps"]),
        (["--ste", "3"], ["no flag --ste", "Did you mean '--steps'?"]),  # no abbreviations
        (["--maxsteps=3"], ["no flag --maxsteps", "Did you mean '--max-steps'?"]),
        (["--no-steps"], ["no flag --no-steps"]),
        (["--steps", "abc"], ["--steps 'abc' does not fit", "a whole number", "--steps 8"]),
        (["--max-steps", "1.5"], ["--steps '1.5' does not fit"]),
        (["--lr", "fast"], ["--lr 'fast' does not fit", "a number"]),
        (["--steps"], ["--steps needs a value"]),
        (["--steps", "--resume"], ["--steps needs a value"]),
        (["--set"], ["--set needs a value"]),
        (["--debug=1"], ["--debug takes no value", "--no-debug"]),
        (["--device", "cuba"], ["--device 'cuba'", "Did you mean 'cuda'?", "auto, cpu, cuda, mps"]),
        (["--progress", "lively"], ["Did you mean 'live'?"]),
        (["train"], ["'train' is not a flag"]),
        (["--steps", "3", "4"], ["'4' is not a flag"]),
        (["-x"], ["'-x' is not a flag"]),
        (["--top-p", "2"], ["--top-p 2.0 is out of range"]),
        (["--config", "run.yml"], ["run.yml"]),
    ],
)
def test_a_wrong_flag_is_answered(argv, phrases, capsys):
    assert opsd.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()[0]) < 120
    for phrase in phrases:
        assert phrase in err


@pytest.mark.parametrize(
    "argv", [["--stepz", "3"], ["--devise", "cpu"], ["--no_debugg"], ["--resum"], ["--nmae", "x1"]]
)
def test_the_suggestion_parses(argv, capsys, tmp_path):
    opsd.main(argv)
    found = re.search(r"Did you mean '([^']+)'", capsys.readouterr().err)
    assert found is not None
    config = ["--name", "a", "--output", str(tmp_path)] if found[1] == "--resume" else []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text('{"config": {}}')
    parse([found[1], *argv[1:], *config])


def test_tyro_itself_would_answer_in_the_same_form(monkeypatch):
    # What this module checks never reaches tyro; if a later tyro refuses more, its box must still become a sentence.
    with pytest.raises(UsageError, match=r"^Unrecognized options Unrecognized options: --nothing .*See --help\.$"):
        cli._by_tyro(["--nothing"])


def test_help_names_every_flag_and_alias_and_loads_no_torch():
    code = (
        "import sys; from workbench.opsd import main; code = main(['--help'])\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, code, file=sys.stderr)"
    )
    run = command("-c", code, COLUMNS="100")
    assert run.stderr.split() == ["False", "False", "0"]
    for name in (*HINTS, "config", *ALIASES):
        assert flag(name) in run.stdout, name


@pytest.mark.parametrize(
    "environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"NO_COLOR": "1", "COLUMNS": "40"}]
)
def test_help_works_on_a_poor_terminal(environment):
    run = command("-m", "workbench.opsd", "-h", **environment)
    assert run.returncode == 0, run.stderr
    assert "--max-new-tokens" in run.stdout
    assert "\x1b" not in run.stdout


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_job_gets_the_configuration_and_its_code_is_returned(job):
    assert opsd.main(["--steps", "2", "--progress", "quiet"]) == 0
    assert job == [RunConfig(steps=2, progress="quiet")]


def test_the_heading_is_there_before_anything_is_loaded(job, monkeypatch, capsys):
    said = []
    monkeypatch.setattr("workbench.planning.settle_recipe", lambda *_: said.append(capsys.readouterr().err))
    opsd.main(["--name", "a", "--model", "x\x1b[31m"])
    assert said[0].startswith("workbench 0")
    assert "run runs/a" in said[0]
    assert "x\\x1b[31m" in said[0]


@pytest.mark.parametrize("quiet", ["quiet", "json"])
def test_quiet_is_quiet(job, quiet, capsys):
    assert opsd.main(["--progress", quiet]) == 0
    assert capsys.readouterr() == ("", "")


def test_an_unknown_recipe_is_answered_before_the_job(job, capsys):
    assert opsd.main(["--recipe", "opsdd"]) == 2
    err = capsys.readouterr().err
    assert "error: no recipe 'opsdd'. Did you mean 'opsd'?" in err
    assert job == []


def test_a_set_that_cannot_be_meant_is_answered_before_the_job(job, capsys):
    assert opsd.main(["--set", "terms.0.divergance=ReverseKL()"]) == 2
    assert "Did you mean 'divergence'?" in capsys.readouterr().err
    assert job == []


# --- from exceptions to messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkbenchError("x"), 1),
        (TrainingError("x"), 1),
        (UsageError("x"), 2),
        (RecipeError("x"), 2),
        (InputError("x"), 3),
        (ResourceError("x"), 4),
        (Interrupted("x"), 130),
        (Interrupted("x", 15), 143),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(error, code, capsys):
    def body() -> int:
        raise error

    assert run_command(body) == code
    asked_for = isinstance(error, Interrupted)
    assert capsys.readouterr().err == ("x\n" if asked_for else "error: x\n"), "stopping when asked is no error"


def test_exit_codes_of_the_body_and_of_the_keyboard(capsys):
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run_command(lambda: 7) == 7
    assert run_command(interrupted) == 130
    assert "stopped" in capsys.readouterr().err


def broken() -> int:
    raise ZeroDivisionError("of \x1b[31mours\u202e")


def test_a_bug_says_so_and_shows_its_traceback_only_when_asked(capsys):
    assert run_command(broken) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: this is a bug in workbench (ZeroDivisionError: of \\x1b[31mours\\u202e).")
    assert "run it again with --debug" in err
    assert "python -m workbench.doctor" in err
    assert "Traceback" not in err
    assert run_command(broken, debug=True) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_leaves_its_traceback_in_the_run_log(tmp_path, capsys):
    handler = logging.FileHandler(tmp_path / "run.log")
    cli.logger.addHandler(handler)
    try:
        assert run_command(broken) == 1
    finally:
        cli.logger.removeHandler(handler)
        handler.close()
    assert "Traceback" in (tmp_path / "run.log").read_text()
    assert f"Details: {os.path.relpath(tmp_path / 'run.log')}" in capsys.readouterr().err.replace("\n", " ")


def test_debug_in_a_file_counts(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("workbench.planning.settle_recipe", lambda *_: broken())
    (tmp_path / "a.toml").write_text("debug = true")
    assert opsd.main(["--config", str(tmp_path / "a.toml")]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_left_is_no_bug():
    shell = f"{sys.executable} -m workbench.opsd --help | true; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "bug" not in run.stderr
    assert "Traceback" not in run.stderr


def test_small_commands_complain_in_the_same_form(capsys):
    def body() -> int:
        Arguments(prog="python -m x").parse_args(["--what"])
        return 0

    assert run_command(body) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --what. See python -m x --help\n"


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcödé 漢字 \\boxed{1}", "plain ünïcödé 漢字 \\boxed{1}"),
        ("\x1b[2J\x07\r\n\t", "\\x1b[2J\\x07\\r\\n\\t"),
        ("a\u202eb\u200bc\u2066", "a\\u202eb\\u200bc\\u2066"),
        ("\x9b31m\x00\x7f", "\\x9b31m\\x00\\x7f"),
        ("\ud800\u2028\ufeff", "\\ud800\\u2028\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_hidden_characters_are_written_out(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_lines_may_stay_lines():
    assert printable("a\n\tb\r", lines=True) == "a\n\tb\\r"


def test_a_long_first_line_is_broken_at_a_sentence():
    text = "error: " + "a" * 60 + ". " + "b" * 70 + ". c\nrest"
    first, second, rest = fold(text).split("\n")
    assert first == "error: " + "a" * 60 + "."
    assert second == "b" * 70 + ". c"
    assert rest == "rest"
    assert fold("error: " + "a b " * 60).split("\n")[0] == ("error: " + "a b " * 60)[:118].rstrip()
    assert fold("short. text") == "short. text"
    assert fold("x" * 300) == "x" * 300
