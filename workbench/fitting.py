"""A plan made to fit the model it will run on, and the place it will write to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from workbench.config import RunConfig
from workbench.engine.engine import Engine
from workbench.errors import InputError
from workbench.inspector.audit import completion_room, prompt_lengths
from workbench.planning import Plan
from workbench.problems import ProblemSet


def output_state(config: RunConfig) -> str:
    """Whether a run could write where it would, without writing."""
    folder = Path(config.output)
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return (
        f"{folder} can be written" if os.access(there, os.W_OK) else f"{folder} cannot be written: {there} is read-only"
    )


def trained(engine: Engine) -> int:
    """Numbers that the optimizer moves."""
    return sum(p.numel() for p in engine.parameters().values())


def fitting(engine: Engine, planned: Plan, config: RunConfig) -> Plan:
    """The plan for this model: no prompt longer than asked, no batch larger than the set, and room to evaluate."""
    problems, notes = planned.problems, list(planned.notes)
    if config.max_prompt_tokens is not None:
        problems, note = _short_enough(engine, planned, config.max_prompt_tokens)
        notes.append(note)
    recipe = planned.recipe
    if recipe.batch > len(problems.train):
        # The same problem twice in a step would be the same rollout twice.
        recipe = replace(recipe, batch=len(problems.train))
        notes.append(f"batch {recipe.batch}: there are no more problems")
    asked = (*problems.train, *problems.held_out)
    room = max(1, min(planned.eval_tokens, *(completion_room(engine, method, asked) for method in recipe.methods)))
    if room < planned.eval_tokens:
        notes.append(f"evaluated completions may have {room} tokens: the model takes {engine.max_length}")
    return replace(planned, recipe=recipe, problems=problems, eval_tokens=room, notes=tuple(notes))


def _short_enough(engine: Engine, planned: Plan, limit: int) -> tuple[ProblemSet, str]:
    kept = []
    for side in (planned.train, planned.held_out):
        lengths = [prompt_lengths(engine, method, side) for method in planned.recipe.methods]
        kept.append(tuple(p for p, *each in zip(side, *lengths, strict=True) if max(each) <= limit))
    dropped = len(planned.train) + len(planned.held_out) - sum(map(len, kept))
    if not kept[0]:
        raise InputError(f"--max-prompt-tokens {limit} drops every problem. All prompts are longer. Raise it.")
    problems = replace(planned.problems, train=kept[0], held_out=kept[1])
    return problems, f"{dropped} problems dropped: a prompt longer than {limit} tokens"
