"""The loop around a step: which problems, when to save, when to stop, and what must not go on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from workbench.errors import TrainingError
from workbench.recipe import Recipe
from workbench.records import Problem
from workbench.train.report import StepReport
from workbench.train.step import State, Verifier, train_step

PATIENCE = 10
"""Steps in a row in which every rollout was rejected before the run stops."""

Ending = Literal["done", "time", "stopped"]


@dataclass(frozen=True)
class LoopSettings:
    """When to do what besides stepping."""

    steps: int
    seed: int = 0
    minutes: float | None = None
    save_every: int = 50
    eval_every: int = 0


class Observer(Protocol):
    """Who is told what happened; it writes files and screens and returns nothing."""

    def step(self, report: StepReport, seconds: dict[str, float], notes: list[str]) -> None:
        """After every step."""
        ...

    def save(self) -> None:
        """A checkpoint is due."""
        ...

    def evaluate(self) -> None:
        """An evaluation between steps is due."""
        ...


def run(
    recipe: Recipe,
    state: State,
    problems: Sequence[Problem],
    verify: Verifier,
    settings: LoopSettings,
    observer: Observer,
) -> Ending:
    """Step until `settings.steps` are done, the time is over or somebody asks to stop; saves at the end of each.

    Raises TrainingError when every rollout of ten steps in a row was rejected.
    """
    start = time.monotonic()
    rejected, saved = 0, state.clock.step
    ending: Ending = "done"
    while state.clock.step < settings.steps and ending == "done":
        batch = recipe.curriculum.batch(problems, recipe.batch, state.clock.step * recipe.batch, settings.seed)
        report = train_step(recipe, state, batch, verify)
        if report is None:
            ending = "stopped"
            break
        observer.step(report, *state.phases.take())
        rejected = 0 if report.kept else rejected + 1
        if rejected == PATIENCE:
            observer.save()
            raise TrainingError(_nothing_kept(recipe, len(report.judged) * PATIENCE))
        step = state.clock.step
        if step % settings.save_every == 0:
            observer.save()
            saved = step
        if settings.eval_every and step % settings.eval_every == 0 and step < settings.steps:
            observer.evaluate()
        ending = _ending(state, settings, start)
    if state.clock.step != saved:
        observer.save()
    return ending


def _ending(state: State, settings: LoopSettings, start: float) -> Ending:
    """`done` while nothing speaks against the next step."""
    if state.stopped():
        return "stopped"
    late = settings.minutes is not None and time.monotonic() - start >= 60 * settings.minutes
    return "time" if late else "done"


def _nothing_kept(recipe: Recipe, rollouts: int) -> str:
    gates = " then ".join(type(gate).__name__ for gate in recipe.gates)
    if not gates:
        return f"all {rollouts} rollouts of {PATIENCE} steps were empty. Nothing can be learnt. Look at rollouts.jsonl."
    return (
        f"gate {gates} rejected all {rollouts} rollouts of {PATIENCE} steps: nothing passes it. "
        "Easier problems, larger --group, or no gate."
    )
