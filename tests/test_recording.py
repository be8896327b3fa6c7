"""Which rollouts a person is shown, beside what, and when a stopped run saves again."""

from __future__ import annotations

import io
import json
import math
from types import SimpleNamespace

import pytest

from verifiers import Verdict
from workbench.engine.ranks import ALONE
from workbench.parts.schedules import Clock
from workbench.recipes import ALL
from workbench.recording import shown, texts
from workbench.records import Judged, Problem, Rollout
from workbench.train import loop
from workbench.train.loop import LoopSettings
from workbench.train.step import State
from workbench.train.terminal import Json


def judged(problem: str, n: int, text: str = "") -> Judged:
    rollout = Rollout(Problem(problem, "?"), "student", (1,) * n, text or f"{problem}-{n}", None, "stop")
    return Judged(rollout, Verdict("wrong"))


def test_all_rollouts_of_three_problems_are_shown_once() -> None:
    step = [judged(f"p{i}", n) for i, lengths in enumerate(((5, 6), (1, 7), (9, 4), (3, 3))) for n in lengths]
    for k in range(20):
        names = [j.rollout.problem.id for j in shown(step, k)]
        assert {"p1", "p2"} <= set(names), "the shortest and the longest"
        assert len(names) == 2 * len(set(names)) <= 6, "whole groups, each once"
        assert shown(step, k) == shown(step, k)
    assert {j.rollout.problem.id for k in range(20) for j in shown(step, k)} == {"p0", "p1", "p2", "p3"}
    assert shown([], 0) == []
    assert shown(step[:1], 0) == step[:1]


def test_a_rollout_is_shown_beside_the_last_ones_of_its_problem() -> None:
    out = io.StringIO()
    before = texts([judged("p", 3, "first"), judged("q", 1), judged("p", 4, "second")])
    Json(io.StringIO(), out).rollout(judged("p", 2), before["p"])
    assert json.loads(out.getvalue())["before"] == ["first", "second"]


@pytest.mark.parametrize(("age", "saves"), [(math.inf, [2, 3]), (0.0, [2])])
def test_a_stopped_run_does_not_save_behind_a_young_checkpoint(monkeypatch, age: float, saves: list[int]) -> None:
    """Step 2 is saved on schedule, the stop comes in step 3."""
    state, saved, settings = (
        State(SimpleNamespace(ranks=ALONE, generators={"student": None}), Clock(0, 9)),
        [],
        LoopSettings(9, save_every=2),
    )
    monkeypatch.setattr(loop, "YOUNG", 1e9 if age == 0.0 else 0.0)

    def step(recipe, state, batch, verify):
        state.clock = Clock(state.clock.step + 1, 9)
        if state.clock.step == 3:
            state.stopped = lambda: True
        return type("Report", (), {"kept": 1, "judged": ()})()

    class Observer:
        def step(self, *_) -> None: ...

        def save(self) -> None:
            saved.append(state.clock.step)

        def evaluate(self) -> None: ...

    monkeypatch.setattr(loop, "train_step", step)
    ending = loop.run(ALL["opsd"], state, [Problem("a", "?")], lambda r: Verdict("wrong"), settings, Observer())
    assert ending == "stopped"
    assert saved == saves
