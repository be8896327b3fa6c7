"""One step of training: the algorithm box of every paper in the catalogue, on one screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from verifiers import Verdict
from workbench.engine.engine import Engine, never
from workbench.parts.schedules import Clock
from workbench.parts.writers import Desk
from workbench.recipe import Recipe
from workbench.records import Judged, Problem, Rollout
from workbench.train.batches import Denominators, entries
from workbench.train.learning import learn
from workbench.train.report import Phases, StepReport

Verifier = Callable[[Rollout], Verdict]


@dataclass
class State:
    """What moves while a run goes on. The problems met are a function of `clock.step`, so no cursor is kept."""

    engine: Engine
    clock: Clock
    seed: int = 0
    stopped: Callable[[], bool] = never
    phases: Phases = field(default_factory=Phases)


def train_step(recipe: Recipe, state: State, problems: Sequence[Problem], verify: Verifier) -> StepReport | None:
    """One step down  L = E_{y ~ pi_mix} [ sum_t w_t D(p_T || p_theta) ] + reward terms; None when stopped midway.

    A step that is stopped changes nothing: its rollouts are a function of the seed and come back on resume.
    """
    now, engine, phases = (
        recipe.at(state.clock),
        state.engine,
        state.phases,
    )  # schedules have become plain numbers

    # 1. Write: y ~ pi_mix. A rollout remembers who wrote it and how likely it was at the time.
    with phases("rollout"):
        desk = Desk(engine, now.student, now.teacher, now.sampling, (state.seed, state.clock.step), state.stopped)
        rollouts = now.rollouts.draw(desk, problems)
    if state.stopped():
        return None

    # 2. Judge: one verdict a rollout; advantages are relative to the problem's whole group.
    with phases("verify"):
        judged = [Judged(r, verify(r)) for r in rollouts]
    groups = [now.advantage(group) for group in by_problem(judged)]
    observed = [j for group in groups for j in group]

    # 3. Gate: which rollouts may teach. A gate maps a group to a group; [] teaches nothing.
    for gate in now.gates:
        groups = [gate(group) for group in groups]

    # 4. Learn: sum_k coef_k / N_k * sum_t w_t term_k(t). N_k counts the whole step's tokens,
    #    so how the batch is split changes memory and never the gradient.
    kept = entries(engine, now, groups)
    signals = learn(now, engine, kept, Denominators.of(now, kept), phases, state.stopped)
    if signals is None:
        return None
    with phases("update"):
        grad_norm = engine.update(now.optimizer) if kept else 0.0

    # 5. Refresh: the teacher moves or does not.
    state.clock = Clock(state.clock.step + 1, state.clock.total)
    refreshed = engine.refresh_teacher(now.refresh, state.clock.step)
    return StepReport.of(state.clock.step, now, observed, signals, grad_norm, refreshed)


def by_problem(judged: Sequence[Judged]) -> list[list[Judged]]:
    """Groups in the order in which their problems first appear."""
    groups: dict[str, list[Judged]] = {}
    for j in judged:
        groups.setdefault(j.rollout.problem.id, []).append(j)
    return list(groups.values())
