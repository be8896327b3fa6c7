"""Ten float64 steps of one recipe a family on the tiny model: the numbers that a change of results would move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import verifiers
from verifiers import Verdict
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.loading import load
from workbench.overrides import choose
from workbench.parts.refresh import every
from workbench.parts.schedules import Clock
from workbench.recipe import Optimizer, Recipe
from workbench.records import Problem, Rollout, Sampling
from workbench.train.step import State, train_step

FILE = Path(__file__).with_name("trajectories.json")
STEPS = 10
PROBLEMS = tuple(
    Problem(f"p{i}", f"What is {i} + {i}?", str(2 * i), f"{i} + {i} is {2 * i}", document=f"twice {i}: {2 * i}")
    for i in range(6)
)


def small(name: str, **changes: object) -> Recipe:
    """A recipe of the catalogue at a size and a learning rate at which ten steps of the tiny model move."""
    recipe = choose(name)
    sampling = Sampling(max_new_tokens=8, temperature=recipe.sampling.temperature, top_p=recipe.sampling.top_p)
    optimizer = Optimizer(lr=1e-3, max_grad_norm=1.0)
    return replace(recipe, sampling=sampling, optimizer=optimizer, adapter=None, batch=2, **changes)  # type: ignore[arg-type]


FAMILIES = {
    "opsd": small("opsd", rollouts=choose("opsd").rollouts.grouped(2)),
    "opsd_v1": small("opsd_v1"),
    "opsdc": small("opsdc", refresh=every(4)),
    "gates_ungated": small("gates_ungated", rollouts=choose("gates_ungated").rollouts.grouped(2)),
    "sft": small("sft"),
}


def trajectory(recipe: Recipe, model: Path) -> list[dict[str, object]]:
    """What each step reports, to the last bit that a float64 on this machine has."""
    torch.set_num_threads(1)  # one order of every sum, and faster at this size
    loaded = load(str(model), dtype=torch.float64)
    engine = Engine(loaded, adapter=None, refresh=recipe.refresh, settings=EngineSettings())
    state = State(engine, Clock(0, STEPS), seed=0)
    rows = []
    for step in range(STEPS):
        batch = recipe.curriculum.batch(PROBLEMS, recipe.batch, step * recipe.batch, 0)
        report = train_step(recipe, state, batch, _verify)
        assert report is not None
        row = report.metrics()
        kept = {
            k: v
            for k, v in row.items()
            if k in ("loss", "kept", "tokens_trained", "grad_norm") or k.startswith("term.")
        }
        rows.append(kept)
    return rows


def _verify(rollout: Rollout) -> Verdict:
    return verifiers.verify(rollout.problem, rollout.text, truncated=rollout.stop != "stop")
