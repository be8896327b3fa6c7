"""The rules for notebooks: short cells that define nothing, no output but one picture, and a last cell that asserts.

They are run by `make notebooks`, outside this suite.
"""

from __future__ import annotations

import ast
import base64
import json
import re
from pathlib import Path

import pytest

from tests.notebooks import FOLDER, ORDINARY, picture, stripped, text_of
from workbench.study import SIZES

NAMES = ("01_what_the_teacher_sees", "02_compressing_a_chain", "03_methods_on_one_rollout")
BOOKS = sorted(FOLDER.glob("*.ipynb"))


def name(path: Path) -> str:
    return path.stem


def cells(path: Path, kind: str = "code") -> list[str]:
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def lines(code: str) -> int:
    """Lines that do something: no imports, no comments, no closing brackets alone."""
    tree = ast.parse(code)
    imported = {n for s in tree.body if isinstance(s, ast.Import | ast.ImportFrom) for n in spanned(s)}
    rows = enumerate(code.splitlines(), 1)
    return sum(bool(re.search(r"\w", row.partition("#")[0])) for number, row in rows if number not in imported)


def spanned(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


def test_these_are_all() -> None:
    assert [path.stem for path in BOOKS] == list(NAMES)


@pytest.mark.parametrize("path", BOOKS, ids=name)
def test_no_cell_is_long_and_none_defines_anything(path: Path) -> None:
    for code in cells(path):
        assert lines(code) <= 10, code
        assert len(code) <= 1000, "ten lines, not ten paragraphs"
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [n for n in ast.walk(ast.parse(code)) if isinstance(n, kinds)], code


@pytest.mark.parametrize("path", BOOKS, ids=name)
def test_public_functions_only(path: Path) -> None:
    for code in cells(path):
        tree = ast.parse(code)
        used = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
        used += [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
        assert not [word for word in used if word.startswith("_")]
        modules = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        modules += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        assert {str(m).partition(".")[0] for m in modules} <= {"workbench", "verifiers", "dataclasses"}


@pytest.mark.parametrize("path", BOOKS, ids=name)
def test_only_one_picture_is_kept(path: Path) -> None:
    book = json.loads(path.read_text())
    outputs = [o for c in book["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert len(outputs) == 1
    (png,) = [o["data"].pop("image/png") for o in outputs]
    assert outputs == [{"output_type": "display_data", "data": {}, "metadata": {}}]
    image = base64.b64decode(png)
    assert image.startswith(b"\x89PNG")
    assert len(image) < 80_000
    assert all(c.get("execution_count") is None for c in book["cells"])


@pytest.mark.parametrize("path", BOOKS, ids=name)
def test_stored_as_it_is_stored_again(path: Path) -> None:
    """A notebook saved by an editor differs by what that editor leaves behind."""
    book = json.loads(path.read_text())
    assert book["metadata"] == ORDINARY
    assert text_of(stripped(book)) == path.read_text()


def test_what_is_stored_is_stripped() -> None:
    stream = {"output_type": "stream", "name": "stdout", "text": "x"}
    shown = {"output_type": "execute_result", "execution_count": 3, "data": {"image/png": "A", "text/plain": "p"}}
    cell = {"cell_type": "code", "execution_count": 3, "metadata": {"scrolled": True}, "source": "a\nb"}
    cell["outputs"] = [stream, shown]
    kept = {**cell, "metadata": {"tags": ["picture"], "editable": True}}
    book = stripped({"metadata": {"kernelspec": {"name": "mine"}}, "cells": [cell, kept]})
    assert book["metadata"] == ORDINARY
    bare = {"cell_type": "code", "execution_count": None, "source": ["a\n", "b"]}
    assert book["cells"] == [
        {**bare, "metadata": {}, "outputs": []},
        {**bare, "metadata": {"tags": ["picture"]}, "outputs": [picture("A")]},
    ]


@pytest.mark.parametrize("path", BOOKS, ids=name)
def test_the_last_cell_asserts_what_the_text_before_it_claims(path: Path) -> None:
    book = json.loads(path.read_text())["cells"]
    assert book[-1]["cell_type"] == "code"
    assert "## The claim" in "".join(book[-2]["source"])
    claims = [n for n in ast.walk(ast.parse(cells(path)[-1])) if isinstance(n, ast.Assert)]
    assert len(claims) >= 3


@pytest.mark.parametrize("path", BOOKS, ids=name)
def test_it_is_sized_by_the_environment_and_names_no_machine(path: Path) -> None:
    text = path.read_text()
    assert "study.sized(" in text
    assert all(f"`{size}`" in text for size in SIZES), "the reader is told the sizes"
    assert not re.findall(r"/(?:home|root|tmp|Users|work)/|[A-Z]:\\\\", text)
