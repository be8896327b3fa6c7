"""The only place where a loss is put together: the recipe's terms over one micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workbench.divergence import Options, Scored, SparseTeacher, TokenRows, fused_loss, generic_loss, likeliest
from workbench.engine.engine import Engine
from workbench.engine.teachers import Named, Teaching
from workbench.parts.terms import Term, on_support
from workbench.parts.weights import reads_entropies
from workbench.recipe import Recipe
from workbench.records import TokenStats
from workbench.train.batches import Denominators, Entry, token_rows


@dataclass(frozen=True, eq=False)
class Views:
    """Both roles at the tokens of a micro-batch, detached; a teacher's heads and states as the loss was given them."""

    student: Scored
    teacher: Teaching | None
    ids: Tensor
    """(N,) the written tokens."""


@dataclass(frozen=True)
class Signal:
    """What a micro-batch said, detached and on the CPU. Rows follow `batch`, token after token."""

    batch: Sequence[Entry]
    values: Tensor
    """(K, N) nats: each term's value at each token, before weights."""
    weights: Tensor
    """(K, N): what each value counted for in the step's loss."""
    stats: TokenStats
    turned: Tensor | None
    """(N,) tokens at which entry-wise clipping made the gradient point against the unclipped one."""
    views: Views | None = None
    """What it was made from; let go of as soon as whoever looks at the step has looked."""
    looked: object = None
    """What they found."""

    def forget(self, looked: object = None) -> Signal:
        """The same without the hidden states."""
        return replace(self, views=None, looked=looked)


def objective(
    recipe: Recipe, engine: Engine, batch: Sequence[Entry], counts: Denominators, *, grad: bool = True
) -> tuple[Tensor, Signal]:
    """sum_k sum_t w_kt term_k(t) over one micro-batch, and what it was made of.

    Terms that can be written for the fused loop go through it together; the rest take the generic path. The
    vocabulary exists for one chunk of tokens at a time on both.
    """
    device, temperature = engine.settings.device, recipe.temperature
    completions = [e.tokens for e in batch]
    with torch.set_grad_enabled(grad):
        student = engine.score("student", [e.student_prompt for e in batch], completions)
    scored, terms = Scored(student, engine.head("student", temperature)), tuple(recipe.terms)
    privileged = None
    if recipe.needs_teacher:
        named = _named(terms, engine, scored)
        privileged = engine.teach([e.teacher_prompt or () for e in batch], completions, temperature, named)
    rows = token_rows(batch, device)
    views = Views(replace(scored, hidden=student.detach()), privileged, rows.ids)
    if rows.temperature is None:
        terms, privileged = _seen(terms, privileged, scored, rows)
    parts = [term.part(counts.weights(recipe, k, batch, device)) for k, term in enumerate(terms)]
    weight = recipe.token_weight
    compute = generic_loss if any(part.term is not None for part in parts) else fused_loss
    out = compute(
        scored,
        privileged,
        rows,
        parts,
        Options(
            token_weight=weight, entropies=any(map(reads_entropies, (weight, *(p.gate for p in parts)))), grad=grad
        ),
    )
    stats = out.stats if rows.temperature is None else _as_read(batch, out.stats)
    return out.loss, Signal(batch, out.values.cpu(), out.weights.cpu(), stats, out.turned, views)


def _named(terms: tuple[Term, ...], engine: Engine, student: Scored) -> Named | None:
    """The student's likeliest entries, where they are compared and its teacher has to be told them."""
    support, external = on_support(terms)[1], engine.external
    if support is None or support.support == "teacher" or external is None or external.named is None:
        return None
    return Named(
        likeliest(student, min(support.k, len(student.head.weight))), support.k if support.support == "union" else 0
    )


def _seen(
    terms: tuple[Term, ...], teacher: Teaching | None, student: Scored, rows: TokenRows
) -> tuple[tuple[Term, ...], Teaching | None]:
    """The same comparison with a teacher that says no more than the terms look at, where there is such a one."""
    narrow, support = on_support(terms)
    if teacher is None or support is None or support.k >= len(student.head.weight):
        return terms, teacher
    if isinstance(teacher, Scored):
        if support.support != "teacher":
            return terms, teacher
        return narrow, SparseTeacher.of(teacher, support.k, written=rows.ids, rest=support.rest)
    if support.support != "teacher":  # it was told which entries
        return narrow, replace(teacher, rest=support.rest)
    return narrow, teacher.cut(support.k, support.rest)


def _as_read(batch: Sequence[Entry], stats: TokenStats) -> TokenStats:
    """Where tokens have temperatures of their own: what both roles found of them without."""
    readings = [entry.reading for entry in batch if entry.reading is not None]
    student = torch.cat([reading.student_logp for reading in readings])
    teacher = [reading.teacher_logp for reading in readings if reading.teacher_logp is not None]
    like = stats.student_logp
    return replace(stats, student_logp=student.to(like), teacher_logp=torch.cat(teacher).to(like) if teacher else None)
