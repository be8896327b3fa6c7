"""The pages say what is: methods.md is generated, links lead somewhere, and the catalogue prints."""

from __future__ import annotations

import json
import re

import pytest

from tests.documents import METHODS, ROOT, anchor, broken_links, pages
from workbench import __main__ as catalogue
from workbench.inspector.page.static import page_of
from workbench.recipes import ALL


def test_methods_md_is_what_the_recipes_say():
    assert METHODS.read_text(encoding="utf-8") == catalogue.table(), "run `make docs`"


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_resolve(page):
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.documents.ROOT", tmp_path)
    (tmp_path / "a.md").write_text("# One thing\n[x](b.md) [y](#one-thing) [z](#two) [w](https://x) `[v](c.md)`\n")
    assert broken_links(tmp_path / "a.md") == ["a.md: b.md", "a.md: #two"]
    assert anchor("`--set`: Typed, checked") == "--set-typed-checked"


def test_the_list_names_every_recipe(capsys):
    assert catalogue.main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("workbench 0.")
    for name, recipe in ALL.items():
        assert f"  {name} " in out
        assert recipe.paper in out


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_prints_as_five_answers(name, capsys):
    assert catalogue.main([name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(ALL[name].describe())
    assert f"--recipe {name}\n" in out
    questions = [question for question, _ in catalogue.answers(ALL[name])]
    assert questions[:5] == [
        "who sees what",
        "whose weights teach",
        "who writes",
        "what is compared",
        "where it counts",
    ]
    assert len(questions) == len(ALL[name].describe().splitlines()) - 1


def test_the_table_has_a_row_a_recipe_and_as_many_cells_in_each():
    rows = [line for line in catalogue.table().splitlines() if line.startswith("|")]
    assert len(rows) == len(ALL) + 2
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1


def test_a_wrong_name_is_answered(capsys):
    assert catalogue.main(["opsdd"]) == 2
    assert "error: no recipe 'opsdd'. Did you mean 'opsd'?" in capsys.readouterr().err
    assert catalogue.main(["--tabel"]) == 2
    assert "error: unrecognized arguments: --tabel" in capsys.readouterr().err


def test_the_example_page_is_what_its_numbers_make_now():
    """Its script, style and policy are those of the package: a page of an older view would show what is gone."""
    stored = (ROOT / "docs" / "example-rollout.html").read_text(encoding="ascii")
    documents = [json.loads(data) for data in re.findall(r'<script type="application/json">(.*?)</script>', stored)]
    assert [len(one["value"]["text"]) > 10 for one in documents] == [True]
    assert page_of(documents) == stored
