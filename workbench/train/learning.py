"""Forward and backward over a step's micro-batches; memory that runs out makes them smaller, never the result other."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workbench.engine.engine import Engine
from workbench.engine.modes import out_of_memory
from workbench.errors import ResourceError
from workbench.recipe import Recipe
from workbench.train.agreement import Agreement
from workbench.train.batches import Denominators, Entry, micro_batches
from workbench.train.gathering import gathered, problem_ids, shortest
from workbench.train.objective import Signal, objective
from workbench.train.watching import Course


def learn(
    recipe: Recipe, engine: Engine, kept: Sequence[Entry], counts: Denominators, course: Course
) -> list[Signal] | None:
    """Gather the gradient of the step; None when stopped midway. The signals are those of all ranks.

    When memory runs out the gathered gradient is dropped and the step starts again with micro-batches of half the
    tokens: a backward pass that died half way has left part of a gradient behind. Raises ResourceError when a single
    completion does not fit, and where several processes share the step: the others are already waiting for this one.
    """
    budget, ranks = engine.settings.micro_tokens, engine.ranks
    own = [kept[i] for i in ranks.places(problem_ids(kept))]
    while True:
        engine.updates.forget()
        try:
            batches = ranks.level(micro_batches(own, budget), shortest(kept))
            signals = _pass(recipe, engine, batches, counts, course)
            found = None if signals is None else gathered(ranks, kept, signals)
            if found and engine.served:  # in this process one module samples and learns; a replay is old on purpose
                Agreement.of(recipe, found).refuse()
            return found
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if ranks.size > 1:
                raise ResourceError(
                    f"update: process {ranks.rank} of {ranks.size} ran out of memory with micro-batches of {budget} "
                    f"tokens. One of several cannot try again alone. Use --micro-tokens {max(1, budget // 2)}."
                ) from error
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
    batches: Sequence[tuple[Sequence[Entry], bool]],
    counts: Denominators,
    course: Course,
) -> list[Signal] | None:
    signals = []
    for left, (batch, counted) in enumerate(batches, 1 - len(batches)):
        if course.stopped():
            engine.updates.forget()
            return None
        with engine.replicas.accumulating(last=left == 0), engine.meter.counting(counted):
            with course.phases("score"):
                loss, signal = objective(recipe, engine, batch, counts)
            signals += [course.look(signal)] if counted else []
            with course.phases("backward"):
                # What only fills up adds nothing; the mean over ranks becomes their sum.
                loss = loss * (engine.replicas.scale if counted else 0.0)
                loss.backward()  # type: ignore[no-untyped-call]
    return signals
