"""One step off: the rollouts of the next step are begun before this one is trained, by the weights of now.

Which problems a step meets and what it asks for are functions of the seed and the step, so the next step's requests
can be known now. Where something measured meanwhile changes them (a schedule, pass rates), what was begun is not what
is asked for, and is written anew by the weights of then. Divergences are always computed under the current learner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.engine.engine import Engine
from workbench.engine.generating import ignore, never
from workbench.engine.serving.ahead import AheadGenerator
from workbench.errors import UsageError
from workbench.parts.schedules import Clock
from workbench.parts.writers import Desk
from workbench.recipe import Recipe
from workbench.records import Case, Problem, Request, Rollout, Sampling, Told, Wanted
from workbench.train.step import State


def write_ahead(engine: Engine, recipe: Recipe, stopped: Callable[[], bool]) -> None:
    """Let the student's servers begin early. Raises UsageError for a recipe whose rollouts need the newest weights."""
    if recipe.rollouts.remembers or recipe.rollouts.mixes or "student" not in recipe.rollouts.authors:
        raise UsageError(
            f"--ahead 1: recipe {recipe.name} has nothing to write ahead ({recipe.rollouts!r}). It replays, mixes with "
            "the teacher, or its student does not write. Leave --ahead out."
        )
    engine.generators["student"] = AheadGenerator(engine.generators["student"], stopped)


def foresee(recipe: Recipe, state: State, problems: Sequence[Problem], steps: int, seed: int) -> None:
    """Begin the rollouts of the step after this one, if there is one and somebody can begin them."""
    generator, step = _ahead(state), state.clock.step + 1
    if generator is None or step >= steps:
        return
    now = recipe.at(Clock(step, state.clock.total), state.memory)
    n = min(recipe.batch, len(problems))
    batch = recipe.curriculum.batch(problems, n, step * recipe.batch, seed)
    state.engine.catch_up()
    beginner = Beginner(state.engine, generator, step)
    desk = Desk(beginner, now.student, now.teacher, now.sampling, (state.seed, step), state.stopped, state.replay)
    now.rollouts.draw(desk, batch)


def remembered(state: State) -> list[dict[str, Any]]:
    """The rollouts that a checkpoint keeps: older weights began them, and a resumed run has only those of now."""
    generator = _ahead(state)
    return generator.remembered(state.clock.step) if generator else []


def recall(state: State, records: Sequence[Mapping[str, Any]]) -> None:
    """Go on with what `remembered` gave."""
    if generator := _ahead(state):
        generator.recall(state.clock.step, records)


def forget(state: State) -> None:
    """A step failed: another attempt has its rollouts written anew."""
    if generator := _ahead(state):
        generator.forget()


def _ahead(state: State) -> AheadGenerator | None:
    """Who writes ahead; None where nobody does."""
    generator = state.engine.generators["student"]
    return generator if isinstance(generator, AheadGenerator) else None


class Beginner:
    """A `Completer` that begins what the student is to write, and hands out blank sheets."""

    def __init__(self, engine: Engine, generator: AheadGenerator, step: int) -> None:
        """`engine` renders the prompts; `step` is the one they are for."""
        self._engine, self._generator, self._step = engine, generator, step

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, stopped: Callable[[], bool] = never, wrote: Told = ignore
    ) -> list[Rollout]:
        """Empty rollouts."""
        mine = [r for r in requests if r.author == "student"]
        wanted = [Wanted(self._engine.prompt(r.context, Case(r.problem)).ids, r.key) for r in mine]
        if wanted:
            self._generator.begin(wanted, sampling, self._engine.stop_ids, self._step)
        return [Rollout(r.problem, r.author, (), "", None, "cancelled", index=r.index) for r in requests]

    def transcribe(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """What exists needs no beginning."""
        return self._engine.transcribe(requests, sampling)
