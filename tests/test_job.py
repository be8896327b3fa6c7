"""The main job through its own command: what it writes, how it goes on after a stop, what it says when it cannot."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import build_tiny
from workbench import evaluate, opsd
from workbench.train.run_directory import read_jsonl, view

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--problems",
    "sums:terms=2,maximum=9",
    "--limit",
    "12",
    "--eval-problems",
    "6",
    "--batch",
    "3",
    "--lr",
    "1e-3",
    "--max-new-tokens",
    "10",
]
FLAGS += ["--adapter", "none", "--progress", "plain", "--save-every", "1"]


@pytest.fixture
def command(tiny_folder: Path, tmp_path: Path, monkeypatch):
    """`command("--name", "a", ...)` runs the main job on the tiny model below tmp_path; returns its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, model: str | None = None) -> int:
        return opsd.main(["--model", model or str(tiny_folder), *FLAGS, *flags])

    return run


def status(name: str) -> dict:
    return json.loads(Path("runs", name, "status.json").read_text())


@pytest.mark.parametrize("adapter", ["none", "lora:r=4,alpha=8"])
def test_run_leaves_everything_behind(command, capsys, adapter: str) -> None:
    assert command("--name", "a", "--steps", "2", "--adapter", adapter) == 0
    run = Path("runs/a")
    out = capsys.readouterr()
    for words in ("student sees", "teacher sees", "check zero", "divergence 0.000000", "step 2/2"):
        assert words in out.err, words
    for words in ("before", "prompt only", "teacher's view", "after", "verdict", "saved"):
        assert words in out.out, words
    facts = json.loads((run / "run.json").read_text())
    assert facts["recipe_text"].startswith("opsd (arXiv:2601.18734")
    assert facts["config"]["steps"] == 2
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2]
    rollouts = read_jsonl(run / "rollouts.jsonl")
    assert len(rollouts) == 6
    assert all(len(r["divergence"]) == len(r["token_ids"]) for r in rollouts if r["kept"])
    assert [row["when"] for row in read_jsonl(run / "evaluations.jsonl")] == ["before", "after"]
    assert json.loads((run / "eval.json").read_text())["verdict"]["word"] in {"moved", "did not move", "got worse"}
    assert view(run).state == "finished"
    final = run / "final"
    assert (final / "README.md").read_text().startswith("---\n")
    assert all(p.stat().st_mode & 0o777 == 0o644 for p in final.rglob("*") if p.is_file())
    model = final if adapter == "none" else final / "adapter"
    assert command("--name", "again", "--steps", "0", "--eval-problems", "0", model=str(model)) == 0, "it loads again"


def test_dry_run_says_everything_and_writes_nothing(command, capsys) -> None:
    assert command("--dry-run") == 0
    assert "teacher sees" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.parametrize("recipe", ["opsdc", "gates", "sft", "opsd_other_problem"])
def test_recipes_run_end_to_end(command, recipe: str) -> None:
    flags = ["--group", "2"] if recipe == "gates" else []
    assert command("--recipe", recipe, "--name", "a", "--steps", "1", *flags) == 0


def test_resumed_run_is_the_uninterrupted_one(command) -> None:
    for recipe, name in (("opsd", "a"), ("opsdc", "b")):
        more = ["--recipe", recipe] + (["--set", "refresh.every=2"] if recipe == "opsdc" else [])
        assert command("--name", name, "--steps", "4", *more) == 0
        assert command("--name", f"{name}2", "--steps", "2", *more) == 0
        assert command("--name", f"{name}2", "--steps", "4", "--resume", *more) == 0
        assert status(name)["weights_sha256"] == status(f"{name}2")["weights_sha256"], recipe
        whole, parts = (read_jsonl(Path("runs", n, "metrics.jsonl")) for n in (name, f"{name}2"))
        assert [r["loss"] for r in whole] == [r["loss"] for r in parts]
        assert status(name)["weights_sha256"] != status("a")["weights_sha256"] or recipe == "opsd"


def start(folder: Path, tiny_folder: Path, *flags: str, said=subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "workbench.opsd", "--model", str(tiny_folder), *FLAGS, *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=said)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not any(r["step"] >= step for r in read_jsonl(run / "metrics.jsonl")):
        time.sleep(0.01)


def test_killed_at_any_moment_it_ends_with_the_same_weights(command, capsys, tiny_folder, tmp_path) -> None:
    """kill -9, again and again; the last attempt ends with the hash of a run that nothing happened to."""
    assert command("--name", "whole", "--steps", "6") == 0
    dice = random.Random(5)
    flags = ["--name", "killed", "--steps", "6"]
    for attempt in range(4):
        process = start(tmp_path, tiny_folder, *flags, *(["--resume"] if attempt else []))
        wait_for_step(tmp_path / "runs/killed", attempt + 1, process)
        time.sleep(dice.random() * 0.1)
        process.kill()
        process.wait()
    assert command(*flags, "--resume") == 0
    assert re.search(r"resuming from step [1-9]", capsys.readouterr().err), "it went on, it did not start over"
    assert [row["step"] for row in read_jsonl(Path("runs/killed/metrics.jsonl"))] == [1, 2, 3, 4, 5, 6]
    assert status("killed")["weights_sha256"] == status("whole")["weights_sha256"]
    assert not list(Path("runs/killed/checkpoints").glob(".tmp*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_says_how_to_go_on(command, tiny_folder: Path, tmp_path: Path, number: int, code: int) -> None:
    flags = ("--name", "a", "--steps", "500", "--save-every", "1000")
    process = start(tmp_path, tiny_folder, *flags, said=subprocess.PIPE)
    wait_for_step(tmp_path / "runs/a", 2, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert b"stopping after this rollout, saving" in said
    assert view(tmp_path / "runs/a").state == "interrupted"
    step = status("a")["step"]
    assert command("--name", "a", "--steps", str(step + 1), "--resume") == 0


def message(capsys) -> str:
    return capsys.readouterr().err


def test_existing_directory_is_refused_with_the_ways_on(command, capsys) -> None:
    assert command("--name", "a", "--steps", "1") == 0
    capsys.readouterr()
    assert command("--name", "a", "--steps", "1") == 2
    said = message(capsys)
    assert "runs/a exists (finished, step 1)" in said
    assert "--resume --steps 2" in said
    assert "--fork runs/a" in said
    assert command("--name", "a", "--steps", "1", "--fresh") == 0
    assert Path("runs/a.old-1/run.json").is_file()
    assert command("--name", "b", "--steps", "1", "--fork", "runs/a") == 0


def test_forked_run_is_resumed_from_its_own_initial_weights(command) -> None:
    assert command("--name", "a", "--steps", "1") == 0
    assert command("--name", "b", "--steps", "2", "--fork", "runs/a") == 0
    assert command("--name", "c", "--steps", "1", "--fork", "runs/a") == 0
    assert command("--name", "c", "--steps", "2", "--resume") == 0
    assert status("b")["weights_sha256"] == status("c")["weights_sha256"]


def test_adapter_of_an_adapter_is_exported_with_everything_it_learnt(command) -> None:
    """Forking a LoRA run merges its adapter; the new adapter alone would name a base without it."""
    lora = ["--adapter", "lora:r=4,alpha=8", "--steps", "1"]
    assert command("--name", "a", *lora) == 0
    assert command("--name", "b", *lora, "--fork", "runs/a") == 0, "the folder read back gives the logits of memory"
    assert Path("runs/b/final/config.json").is_file()


def test_lora_run_with_a_moving_teacher_resumes_to_the_same_weights(command) -> None:
    more = ["--recipe", "opsdc", "--adapter", "lora:r=4,alpha=8", "--set", "refresh.every=1"]
    assert command("--name", "a", "--steps", "3", *more) == 0
    assert command("--name", "b", "--steps", "2", *more) == 0
    assert command("--name", "b", "--steps", "3", "--resume", *more) == 0
    assert status("a")["weights_sha256"] == status("b")["weights_sha256"]


def test_batch_larger_than_the_set_is_made_smaller(command, capsys) -> None:
    assert command("--name", "a", "--steps", "1", "--batch", "50") == 0
    assert "batch 12: there are no more problems" in capsys.readouterr().err
    assert len(read_jsonl(Path("runs/a/rollouts.jsonl"))) == 12


def test_resume_refuses_what_would_be_another_run(command, capsys) -> None:
    assert command("--name", "a", "--steps", "1") == 0
    assert command("--name", "a", "--steps", "2", "--resume", "--lr", "2e-3") == 2
    said = message(capsys)
    assert "lr 0.001 -> 0.002" in said
    assert "--fork runs/a" in said
    assert command("--name", "nothing", "--resume") == 2


def test_corrupt_checkpoints_fall_back_and_then_refuse(command, capsys) -> None:
    assert command("--name", "a", "--steps", "2") == 0
    folders = sorted(Path("runs/a/checkpoints").glob("step-*"))
    for rotten, code in ((folders[-1:], 0), (folders, 3)):
        for folder in rotten:
            path = folder / "model.safetensors"
            if path.exists():
                content = bytearray(path.read_bytes())
                content[-1] ^= 1
                path.write_bytes(content)
        assert command("--name", "a", "--steps", "2", "--resume") == code
    assert "can be trusted" in message(capsys)


def test_data_messages(command, capsys, tmp_path: Path) -> None:
    rows = [{"question": "What is 1 + 1?", "answer": "2"}, {"question": "And 2 + 2?", "answer": "4"}]
    Path("bare.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert command("--problems", "bare.jsonl", "--eval-problems", "0") == 3
    said = message(capsys)
    assert "recipe opsd shows the teacher {solution}" in said
    assert "--columns solution=COLUMN" in said
    Path("broken.jsonl").write_text('{"question": "a", "solution": "b"}\n{"question": \n')
    assert command("--problems", "./broken.jsonl") == 3
    assert "line 2: not JSON" in message(capsys)
    assert command("--problems", "./none.jsonl") == 3
    assert "./none.jsonl" in message(capsys)


def test_model_messages(command, capsys, tmp_path: Path, monkeypatch) -> None:
    assert command(model="./nowhere") == 3
    assert "no folder ./nowhere (looked in" in message(capsys)
    Path("empty").mkdir()
    assert command(model="./empty") == 3
    assert "holds no config.json" in message(capsys)
    build_tiny(tmp_path / "silent", template=None)
    assert command(model="./silent") == 3
    assert "has no chat template. Give --chat-template FILE or use an -Instruct model." in message(capsys)
    Path("t.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}<|im_end|>")
    assert command("--dry-run", "--chat-template", "t.jinja", model="./silent") == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert command(model="HuggingFaceTB/SmolLM2-135M-Instrukt") == 3
    assert "is not in the local cache and HF_HUB_OFFLINE is set" in message(capsys)
    assert command("--device", "cuda") == 3
    assert "this torch is a CPU build" in message(capsys)


def test_prompt_too_long_is_refused_not_cut(command, capsys, tmp_path: Path) -> None:
    build_tiny(tmp_path / "short", max_position_embeddings=700)
    assert command("--max-new-tokens", "100", model="./short") == 3
    said = message(capsys)
    assert "Nothing was cut" in said
    assert (found := re.search(r"--max-new-tokens (\d+)", said)), "what would fit is said"
    assert command("--max-new-tokens", found[1], "--dry-run", model="./short") == 0
    rows = [{"question": f"{i} + 1?" + " again" * (20 * (i == 5)), "solution": "so", "answer": "1"} for i in range(8)]
    Path("mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mixed = ["--problems", "mixed.jsonl", "--eval-problems", "0", "--dry-run"]
    assert command(*mixed, model="./short") == 3
    said = message(capsys)
    assert "drops such problems (12 %)" in said
    limit = re.search(r"--max-prompt-tokens (\d+)", said)
    assert command(*mixed, "--max-prompt-tokens", limit[1], model="./short") == 0
    build_tiny(tmp_path / "tiny", max_position_embeddings=300)
    assert command(model="./tiny") == 3
    assert "leave no room for a completion" in message(capsys)
    assert command("--max-prompt-tokens", "100", model="./short") == 3
    assert "drops every problem" in message(capsys)


def test_template_that_drops_the_question_is_refused(command, capsys, tmp_path: Path) -> None:
    build_tiny(tmp_path / "deaf", template="{% for m in messages %}{{ m['content'][:20] }}{% endfor %}<|im_start|>")
    assert command(model="./deaf") == 3
    assert "does not stand in the" in message(capsys)


def test_gate_that_rejects_everything_stops_the_run(command, capsys) -> None:
    flags = ["--recipe", "rejection_sft", "--group", "1", "--eval-problems", "0", "--steps", "30"]
    assert command("--name", "a", *flags) == 1
    assert "gate Correct rejected all 30 rollouts of 10 steps" in message(capsys)
    assert status("a")["phase"] == "failed"


def test_minutes_stop_a_run_early(command) -> None:
    assert command("--name", "a", "--steps", "1000", "--minutes", "0.02", "--eval-problems", "0") == 0
    assert 0 < status("a")["step"] < 1000


def test_evaluate_judges_recorded_answers_again(command, capsys) -> None:
    assert command("--name", "a", "--steps", "1") == 0
    assert command("--name", "b", "--steps", "1", "--seed", "0") == 0
    capsys.readouterr()
    assert evaluate.main(["runs/a", "runs/b", "--verifier", "strict,lenient", "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert "a: before (strict)" in out
    assert "b: after (lenient)" in out
    assert len(read_jsonl(Path("out/eval.jsonl"))) == 2 * 2 * 4 * 6
    assert evaluate.main(["runs/a", "--verifier", "strikt"]) == 2
    assert "Did you mean 'strict'?" in capsys.readouterr().err


def test_evaluate_asks_a_model(tiny_folder: Path, capsys) -> None:
    flags = ["--problems", "sums:terms=2,maximum=9", "--n", "4", "--max-new-tokens", "5", "--json"]
    assert evaluate.main([str(tiny_folder), *flags, "--samples", "4", "--temperature", "1"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["arms"][0]["total"] == 16
    assert set(data["pass_at"]["question"]) == {"1", "2", "4"}
    assert evaluate.main([str(tiny_folder), *flags, "--samples", "4"]) == 2
