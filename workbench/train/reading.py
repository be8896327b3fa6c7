"""The first reading of a step: every rollout that teaches, scored without gradient; then the plans, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workbench.divergence import Options, Part, Scored, fused_loss, generic_loss
from workbench.engine.engine import Engine
from workbench.parts.plans import Reading
from workbench.recipe import Recipe
from workbench.records import TokenStats
from workbench.train.batches import Entry, micro_batches, token_rows
from workbench.train.gathering import problem_ids, shortest


def planned(recipe: Recipe, engine: Engine, kept: Sequence[Entry]) -> list[Entry]:
    """The same entries with what the plans made of them; untouched where the recipe has none."""
    if not recipe.plans or not kept:
        return list(kept)
    readings = read(recipe, engine, kept)
    for plan in recipe.plans:
        readings = plan(readings)
    return [replace(entry, reading=reading) for entry, reading in zip(kept, readings, strict=True)]


def read(recipe: Recipe, engine: Engine, kept: Sequence[Entry]) -> list[Reading]:
    """One reading an entry, in order, whatever the micro-batches and whoever read it."""

    @torch.no_grad()
    def mine(places: Sequence[int]) -> list[Reading]:
        own, found = [kept[i] for i in places], dict[int, Reading]()
        for batch, counted in engine.ranks.level(micro_batches(own, engine.settings.micro_tokens), shortest(kept)):
            with engine.meter.counting(counted):
                readings = list(_readings(recipe, engine, batch))
            found |= zip(map(id, batch), readings, strict=True) if counted else ()
        return [found[id(entry)] for entry in own]

    readings = engine.ranks.spread(problem_ids(kept), mine)
    return [replace(reading, judged=entry.judged) for entry, reading in zip(kept, readings, strict=True)]


def _readings(recipe: Recipe, engine: Engine, batch: Sequence[Entry]) -> Iterator[Reading]:
    completions = [e.tokens for e in batch]
    prompts, temperature = [e.student_prompt for e in batch], recipe.temperature
    student = Scored(engine.score("student", prompts, completions), engine.head("student", temperature))
    teacher = engine.teach([e.teacher_prompt or () for e in batch], completions, temperature)
    rows = token_rows(batch, engine.settings.device)
    one = torch.ones(len(rows.ids), device=rows.ids.device)
    parts = [Part(weight=one, term=measure) for measure in recipe.measures]
    options = Options(entropies="entropies" in recipe.asked, grad=False)
    compute = generic_loss if parts else fused_loss
    out = compute(student, teacher, rows, parts or [Part(weight=one, sampled=_nothing)], options)
    reference = None
    if recipe.needs_reference:
        scored = Scored(engine.score("reference", prompts, completions), engine.head("reference", temperature))
        reference = fused_loss(scored, None, rows, [Part(weight=one, sampled=_nothing)], options).stats.student_logp
    columns = {
        "student_logp": out.stats.student_logp,
        "teacher_logp": out.stats.teacher_logp,
        "student_entropy": out.stats.student_entropy,
        "teacher_entropy": out.stats.teacher_entropy,
        "reference_logp": reference,
    }
    start = 0
    for entry in batch:
        span = slice(start, start + len(entry.tokens))
        texts = tuple(engine.token_text(t) for t in entry.tokens) if "texts" in recipe.asked else ()
        yield Reading(
            judged=entry.judged,
            advantage=torch.full((len(entry.tokens),), entry.judged.advantage, dtype=torch.float64),
            weight=torch.ones(len(entry.tokens), dtype=torch.float64),
            texts=texts,
            measured={m: out.values[k, span].double().cpu() for k, m in enumerate(recipe.measures)},
            **{name: None if x is None else x[span].double().cpu() for name, x in columns.items()},  # type: ignore[arg-type]
        )
        start = span.stop


def _nothing(stats: TokenStats) -> Tensor:
    """A part that costs no pass, for readings that want the log-probs alone."""
    return torch.zeros_like(stats.student_logp)
