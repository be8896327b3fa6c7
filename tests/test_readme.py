"""Every command that README and the pages of docs/ show is one that works as it stands."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, pages
from workbench.cli import parse
from workbench.planning import settle_recipe

COMMAND = re.compile(r"(?:make|pip|python -m (?:workbench|pytest)\S*|python app\.py)\b")


def commands(page: Path) -> list[str]:
    """The command lines of a page's code blocks, indented or fenced, their comments cut off."""
    lines = re.findall(r"^(?: {4}|\$ )(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        lines += block.splitlines()
    return [line.split(" #")[0].strip() for line in lines if COMMAND.match(line.strip())]


SHOWN = sorted({command for page in pages() for command in commands(page)})


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A folder in which every run that a page resumes exists."""
    monkeypatch.chdir(tmp_path)
    for command in SHOWN:
        if found := re.search(r"--name (\S+)", command):
            (tmp_path / "runs" / found[1]).mkdir(parents=True, exist_ok=True)
            (tmp_path / "runs" / found[1] / "run.json").write_text(json.dumps({"config": {}}))
    return tmp_path


def test_the_readme_shows_the_main_commands_and_fits():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") < 200
    assert {"make opsd", "make test", "python -m workbench"} <= set(commands(ROOT / "README.md"))


@pytest.mark.parametrize(
    "command", [c for c in SHOWN if c.startswith("python -m workbench.opsd") and "--help" not in c]
)
def test_a_command_of_the_main_job_means_something(command, elsewhere):
    settle_recipe(parse(shlex.split(command)[3:]))


@pytest.mark.parametrize("command", [c for c in SHOWN if c.startswith("make")])
def test_a_make_target_exists(command):
    dry = ["make", "--dry-run", *shlex.split(command)[1:]]
    run = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    of_pytest = {"test", "slow", "gpu"} & set(command.split())
    for flags in () if of_pytest else re.findall(r'ARGS="([^"]*)"', command):
        parse(flags.split())


@pytest.mark.parametrize(
    "command",
    [c for c in SHOWN if re.match(r"python -m workbench($| |\.doctor)", c) or "--help" in c],
)
def test_a_quick_command_runs(command):
    run = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout


@pytest.mark.parametrize("command", [c for c in SHOWN if c.startswith("pip install")])
def test_an_install_names_files_and_extras_that_exist(command):
    tokens = shlex.split(command)
    pins = (ROOT / "constraints.txt").read_text()
    for before, token in itertools.pairwise(tokens):
        if before == "-c":
            assert (ROOT / token).is_file()
        elif token.startswith(".["):
            assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in token[2:-1].split(","))
        elif before != "pip" and not token.startswith("-"):
            assert f"\n{token}==" in pins, f"{token} is not pinned"


def test_every_command_shown_is_one_of_these():
    known = ("python -m workbench", "make ", "pip install", "python -m pytest")
    assert [c for c in SHOWN if not c.startswith(known)] == []
