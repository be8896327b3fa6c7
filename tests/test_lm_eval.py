"""The held-out problems as a task of lm-evaluation-harness: run where it is installed, and its files everywhere."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from workbench import export, opsd
from workbench.train.run_directory import read_jsonl

SMALL = ["--steps", "0", "--eval-problems", "10", "--eval-tokens", "48", "--progress", "quiet"]


def task_of(folder: Path) -> dict:
    """The YAML, its functions left as text."""
    (path,) = folder.glob("*.yaml")
    return yaml.safe_load(path.read_text().replace("!function ", ""))


def test_a_task_asks_what_the_student_was_asked_and_judges_as_the_run_did(exported_runs, monkeypatch, capsys) -> None:
    monkeypatch.chdir(exported_runs)
    assert export.main(["runs/full", "--lm-eval", "task"]) == 0
    said = capsys.readouterr().out
    assert "lm_eval run --model hf --model_args pretrained=runs/full/final --apply_chat_template" in said
    assert "--include_path task --tasks opsd_full" in said
    task = task_of(Path("task"))
    assert task["generation_kwargs"] == {"do_sample": False, "max_gen_toks": 8, "until": ["<|im_end|>"]}
    stored = read_jsonl(Path("runs/full/evaluations.jsonl"))[-1]["arms"][0]["answers"]
    rows = [json.loads(line) for line in Path("task/problems.jsonl").read_text().splitlines()]
    assert [(r["id"], r["answer"]) for r in rows] == [(a["problem"], a["gold"]) for a in stored]
    assert all("put your final answer within" in r["question"] for r in rows), "the student's own context"
    spec = importlib.util.spec_from_file_location("utils", "task/utils.py")
    assert spec is not None
    assert spec.loader is not None
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    (first, *_) = utils.dataset(**task["metadata"])["test"]
    right = utils.process_results(first, [f"So it is \\boxed{{{first['answer']}}}."])
    assert right == {"correct": 1.0, "judged": 1.0}
    assert utils.process_results(first, ["I do not know"]) == {"correct": 0.0, "judged": 1.0}
    assert utils.process_results(first | {"answer": ""}, ["1"]) == {"correct": 0.0, "judged": 0.0}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: docs/exports.md")
def test_lm_eval_itself_finds_the_accuracy_that_the_run_found(tmp_path: Path, monkeypatch) -> None:
    """The embedded model on sums, some right and some wrong: each answer that was not cut must be judged alike."""
    monkeypatch.chdir(tmp_path)
    assert opsd.main([*SMALL, "--name", "sums"]) == 0
    assert export.main(["runs/sums", "--lm-eval", "task"]) == 0
    command = "run --model hf --model_args pretrained=runs/sums/final --apply_chat_template --include_path task"
    command += " --tasks opsd_sums --output_path out --log_samples --device cpu --batch_size 4"
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *command.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [row for path in Path("out").rglob("samples_*.jsonl") for row in read_jsonl(path)]
    stored = read_jsonl(Path("runs/sums/evaluations.jsonl"))[-1]["arms"][0]["answers"]
    judged, whole = {r["doc"]["id"]: r["correct"] for r in found}, [a for a in stored if a["stop"] == "stop"]
    assert judged.keys() == {a["problem"] for a in stored}
    assert {a["problem"]: a["score"] for a in whole} == {a["problem"]: judged[a["problem"]] for a in whole}
    assert 0 < sum(a["score"] for a in whole) < len(whole), "else equality says little"
    shutil.rmtree("out")
