"""From kept rollouts to micro-batches: what both roles read, in an order that wastes little padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.divergence import TokenRows
from workbench.engine.engine import Engine
from workbench.parts.plans import Reading
from workbench.recipe import Recipe
from workbench.records import Case, Judged


@dataclass(frozen=True)
class Entry:
    """One rollout as it is scored: its tokens behind each role's own prompt."""

    judged: Judged
    student_prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...] | None
    reading: Reading | None = None
    """What the recipe's plans made of it; None without plans."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The completion."""
        return self.judged.rollout.tokens

    @property
    def width(self) -> int:
        """Tokens of the longer role: what a row costs."""
        return max(len(self.student_prompt), len(self.teacher_prompt or ())) + len(self.tokens)


def entries(engine: Engine, recipe: Recipe, groups: Sequence[Sequence[Judged]], *, shown: bool = False) -> list[Entry]:
    """One entry a rollout that some term learns from, under the recipe's contexts; peers are the rest of its group."""
    return [
        entry(engine, recipe, judged, group, shown=shown)
        for group in groups
        for judged in group
        if judged.weight > 0 and judged.rollout.tokens and any(term.where(judged) for term in recipe.terms)
    ]


def entry(engine: Engine, recipe: Recipe, judged: Judged, group: Sequence[Judged], *, shown: bool = False) -> Entry:
    """One rollout behind both prompts; `shown`: behind the teacher's also where no term asks the teacher."""
    peers = tuple(other for other in group if other is not judged)
    case = Case(judged.rollout.problem, judged.rollout, judged.verdict, peers)
    seen = recipe.needs_teacher or (shown and engine.sees("teacher"))
    teacher = engine.prompt(recipe.teacher, case, "teacher").ids if recipe.teacher and seen else None
    return Entry(judged, engine.prompt(recipe.student, case).ids, teacher)


def micro_batches(all_entries: Sequence[Entry], max_tokens: int) -> list[list[Entry]]:
    """Rows of similar width together, at most `max_tokens` padded tokens each, at least one row each."""
    batches: list[list[Entry]] = []
    for entry in sorted(all_entries, key=lambda e: e.width):
        if batches and entry.width * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(entry)
        else:
            batches.append([entry])
    return batches


def token_rows(batch: Sequence[Entry], device: torch.device) -> TokenRows:
    """The completion tokens of a micro-batch, flat, in the order `Engine.score` returns their states."""
    ids = [t for e in batch for t in e.tokens]
    position = [i for e in batch for i in range(len(e.tokens))]
    behaviour = [x for e in batch for x in (e.judged.rollout.logprobs or [float("nan")] * len(e.tokens))]
    advantage = torch.cat([_advantages(e) for e in batch])
    return TokenRows(
        ids=torch.tensor(ids, device=device),
        position=torch.tensor(position, device=device),
        behaviour=torch.tensor(behaviour, dtype=torch.float32, device=device),
        advantage=advantage.float().to(device),
        temperature=_temperatures(batch, device),
    )


def _advantages(entry: Entry) -> Tensor:
    if entry.reading is not None:
        return entry.reading.advantage
    return torch.full((len(entry.tokens),), entry.judged.advantage)


def _temperatures(batch: Sequence[Entry], device: torch.device) -> Tensor | None:
    """(N,) what the plans divide both roles' logits by; None where no plan does."""
    rows = [None if e.reading is None else e.reading.temperature for e in batch]
    if all(row is None for row in rows):
        return None
    ones = [torch.ones(len(e.tokens)) if row is None else row for e, row in zip(batch, rows, strict=True)]
    return torch.cat(ones).float().to(device)


@dataclass(frozen=True)
class Denominators:
    """Per term, what its sum is divided by: counted over the whole step, so that splitting a batch changes nothing."""

    tokens: tuple[int, ...]
    sequences: tuple[int, ...]

    @classmethod
    def of(cls, recipe: Recipe, all_entries: Sequence[Entry]) -> Denominators:
        """Count the step."""
        chosen = [[e for e in all_entries if term.where(e.judged)] for term in recipe.terms]
        return cls(
            tokens=tuple(sum(len(e.tokens) for e in es) for es in chosen),
            sequences=tuple(len(es) for es in chosen),
        )

    def weights(self, recipe: Recipe, k: int, batch: Sequence[Entry], device: torch.device) -> Tensor:
        """(N,) weight of term k on each token: mask * coef * rollout weight / denominator."""
        out = []
        for entry in batch:
            planned = torch.ones(len(entry.tokens)) if entry.reading is None else entry.reading.weight
            out.append((self.share(recipe, k, entry) * planned).float())
        return torch.cat(out).to(device)

    def share(self, recipe: Recipe, k: int, entry: Entry) -> float:
        """What term k counts an ordinary token of the rollout for: coef * rollout weight / denominator."""
        term = recipe.terms[k]
        assert isinstance(term.coef, (int, float)), "Recipe.at has replaced schedules by numbers"
        if not term.where(entry.judged):
            return 0.0
        over = {
            "token": self.tokens[k],
            "sequence": len(entry.tokens) * self.sequences[k],
            "sum": 1,
            "limit": self.sequences[k] * recipe.sampling.max_new_tokens,
        }
        return term.coef * entry.judged.weight / over[recipe.reduction]
