"""What a report asks of an engine: completions under a context, and how likely an answer is after part of a chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import prompts
from workbench.divergence import Options, Part, Scored, fused_loss
from workbench.engine.engine import Engine
from workbench.inspector.diagnostics import TokenRecord
from workbench.inspector.diagnostics.record import Floats
from workbench.inspector.pieces import pieces
from workbench.parts.terms import Distill
from workbench.parts.writers import OnPolicy
from workbench.recipe import Recipe
from workbench.records import Case, Context, Judged, Problem, TokenStats
from workbench.train.batches import Entry, entries, micro_batches, token_rows
from workbench.train.evaluate import headline

CUE = "probe/final_result"
"""What ends a chain early and asks for its answer."""


@torch.no_grad()
def records_of(engine: Engine, recipe: Recipe, groups: Sequence[Sequence[Judged]]) -> list[TokenRecord]:
    """Completions as both roles see them now, each under the recipe's context.

    Contexts, temperature and divergence are those of the recipe's loss (its first full divergence, unclipped), and
    every completion token counts: gates, plans and transforms are not applied. In the order of the groups; completions
    without a token are left out.
    """
    asked = _whole(recipe, recipe.teacher)
    found: dict[int, TokenRecord] = {}
    kept = entries(engine, asked, groups)
    for batch in micro_batches(kept, engine.settings.micro_tokens):
        for entry, record in zip(batch, _records(engine, asked, batch), strict=True):
            found[id(entry)] = record
    return [found[id(entry)] for entry in kept]


@torch.no_grad()
def teacher_logps(engine: Engine, recipe: Recipe, groups: Sequence[Sequence[Judged]], teacher: Context) -> list[Floats]:
    """Log p_T(y_t) of completions under another context of the teacher, nats, in the order of `records_of`."""
    found: dict[int, Floats] = {}
    kept = entries(engine, _whole(recipe, teacher), groups)
    for batch in micro_batches(kept, engine.settings.micro_tokens):
        completions = [e.tokens for e in batch]
        hidden = engine.score("teacher", [e.teacher_prompt or () for e in batch], completions)
        rows = token_rows(batch, engine.settings.device)
        read = Scored(hidden, engine.head("teacher", recipe.temperature))
        # One role is enough: the teacher stands where the student does, and nothing is compared.
        part = Part(weight=torch.ones(len(rows.ids), device=rows.ids.device), sampled=_nothing)
        logp = fused_loss(read, None, rows, [part], Options(grad=False)).stats.student_logp
        for entry, piece in zip(batch, torch.split(logp, [len(c) for c in completions]), strict=True):
            found[id(entry)] = piece.double().cpu().numpy()
    return [found[id(entry)] for entry in kept]


def _whole(recipe: Recipe, teacher: Context | None) -> Recipe:
    """The recipe's contexts, temperature and full divergence, and every token of every completion."""
    return replace(
        recipe,
        teacher=teacher,
        terms=(Distill(headline(recipe)),),
        rollouts=OnPolicy(),
        gates=(),
        plans=(),
        token_weight=None,
    )


def _records(engine: Engine, recipe: Recipe, batch: Sequence[Entry]) -> list[TokenRecord]:
    completions, temperature = [e.tokens for e in batch], recipe.temperature
    student = Scored(
        engine.score("student", [e.student_prompt for e in batch], completions), engine.head("student", temperature)
    )
    teacher = engine.teach([e.teacher_prompt or () for e in batch], completions, temperature)
    rows = token_rows(batch, engine.settings.device)
    part = Part(weight=torch.ones(len(rows.ids), device=rows.ids.device), divergence=headline(recipe))
    out = fused_loss(student, teacher, rows, [part], Options(entropies=True, grad=False))
    assert out.stats.teacher_logp is not None, "a teacher scored"
    columns = [
        out.stats.student_logp, out.stats.teacher_logp, out.stats.student_entropy, out.stats.teacher_entropy,
        out.values[0],
    ]  # fmt: skip
    split = [
        [piece.double().cpu().numpy() for piece in torch.split(column, [len(c) for c in completions])]
        for column in columns
        if column is not None
    ]
    return [
        TokenRecord(
            entry.judged.rollout.problem.id,
            pieces(engine.tokenizer, entry.tokens),
            split[0][i],
            split[1][i],
            split[2][i],
            split[3][i],
            split[4][i],
            np.ones(len(entry.tokens)),
            entry.judged.verdict,
        )
        for i, entry in enumerate(batch)
    ]


def _nothing(stats: TokenStats) -> Tensor:
    """A part that costs no pass, where the log-probs alone are wanted."""
    return torch.zeros_like(stats.student_logp)


@dataclass(frozen=True)
class Chain:
    """The beginning of a completion, after which the answer is asked for."""

    problem: Problem
    text: str


@dataclass(frozen=True)
class Chance:
    """How likely the gold answer is after a chain and the cue."""

    probability: float
    """exp of the sum of log p over the answer's tokens and the closing brace."""
    greedy: bool
    """Whether every one of them is the likeliest: what greedy decoding would write."""


@torch.no_grad()
def answer_chances(engine: Engine, context: Context, chains: Sequence[Chain]) -> list[Chance]:
    """P(gold answer | prompt, chain, cue) by the student, at temperature 1, in the order of the chains.

    Raises InputError as a prompt does. Source of the cue and of the closing brace: arXiv:2510.24941 and its recipe.
    """
    asked = [_asked(engine, context, chain) for chain in chains]
    found: list[Chance] = []
    head = engine.head("student")
    size = max(1, engine.settings.micro_tokens // max((len(p) + len(a) for p, a in asked), default=1))
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        hidden = engine.score("student", [p for p, _ in part], [a for _, a in part])
        logp = head.logits(hidden.to(torch.promote_types(hidden.dtype, torch.float32))).log_softmax(-1)
        ids = torch.tensor([t for _, a in part for t in a], device=logp.device)
        own, best = logp.gather(-1, ids[:, None])[:, 0], logp.argmax(-1) == ids
        sizes = [len(a) for _, a in part]
        for chance, first in zip(torch.split(own, sizes), torch.split(best, sizes), strict=True):
            found.append(Chance(min(1.0, float(chance.double().sum().exp())), bool(first.all())))
    return found


def _asked(engine: Engine, context: Context, chain: Chain) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(prompt with chain and cue, answer with its brace) in tokens.

    Chain, cue and answer are tokenised as one text: the answer begins where the ids stop being those of any answer.
    """
    cue, answer = prompts.load(CUE), chain.problem.answer or ""
    whole = _ids(engine, cue.render(steps=chain.text, answer=answer))
    before = _ids(engine, cue.render(steps=chain.text, answer="").removesuffix("}"))
    same = next(
        (i for i, (a, b) in enumerate(zip(whole, before, strict=False)) if a != b), min(len(whole), len(before))
    )
    prompt = engine.prompt(context, Case(chain.problem)).ids
    return (*prompt, *whole[:same]), tuple(whole[same:])


def _ids(engine: Engine, text: str) -> list[int]:
    return [int(i) for i in engine.tokenizer(text, add_special_tokens=False)["input_ids"]]
