"""Forward and backward over a step's micro-batches; memory that runs out makes them smaller, never the result other."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workbench.engine.engine import Engine
from workbench.engine.modes import out_of_memory
from workbench.errors import ResourceError
from workbench.recipe import Recipe
from workbench.train.batches import Denominators, Entry, micro_batches
from workbench.train.objective import Signal, objective
from workbench.train.watching import Course


def learn(
    recipe: Recipe, engine: Engine, kept: Sequence[Entry], counts: Denominators, course: Course
) -> list[Signal] | None:
    """Gather the gradient of the step; None when stopped midway.

    When memory runs out the gathered gradient is dropped and the step starts again with micro-batches of half the
    tokens: a backward pass that died half way has left part of a gradient behind. Raises ResourceError when a single
    completion does not fit.
    """
    budget = engine.settings.micro_tokens
    while True:
        engine.updates.forget()
        try:
            return _pass(recipe, engine, micro_batches(kept, budget), counts, course)
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            longest = max(e.width for e in kept)
            if budget <= longest:
                engine.updates.forget()
                raise ResourceError(
                    f"update: one completion of {longest} tokens does not fit in memory. "
                    "Use --activation-checkpointing, a smaller --max-new-tokens or --adapter lora."
                ) from error
        budget = max(budget // 2, longest)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        course.phases.note(f"memory ran out: retried with micro-batches of {budget} tokens, result unchanged")


def _pass(
    recipe: Recipe,
    engine: Engine,
    batches: Sequence[Sequence[Entry]],
    counts: Denominators,
    course: Course,
) -> list[Signal] | None:
    signals = []
    for batch in batches:
        if course.stopped():
            engine.updates.forget()
            return None
        with course.phases("score"):
            loss, signal = objective(recipe, engine, batch, counts)
        signals.append(course.look(signal))
        with course.phases("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
    return signals
