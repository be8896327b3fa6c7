"""The loop around a step: which problems, when to save, when to stop, and what must not go on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from workbench.errors import TrainingError
from workbench.parts.gates import Gate
from workbench.parts.schedules import Memory, Seen
from workbench.parts.writers import Desk
from workbench.recipe import Recipe
from workbench.records import Problem
from workbench.train.ahead import foresee, forget
from workbench.train.judging import Verifier
from workbench.train.report import StepReport
from workbench.train.step import State, train_step
from workbench.train.survey import cross_entropy, pass_rates

PATIENCE = 10
"""Steps in a row in which every rollout was rejected before the run stops."""

YOUNG = 60.0
"""Seconds: a run that is stopped does not save again behind a checkpoint that is younger than this."""

Ending = Literal["done", "time", "tokens", "stopped"]


@dataclass(frozen=True)
class LoopSettings:
    """When to do what besides stepping."""

    steps: int
    seed: int = 0
    minutes: float | None = None
    train_tokens: int | None = None
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
    rejected, saved, saved_at = 0, state.clock.step, -math.inf
    ending: Ending = "done"
    while state.clock.step < settings.steps and ending == "done" and not recipe.over(state.clock, state.memory):
        remembered = state.memory.state_dict()
        survey(recipe, state, problems, verify)
        teaching = recipe.curriculum.teaching(problems, state.rates)
        if not teaching and not state.stopped():
            raise TrainingError(_nothing_teaches(recipe, problems))
        n = min(recipe.batch, len(teaching))  # the same problem twice in a step would be the same rollout twice
        batch = recipe.curriculum.batch(teaching, n, state.clock.step * recipe.batch, settings.seed)
        foresee(recipe, state, teaching, settings.steps, settings.seed)
        report = _tried(recipe, state, batch, verify, remembered)
        if report is None:
            ending = "stopped"
            break
        gates = recipe.method(state.memory).gates
        observer.step(report, *state.phases.take())
        rejected = 0 if report.kept else rejected + 1
        if rejected == PATIENCE:
            observer.save()
            raise TrainingError(_nothing_kept(gates, len(report.judged) * PATIENCE))
        step = state.clock.step
        if step % settings.save_every == 0:
            observer.save()
            saved, saved_at = step, time.monotonic()
        if settings.eval_every and step % settings.eval_every == 0 and step < settings.steps:
            observer.evaluate()
        ending = _ending(state, settings, start)
    # What clocks say is agreed on: each rank has its own, and all must do the same.
    young = state.engine.ranks.agree(ending == "stopped" and time.monotonic() - saved_at < YOUNG)
    if state.clock.step != saved and not young:
        observer.save()
    return ending


def _tried(
    recipe: Recipe, state: State, batch: Sequence[Problem], verify: Verifier, remembered: dict[str, Any]
) -> StepReport | None:
    """A step. One that is not done comes again, and so does what was measured before it: that is forgotten."""
    report = None
    try:
        report = train_step(recipe, state, batch, verify)
    except Exception:
        forget(state)
        raise
    finally:
        if report is None:
            state.memory = Memory(remembered)
    return report


def survey(recipe: Recipe, state: State, problems: Sequence[Problem], verify: Verifier) -> None:
    """What some methods measure before a step: pass rates when a stage begins, validation when an epoch does."""
    clock = state.clock
    asked = recipe.curriculum.surveys(clock)
    if asked:
        with state.phases("survey"):
            seed = (state.seed, clock.step, asked)  # shares no random number with the step
            desk = Desk(state.engine, recipe.student, None, recipe.at(clock).sampling, seed, state.stopped)
            state.rates = pass_rates(desk, problems, verify, asked, state.engine.ranks) or state.rates
    first = clock.step * recipe.batch % len(problems) < recipe.batch  # the batch that begins an epoch
    if first and any(schedule.validates for schedule in recipe.adaptive):
        with state.phases("survey"):
            loss = cross_entropy(recipe.at(clock, state.memory), state.engine, state.held_out)
        state.memory.observe(recipe, clock, Seen(validation=loss))


def _nothing_teaches(recipe: Recipe, problems: Sequence[Problem]) -> str:
    return (
        f"{type(recipe.curriculum).__name__} found no problem among {len(problems)} that the student solves sometimes. "
        "Nothing is left to draw from. Use easier or harder problems, or more survey rollouts."
    )


def _ending(state: State, settings: LoopSettings, start: float) -> Ending:
    """`done` while nothing speaks against the next step."""
    if state.stopped():
        return "stopped"
    if settings.train_tokens is not None and state.trained >= settings.train_tokens:
        return "tokens"
    late = settings.minutes is not None and time.monotonic() - start >= 60 * settings.minutes
    return "time" if state.engine.ranks.agree(late) else "done"


def _nothing_kept(by: Sequence[Gate], rollouts: int) -> str:
    gates = " then ".join(type(gate).__name__ for gate in by)
    if not gates:
        return f"all {rollouts} rollouts of {PATIENCE} steps were empty. Nothing can be learnt. Look at rollouts.jsonl."
    return (
        f"gate {gates} rejected all {rollouts} rollouts of {PATIENCE} steps: nothing passes it. "
        "Easier problems, larger --group, or no gate."
    )
