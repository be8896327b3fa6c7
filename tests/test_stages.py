"""Staged runs: one stage gives way to the next at the step its trigger says, also behind a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.test_step import PROBLEMS, recipe, verify
from verifiers import Verdict
from workbench import opsd
from workbench.errors import RecipeError, UsageError
from workbench.parts.adaptive import ShareByLoss
from workbench.parts.refresh import LIVE
from workbench.parts.schedules import Clock, Linear, Memory, Seen
from workbench.parts.stages import GradientBelow, Plateau, Progress, Until
from workbench.parts.terms import CrossEntropy
from workbench.parts.writers import FromDataset, OnPolicy
from workbench.recipe import Optimizer
from workbench.recipes import ALL
from workbench.records import Problem
from workbench.stages import own_settings, read_stage, staged
from workbench.train import loop
from workbench.train.loop import LoopSettings, run
from workbench.train.run_directory import read_jsonl
from workbench.train.snapshot import weights_hash
from workbench.train.step import State

TEXT = recipe(name="text", teacher=None, rollouts=FromDataset(), terms=(CrossEntropy(),), batch=2)
TAUGHT = recipe(name="taught", rollouts=OnPolicy(1), batch=2)


class Listener:
    """Notes which method each step was of."""

    def __init__(self, chosen, state) -> None:
        self.chosen, self.state, self.methods = chosen, state, []
        self.next = chosen.method(state.memory).name

    def step(self, report, seconds, notes) -> None:
        self.methods.append(self.next)
        self.next = self.chosen.method(self.state.memory).name

    def save(self) -> None:
        pass

    def evaluate(self) -> None:
        pass


def trained(engine, chosen, steps: int, saved: tuple[int, str] | None = None):
    """(methods by step, what a checkpoint keeps) after running to `steps`, perhaps from a checkpoint."""
    state = State(engine, Clock(0, chosen.steps), held_out=PROBLEMS[4:])
    if saved is not None:
        state.recall(saved[0], json.loads(saved[1]), PROBLEMS[:4])
    listener = Listener(chosen, state)
    assert run(chosen, state, PROBLEMS[:4], verify, LoopSettings(steps), listener) == "done"
    return listener.methods, (state.clock.step, json.dumps(state.remembered(), allow_nan=False))


def walk(progress: Progress, seen: list[Seen]) -> list[int]:
    """The stage after each measurement, through the JSON of a checkpoint every time."""
    memory, step, found = Memory(), 0, []
    for what in seen:
        memory.observe(progress, Clock(step, 100), what)
        memory = Memory(json.loads(json.dumps(memory.state_dict(), allow_nan=False)))
        step += what.validation is None
        found.append(progress.place(memory)[0])
    return found


def steps(*norms: float) -> list[Seen]:
    return [Seen(loss=1.0, grad_norm=norm) for norm in norms]


def test_steps_end_a_stage() -> None:
    progress = Progress((Until(2), Until(1), Until(3)))
    assert walk(progress, steps(*[1.0] * 6)) == [0, 1, 2, 2, 2, 2]
    memory = Memory()
    for step in range(6):
        assert not progress.over(Clock(step, 6), memory)
        memory.observe(progress, Clock(step, 6), Seen(loss=1.0))
    assert progress.over(Clock(6, 6), memory)


def test_a_small_gradient_ends_a_stage() -> None:
    progress = Progress((GradientBelow(100, limit=0.5, window=3), Until(9)))
    assert walk(progress, steps(0.1, 0.1, 2.0, 0.6, 0.5, 0.3, 0.1)) == [0, 0, 0, 0, 0, 1, 1]
    nothing = [Seen(loss=None, grad_norm=0.0), *steps(float("inf"), 0.1, 0.1)]
    assert walk(progress, nothing) == [0] * 4, "a step that learnt nothing has no gradient"
    assert walk(Progress((GradientBelow(2, limit=0.5), Until(9))), steps(1.0, 1.0)) == [0, 1], "its steps end it too"


def test_a_plateau_of_the_held_out_loss_ends_a_stage() -> None:
    progress = Progress((Plateau(100, patience=2, gain=0.1), Until(9)))
    values = [2.0, 1.5, 1.45, 1.3, 1.25, 1.21]
    seen = [x for value in values for x in (Seen(validation=value), Seen(loss=1.0))]
    assert walk(progress, seen) == [0] * 10 + [1, 1]
    assert Progress((Until(3), Plateau(4))).validates
    assert not Progress((Until(3),)).validates


def test_a_stage_begins_its_own_clock() -> None:
    rate = replace(TAUGHT, optimizer=Optimizer(lr=Linear(0.0, 0.1), warmup_steps=1))
    chosen = staged([rate, replace(rate, name="again")], [Until(3), Until(3)])
    memory, found = Memory(), []
    for step in range(6):
        found.append(chosen.at(Clock(step, 6), memory).optimizer.lr)
        memory.observe(chosen, Clock(step, 6), Seen(loss=1.0))
    assert found == pytest.approx([0.0, 0.05, 0.1] * 2)


def test_a_staged_run_is_the_stages_and_resumes_in_the_second(tiny) -> None:
    chosen = staged([TEXT, TAUGHT, TEXT], [Until(2), GradientBelow(4, limit=1e9, window=3), Until(1)])
    engine = tiny()
    methods, _ = trained(engine, chosen, chosen.steps)
    assert methods == ["text", "text", "taught", "taught", "taught", "text"], "and then nothing, though steps are left"
    again = tiny()
    first, saved = trained(again, chosen, 4)
    assert "[1.0, 2.0, " in saved[1], "the second stage began after step 2, and its trigger has two norms"
    rest, _ = trained(again, chosen, chosen.steps, saved)
    assert first + rest == methods
    assert weights_hash(again) == weights_hash(engine)
    other = tiny()
    trained(other, staged([TEXT, TEXT], [Until(3), Until(3)]), 6)
    assert weights_hash(other) != weights_hash(engine)


def test_stages_alone_are_what_the_recipe_is(tiny) -> None:
    engine, plain = tiny(), tiny()
    trained(engine, staged([TAUGHT], [Until(2)]), 2)
    state = State(plain, Clock(0, 2), held_out=PROBLEMS[4:])
    run(TAUGHT, state, PROBLEMS[:4], verify, LoopSettings(2), Listener(TAUGHT, state))
    assert weights_hash(engine) == weights_hash(plain)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([TEXT, replace(TAUGHT, adapter="lora:r=4")], "differ in `adapter`"),
        ([TAUGHT, replace(TAUGHT, refresh=LIVE)], "differ in `refresh`"),
        ([TEXT, replace(TAUGHT, optimizer=Optimizer(lr=ShareByLoss()))], "follows what training measures"),
    ],
)
def test_stages_that_cannot_share_a_run_are_refused(stages, words) -> None:
    with pytest.raises(RecipeError, match=words):
        staged(stages, [Until(1)] * len(stages))


def test_what_a_stage_is_in_words() -> None:
    assert read_stage("sft:20") == ("sft", Until(20))
    assert read_stage("sft:20:plateau") == ("sft", Plateau(20))
    assert read_stage("sft:20:plateau=5") == ("sft", Plateau(20, patience=5))
    assert read_stage("dr_grpo:9:gradient=5e-2") == ("dr_grpo", GradientBelow(9, limit=0.05))
    for wrong in (
        "sft",
        "sft:0",
        "sft:x",
        "sft:3:gradient",
        "sft:3:plateau=1.5",
        "sft:3:gradient=.",
        "sft:3:gradient=0",
    ):
        with pytest.raises(UsageError, match="--stages"):
            read_stage(wrong)
    assert own_settings(["stages.1.optimizer.lr=1e-5", "stages.0.batch=2"], 2) == [
        ("batch=2",),
        ("optimizer.lr=1e-5",),
    ]
    for wrong in ("optimizer.lr=1", "stages.2.batch=1", "stages.x.batch=1"):
        with pytest.raises(UsageError, match="which stage"):
            own_settings([wrong], 2)


def test_a_staged_run_through_the_command(tiny_folder: Path, tmp_path, monkeypatch, capsys) -> None:
    """One directory, one resume: stopped inside the second stage it ends with the same weights."""
    monkeypatch.chdir(tmp_path)
    flags = ["--model", str(tiny_folder), "--problems", "sums:terms=2,maximum=9", "--limit", "12", "--batch", "3"]
    flags += ["--eval-problems", "0", "--max-new-tokens", "8", "--adapter", "none", "--progress", "plain"]
    flags += ["--stages", "sft:1", "opsd:2", "--set", "stages.1.optimizer.lr=1e-3"]
    assert opsd.main([*flags, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "stage 1" in said
    assert "Until(steps=2)" in said
    assert opsd.main([*flags, "--name", "whole"]) == 0
    assert "stage sft is over: opsd from step 2 on" in capsys.readouterr().err
    learnt = [row["tokens_trained"] for row in read_jsonl(Path("runs/whole/metrics.jsonl"))]
    assert opsd.main([*flags, "--name", "parts", "--train-tokens", str(learnt[0] + 1)]) == 0
    assert opsd.main(["--name", "parts", "--resume", "--train-tokens", "1000000"]) == 0
    whole, parts = (json.loads(Path("runs", n, "status.json").read_text()) for n in ("whole", "parts"))
    assert whole["weights_sha256"] == parts["weights_sha256"]
    assert [row["method"] for row in read_jsonl(Path("runs/parts/metrics.jsonl"))] == ["sft", "opsd", "opsd"]
    assert {name: m["steps"] for name, m in parts["accounts"]["methods"].items()} == {"beside": 0, "sft": 1, "opsd": 2}
    assert opsd.main([*flags, "--steps", "3"]) == 2
    assert opsd.main([*flags, "--name", "parts", "--resume", "--stages", "sft:2", "opsd:2"]) == 2


def test_the_teacher_moves_if_it_moves_in_some_stage() -> None:
    still, moving = ALL["opsd"], ALL["opsdc"]
    assert not still.refresh.every
    assert moving.refresh.every
    for order in ((still, moving), (moving, still)):
        alike = [replace(stage, adapter=None, curriculum=still.curriculum) for stage in order]
        assert staged(alike, [Until(2), Until(2)]).refresh == moving.refresh


def test_a_step_that_is_not_done_forgets_what_was_measured_before_it(tiny, monkeypatch) -> None:
    """Bug: the measurement was saved with the stop, made again on resume, and counted twice."""
    held, state = Problem("h", "1 + 1?", "2", "2"), State(tiny(), Clock(0, 9))
    state.held_out = [held]
    chosen = staged([TEXT, TAUGHT], [Plateau(5, patience=1), Until(2)])
    monkeypatch.setattr(loop, "cross_entropy", lambda *_: 1.0)
    monkeypatch.setattr(loop, "train_step", lambda *_: None)
    for _ in range(3):
        ending = loop.run(chosen, state, [held], lambda r: Verdict("wrong"), loop.LoopSettings(9), None)
        assert ending == "stopped"
        assert state.memory.state_dict() == {}
