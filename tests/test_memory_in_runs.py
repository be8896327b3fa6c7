"""Methods that remember, through the command: what is stopped anywhere ends as if nothing had happened.

A run is copied as its directory stands right after a save, which is what a kill would leave, and the copy goes on.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.conftest import build_tiny
from workbench import opsd
from workbench.overrides import choose
from workbench.parts.schedules import Clock, Memory, Seen
from workbench.recording import Recorder
from workbench.train.run_directory import read_jsonl

STEPS = 6
FLAGS = "--problems sums:terms=2,maximum=9 --limit 8 --eval-problems 4 --batch 2 --max-new-tokens 8 --eval-tokens 4"
FLAGS += f" --lr 1e-3 --adapter none --progress quiet --save-every 1 --steps {STEPS}"

MOVING = {
    "taid": (),
    "distillm": ("rollouts.student=ThresholdByValidation(start=0.9, tolerance=-9.0)", "rollouts.remembers=3"),
    "adakd": ("plans.0.share=ShareByLoss(tolerance=0.0, change=0.3, decay=0.5, warmup=0.2)",),
    "paced": ("curriculum.success=0", "curriculum.failure=0", "curriculum.rollouts=2"),
    "minillm": (),
}
"""Set so that within six steps everything that can move does; a random model solves nothing."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Where both models are, and every run of this page."""
    folder = tmp_path_factory.mktemp("memory")
    build_tiny(folder / "student")
    build_tiny(folder / "teacher", seed=3, layers=1, hidden_size=96)
    return folder


@pytest.fixture
def command(root: Path, monkeypatch):
    """`command("taid", "--name", "a")` runs the recipe as `MOVING` sets it; returns its exit code."""
    monkeypatch.chdir(root)

    def run(recipe: str, *flags: str) -> int:
        changes = [word for change in MOVING[recipe] for word in ("--set", change)]
        return opsd.main(
            ["--model", "student", "--teacher", "teacher", *FLAGS.split(), "--recipe", recipe, *changes, *flags]
        )

    return run


@pytest.fixture
def whole(command, monkeypatch):
    """`whole("taid")`: a run of that name, once; it leaves copies taid-2 and taid-5, as its saves left it."""
    save = Recorder.save

    def and_copy(recorder: Recorder) -> None:
        save(recorder)
        if recorder.state.clock.step in (2, 5):
            path = recorder.directory.path
            shutil.copytree(path, path.with_name(f"{path.name}-{recorder.state.clock.step}"))

    def run(recipe: str) -> str:
        if not Path("runs", recipe).exists():
            with monkeypatch.context() as patch:
                patch.setattr(Recorder, "save", and_copy)
                assert command(recipe, "--name", recipe) == 0
        return recipe

    return run


def kept(name: str) -> dict:
    """What the newest checkpoint of a run remembers beside the weights."""
    folder = sorted(Path("runs", name, "checkpoints").glob("step-*"))[-1]
    state = json.loads((folder / "state.json").read_text())
    return {part: state[part] for part in ("memory", "replay", "rates", "trained")}


def losses(name: str) -> list[float]:
    return [row["loss"] for row in read_jsonl(Path("runs", name, "metrics.jsonl"))]


def weights(name: str) -> str:
    return json.loads(Path("runs", name, "status.json").read_text())["weights_sha256"]


@pytest.mark.parametrize("recipe", MOVING)
def test_a_run_that_was_stopped_ends_like_one_that_was_not(command, whole, recipe: str) -> None:
    assert len(losses(whole(recipe))) == STEPS
    for step in (2, 5):
        name = f"{recipe}-{step}"
        assert len(losses(name)) == step
        assert command(recipe, "--name", name, "--resume") == 0
        assert losses(name) == losses(recipe)
        assert weights(name) == weights(recipe)
        assert kept(name) == kept(recipe)


@pytest.mark.parametrize("recipe", MOVING)
def test_memory_counts_optimizer_steps_however_they_are_split(command, whole, recipe: str) -> None:
    """Bug: every micro-batch of an accumulation moves the schedule. One row at a time gives what one batch gives."""
    split = f"{recipe}-split"
    assert command(recipe, "--name", split, "--micro-tokens", "1") == 0
    assert losses(split) == pytest.approx(losses(whole(recipe)), rel=1e-4)
    one, other = kept(recipe), kept(split)
    assert one["rates"] == other["rates"]
    assert one["trained"] == other["trained"]
    assert [row["tokens"] for row in one["replay"]] == [row["tokens"] for row in other["replay"]]
    assert one["memory"].keys() == other["memory"].keys()
    for schedule, values in one["memory"].items():
        assert other["memory"][schedule] == pytest.approx(values, rel=1e-3, abs=1e-9)


def test_each_of_them_did_remember(whole) -> None:
    """What the runs above compare is not empty."""
    found = {recipe: kept(whole(recipe)) for recipe in MOVING}
    (share,) = found["taid"]["memory"].values()
    assert share[0] > 0.8, "the straight line's floor after five of six steps"
    (threshold,) = found["distillm"]["memory"].values()
    assert threshold[0] > 0.9
    authors = [{row["author"] for row in rows} for rows in by_step("distillm")]
    assert {"student"} in authors
    assert [row["author"] for row in found["distillm"]["replay"]] == ["student"] * 3, "full, and of nobody else's"
    assert found["adakd"]["memory"] != {}
    assert found["paced"]["rates"] != {}
    assert [{row["author"] for row in rows} for rows in by_step("paced")] == [{"dataset"}] * 3 + [{"student"}] * 3
    assert all(row["sampler_logp"] for rows in by_step("minillm") for row in rows)


def by_step(name: str) -> list[list[dict]]:
    rows = read_jsonl(Path("runs", name, "rollouts.jsonl"))
    return [[row for row in rows if row["step"] == step] for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("recipe", ["taid", "adakd"])
def test_what_is_remembered_follows_from_the_losses_of_the_steps(whole, recipe: str) -> None:
    """One observation a step, in order, of the loss in metrics.jsonl: nothing else moves a schedule."""
    chosen, memory = choose(recipe, MOVING[recipe]), Memory()
    for step, loss in enumerate(losses(whole(recipe))):
        memory.observe(chosen, Clock(step, STEPS), Seen(loss=loss))
    (expected,), (found,) = memory.state_dict().values(), kept(recipe)["memory"].values()
    assert found == pytest.approx(expected, rel=1e-6)
    assert not any(value is None or math.isnan(value) for value in found)


def test_what_a_rollout_from_memory_is_learnt_as(whole) -> None:
    """A replayed rollout is the one written earlier: same tokens, same log-probs, its old weights."""
    replayed = 0
    seen: dict[tuple, dict] = {}
    for step, rows in enumerate(by_step(whole("distillm"))):
        for row in rows:
            if row["author"] == "student":
                key = (row["problem"], tuple(row["token_ids"]))
                if row["weights_version"] < step:
                    replayed += 1
                    assert seen[key]["sampler_logp"] == row["sampler_logp"]
                    assert seen[key]["weights_version"] == row["weights_version"]
                seen[key] = row
    assert replayed
