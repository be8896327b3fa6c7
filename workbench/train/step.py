"""One step of training: the algorithm box of every paper in the catalogue, on one screen."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workbench.engine.engine import Engine
from workbench.engine.generating import never
from workbench.parts.gates import Gate
from workbench.parts.replay import Replay
from workbench.parts.schedules import Clock, Memory, Seen
from workbench.parts.writers import Desk
from workbench.recipe import Recipe
from workbench.records import Judged, Problem
from workbench.train.batches import Denominators, entries
from workbench.train.judging import Judging, Verifier, judge_all
from workbench.train.learning import learn
from workbench.train.reading import planned
from workbench.train.report import Phases, StepReport, total_loss
from workbench.train.watching import Course, Opening, Watch


@dataclass
class State:
    """What moves while a run goes on. The problems met are a function of `clock.step`, so no cursor is kept."""

    engine: Engine
    clock: Clock
    seed: int = 0
    memory: Memory = field(default_factory=Memory)
    replay: Replay = field(default_factory=Replay)
    rates: dict[str, float] = field(default_factory=dict)
    """Pass rates as last surveyed, for the curricula that ask."""
    trained: int = 0
    """Completion tokens learnt from so far."""
    held_out: Sequence[Problem] = ()
    """What schedules that validate are shown; nothing trains on it."""
    stopped: Callable[[], bool] = never
    phases: Phases = field(default_factory=Phases)
    watch: Watch | None = None
    """Who looks at each step; changes nothing."""

    def remembered(self) -> dict[str, Any]:
        """What a checkpoint keeps of it beside the engine: plain JSON."""
        return {
            "memory": self.memory.state_dict(),
            "replay": self.replay.state_dict(),
            "rates": self.rates,
            "trained": self.trained,
        }

    def recall(self, step: int, saved: Mapping[str, Any], problems: Sequence[Problem]) -> None:
        """Go on after `step` optimizer steps from what `remembered` gave."""
        self.clock = Clock(step, self.clock.total)
        self.memory, self.replay = Memory(saved["memory"]), Replay.of(saved["replay"], problems)
        self.rates, self.trained = dict(saved["rates"]), int(saved["trained"])


def train_step(recipe: Recipe, state: State, problems: Sequence[Problem], verify: Verifier) -> StepReport | None:
    """One step down  L = E_{y ~ pi_mix} [ sum_t w_t D(p_T || p_theta) ] + reward terms; None when stopped midway.

    A step that is stopped changes nothing: its rollouts are a function of the seed and come back on resume.
    """
    now = recipe.at(state.clock, state.memory)  # schedules have become plain numbers
    engine, phases, version = state.engine, state.phases, state.engine.weights_version

    # 1. Write: y ~ pi_mix. A rollout remembers who wrote it and how likely it was at the time.
    with Judging(verify) as judge:
        with phases("rollout"):
            seed = (state.seed, state.clock.step)
            desk = Desk(engine, now.student, now.teacher, now.sampling, seed, state.stopped, state.replay, judge.begin)
            rollouts = now.rollouts.draw(desk, problems)
        if state.stopped():
            return None

        # 2. Judge: one verdict a rollout, some made while others were written; `verify` is what is waited for.
        with phases("verify"):
            judged = judge_all(engine.ranks, judge, rollouts)
    # Advantages are relative to the problem's whole group.
    groups = compared(now, judged, state.rates)
    observed = [j for group in groups for j in group]

    # 3. Gate: which rollouts may teach. A gate maps a group to a group; [] teaches nothing.
    passed, refused = gated(now, groups)

    # 4. Plan: what the whole step must be read for before its loss. Without plans nothing is read.
    with phases("read"):
        kept = planned(now, engine, entries(engine, now, passed))

    # 5. Learn: sum_k coef_k / N_k * sum_t w_t term_k(t). N_k counts the whole step's tokens,
    #    so how the batch is split changes memory and never the gradient.
    counts, course = Denominators.of(now, kept), Course(phases, state.stopped, state.watch)
    course.begin(Opening(state.clock.step + 1, now, engine, groups, refused, kept, counts))
    signals = learn(now, engine, kept, counts, course)
    if signals is None:
        return None
    seen = course.end(signals)
    with phases("update"):
        grad_norm = engine.update(now.optimizer) if kept else 0.0

    # 6. Remember: what was written, what was measured; the teacher moves or does not.
    fresh = [r for r in rollouts if r.author == "student" and r.weights_version == version]
    state.replay.admit(fresh, now.rollouts.remembers)
    state.trained += sum(len(s.values[0]) for s in signals)
    state.memory.observe(recipe, state.clock, Seen(total_loss(signals), grad_norm=grad_norm))
    state.clock = Clock(state.clock.step + 1, state.clock.total)
    refreshed = engine.refresh_teacher(now.refresh, state.clock.step)
    return replace(StepReport.of(state.clock.step, now, observed, signals, grad_norm, refreshed), seen=seen)


def compared(recipe: Recipe, judged: Sequence[Judged], rates: Mapping[str, float]) -> list[list[Judged]]:
    """Groups by problem, each rollout with its advantage in the group and what its problem counts for."""
    return [recipe.curriculum.weigh(recipe.advantage(group), rates) for group in by_problem(judged)]


def gated(recipe: Recipe, groups: Sequence[list[Judged]]) -> tuple[list[list[Judged]], dict[int, Gate]]:
    """What passes every gate, and for the rest id(judged) -> the gate that kept it out."""
    passed, refused = list(groups), dict[int, Gate]()
    for gate in recipe.gates:
        asked, passed = passed, [gate(group) for group in passed]
        through = {id(j) for group in passed for j in group}
        refused |= {id(j): gate for group in asked for j in group if id(j) not in through}
    return passed, refused


def by_problem(judged: Sequence[Judged]) -> list[list[Judged]]:
    """Groups in the order in which their problems first appear, each rollout beside its author's median length."""
    groups: dict[str, list[Judged]] = {}
    lengths: dict[tuple[str, str], list[int]] = {}
    for j in judged:
        groups.setdefault(j.rollout.problem.id, []).append(j)
        lengths.setdefault((j.rollout.problem.id, j.rollout.author), []).append(len(j.rollout.tokens))
    medians = {key: float(statistics.median(found)) for key, found in lengths.items()}
    return [
        [replace(j, median_tokens=medians[j.rollout.problem.id, j.rollout.author]) for j in group]
        for group in groups.values()
    ]
