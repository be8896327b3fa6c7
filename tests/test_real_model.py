"""The embedded model itself, through the command: two cores, no network, a minute a case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verifiers import SandboxRefused, open_sandbox
from workbench import opsd
from workbench.train.run_directory import read_jsonl

SMALL = [
    "--limit",
    "32",
    "--eval-problems",
    "6",
    "--steps",
    "2",
    "--batch",
    "4",
    "--progress",
    "plain",
    "--save-every",
    "100",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_embedded_model_is_distilled_and_its_folder_is_a_model(here: Path, capsys) -> None:
    """`--recipe opsd` on smollm2; the folder it writes is what the next run starts from."""
    assert opsd.main([*SMALL, "--name", "a"]) == 0
    out = capsys.readouterr()
    assert "You know that" in out.err
    assert "divergence 0.000000 at every token" in out.err
    rows = read_jsonl(Path("runs/a/metrics.jsonl"))
    assert all(row["sampler_gap"] < 1e-3 for row in rows), "the sampler and the learner are one model"
    assert opsd.main([*SMALL, "--name", "b", "--steps", "1", "--model", "runs/a/final", "--recipe", "sft"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora:r=8,alpha=16"])
@pytest.mark.parametrize("recipe", ["opsd", "opsdc", "gates", "sft"])
def test_recipes_run_on_the_embedded_model(here: Path, recipe: str, adapter: str) -> None:
    more = ["--batch", "2", "--group", "4", "--set", "gates.0.votes=2"] if recipe == "gates" else []
    assert opsd.main([*SMALL, "--name", "a", "--recipe", recipe, "--adapter", adapter, *more]) == 0
    assert json.loads(Path("runs/a/status.json").read_text())["phase"] == "finished"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("level", ["bwrap", "landlock"])
def test_gates_runs_on_programs(here: Path, level: str) -> None:
    """Sampled close to greedily, so that a model this small agrees with itself on some program."""
    try:
        open_sandbox(level)
    except SandboxRefused as refusal:
        pytest.skip(str(refusal))
    command = [*SMALL, "--name", "a", "--recipe", "gates", "--problems", "code:difficulty=easy", "--sandbox", level]
    more = "--steps 1 --limit 2 --batch 2 --group 2 --temperature 0.05 --max-new-tokens 96 --eval-problems 0"
    assert opsd.main([*command, *more.split(), "--set", "gates.0.votes=2"]) == 0
    rollouts = read_jsonl(Path("runs/a/rollouts.jsonl"))
    assert {row["level"] for row in rollouts} <= {"plain", level}
    assert all(row["behaviour"] for row in rollouts if row["kept"] and row["author"] == "teacher")
