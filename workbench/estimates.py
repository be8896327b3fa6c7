"""What a run will need, before it starts: memory and disk by arithmetic, time from one small measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from workbench.engine.engine import Engine
from workbench.engine.heads import base_model
from workbench.engine.roles import Copy
from workbench.planning import Plan
from workbench.records import Case
from workbench.train.interrupts import amount
from workbench.train.reporting import duration

_HEAD_CHUNK = 256
"""Tokens whose logits exist at once on a CPU; on a GPU a byte budget of about the same share."""


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds. Memory is a sum of named parts, so that one can see what to save on."""

    memory: dict[str, int]
    disk: int
    step_seconds: float
    steps: int

    def lines(self) -> list[str]:
        """For a person."""
        parts = ", ".join(f"{name} {amount(size)}" for name, size in self.memory.items())
        return [
            f"memory         about {amount(sum(self.memory.values()))}: {parts}",
            f"disk           about {amount(self.disk)} for checkpoints and final/",
            f"time           about {duration(self.step_seconds)} a step, "
            f"{duration(self.step_seconds * self.steps)} for all, evaluations apart",
        ]


def estimate(engine: Engine, planned: Plan, keep: int) -> Estimate:
    """Look at the model's shape, time one forward pass, and multiply."""
    model = base_model(engine.student)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() for p in engine.parameters().values())
    config = model.config.get_text_config()
    teacher = weights if isinstance(engine.teacher, Copy) else 0
    if engine.external is not None and not engine.external.recorded:
        with engine.running("teacher") as other:
            teacher = sum(p.numel() * p.element_size() for p in other.parameters())
    memory = {
        "weights": weights,
        "teacher": teacher,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": engine.settings.micro_tokens * _activation_bytes(config, engine.settings),
        "head": 2 * _HEAD_CHUNK * config.vocab_size * 4 + config.vocab_size * config.hidden_size * 4,
    }
    moving = planned.recipe.refresh.every > 0
    disk = (max(keep, 2) + 1) * (12 * trained + (teacher if moving else 0)) + weights
    return Estimate({k: v for k, v in memory.items() if v}, disk, _step_seconds(engine, planned), planned.steps)


def _activation_bytes(config: Any, settings: Any) -> int:
    """Per token, what a layer keeps for its backward pass: norms, residuals, q, k, v, four of the MLP's width."""
    width = 4 if settings.device.type == "cpu" else 2
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", heads) * (config.hidden_size // heads)
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    a_layer = width * (8 * config.hidden_size + 2 * keys + 4 * inner)
    if settings.activation_checkpointing:
        return int(width * config.hidden_size * config.num_hidden_layers + a_layer)
    return int(a_layer * config.num_hidden_layers)


@torch.no_grad()
def _step_seconds(engine: Engine, planned: Plan) -> float:
    """One forward pass is timed; a step is about so many of it.

    A completion costs one pass as it is written (its prompt; the tokens one by one cost about as much again), one for
    the teacher and three for the student's forward and backward.
    """
    recipe, problem = planned.recipe, planned.train[0]
    student = engine.prompt(recipe.student, Case(problem)).ids
    rows = 4
    start = time.perf_counter()
    engine.score("student", [student] * rows, [student[-1:]] * rows)
    a_token = (time.perf_counter() - start) / (rows * len(student))
    completion = recipe.sampling.max_new_tokens
    asked = recipe.teacher if recipe.needs_teacher and engine.sees("teacher") else None
    teacher = 0 if asked is None else len(engine.prompt(asked, Case(problem), "teacher").ids)
    group = sum(getattr(w, "per_problem", 1) for w in getattr(recipe.rollouts, "writers", (recipe.rollouts,)))
    tokens = 5 * (len(student) + completion) + (teacher + completion if teacher else 0)
    return a_token * tokens * recipe.batch * group
