"""Two real steps of every recipe with another model as teacher: the embedded model, and one trained from it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from workbench import opsd
from workbench.engine.loading import load
from workbench.recipes import ALL
from workbench.train.run_directory import read_jsonl

FLAGS = "--model smollm2 --limit 24 --batch 2 --steps 2 --eval-problems 2 --progress quiet --save-every 100"
EXTERNAL = sorted(name for name, recipe in ALL.items() if recipe.refresh.external)


@pytest.fixture(autouse=True)
def room(tmp_path: Path):
    """A run holds a gigabyte and a half, and pytest keeps the folders of its last runs."""
    yield
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """The embedded model after two steps on worked solutions: another model, of the same family."""
    folder = tmp_path_factory.mktemp("teacher")
    told = ["--recipe", "sft", "--lr", "1e-4", "--name", "teacher", "--output", str(folder)]
    assert opsd.main([*FLAGS.split(), *told]) == 0
    return folder / "teacher" / "final"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", EXTERNAL)
def test_the_embedded_model_is_taught(teacher: Path, tmp_path: Path, monkeypatch, recipe: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert opsd.main([*FLAGS.split(), "--recipe", recipe, "--teacher", str(teacher), "--name", "a"]) == 0
    rows = read_jsonl(Path("runs/a/metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert math.isfinite(row["loss"])
        assert math.isfinite(row["grad_norm"])
        assert row["grad_norm"] > 0
        assert row["kept"] > 0
    facts = json.loads(Path("runs/a/run.json").read_text())
    assert facts["recipe_text"].startswith(f"{recipe} (")
    assert facts["teacher"]["kind"] == "another model"
    taught = load("runs/a/final", dtype=torch.float32).model
    with torch.no_grad():
        assert bool(taught(input_ids=torch.tensor([[1, 2, 3]])).logits.isfinite().all())
