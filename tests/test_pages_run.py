"""The commands of README and docs/ are run as they stand, in the order of their page, on a tiny model.

What a page calls ./model, ./teacher, ./student, data.jsonl or texts.jsonl lies in the folder they run in, and the
embedded model's name stands for the tiny one: argument by argument the command is the page's.
"""

from __future__ import annotations

import importlib
import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.conftest import build_tiny
from tests.documents import ROOT, pages
from tests.smoke import problems
from tests.test_readme import commands
from workbench.engine import loading

SHOWN = {
    page: [c for c in commands(page) if c.startswith("python -m workbench")]
    for page in pages()
    if page in (ROOT / "README.md", ROOT / "docs" / "exports.md", ROOT / "docs" / "teachers.md")
}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch, tiny_folder: Path) -> Path:
    """The files that pages name, and the tiny model in place of the embedded one."""
    for name in ("model", "student"):
        shutil.copytree(tiny_folder, tmp_path / name)
    build_tiny(tmp_path / "teacher", seed=1)
    rows = [json.loads(line) for line in problems(tmp_path / "data.jsonl", 100).read_text().splitlines()]
    texts = [json.dumps({"id": row["id"], "completion": row["solution"]}) for row in rows]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts) + "\n")
    monkeypatch.setattr(loading, "embedded_gguf", Path)
    monkeypatch.setattr(loading, "converted", lambda gguf: tiny_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


LONG = {"teachers.md": pytest.mark.slow}
"""Pages whose recipes allow completions of 1,024 tokens, which a random model uses up."""


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name, marks=LONG.get(page.name, ())) for page in SHOWN])
def test_every_command_of_a_page_runs_as_it_stands(page: Path, stage: Path, capsys) -> None:
    assert SHOWN[page]
    for command in SHOWN[page]:
        module, *argv = shlex.split(command)[2:]
        if "--help" in argv or module == "workbench":
            continue  # run in a process of their own by test_readme
        code = importlib.import_module(module).main(argv)
        assert code == 0, f"{command}\n{capsys.readouterr().err}"
