"""Why a token is in the loss, is cut in it or is not in it, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.divergence import Divergence, EntryClipped
from workbench.inspector.seen import COUNTED, Floats
from workbench.parts.gates import Gate
from workbench.parts.terms import Distill
from workbench.parts.weights import SkipFirst
from workbench.recipe import Recipe
from workbench.records import Judged
from workbench.train.batches import Entry

CLIPPED, TURNED = "clipped", "clipped, gradient turned around"
_BINDS = 1e-5
"""Nats (and a share of the value) by which two ways of adding up one divergence may differ."""

Mask = NDArray[np.bool_]


def kept_out(recipe: Recipe, judged: Judged, refused: Gate | None) -> str:
    """Why a whole rollout is not learnt from."""
    if judged.rollout.stop == "cancelled":
        return "not learnt: cancelled"
    if refused is not None:
        return f"gated by {type(refused).__name__}"
    if not any(term.where(judged) for term in recipe.terms):
        return f"not learnt: no term counts what the {_AUTHORS[judged.rollout.author]} wrote"
    if judged.weight <= 0:
        return "not learnt: counts for nothing"
    return "not learnt: not in the step"


_AUTHORS = {"student": "student", "teacher": "teacher", "dataset": "data set"}


def clippable(recipe: Recipe) -> list[tuple[int, Divergence]]:
    """The terms that clip entries, and what they would be without."""
    return [
        (k, term.divergence.unclipped)
        for k, term in enumerate(recipe.terms)
        if isinstance(term, Distill) and isinstance(term.divergence, EntryClipped) and not term.transforms
    ]


def reasons(
    recipe: Recipe, entry: Entry, values: Floats, weights: Floats, turned: Mask | None, unclipped: Floats
) -> tuple[str, ...]:
    """One reason a token of a rollout that is learnt from.

    Args:
        recipe: with numbers for schedules.
        entry: the rollout.
        values: (K, n) of the terms, as the loss has them.
        weights: (K, n).
        turned: (n,) or None, as `Signal.turned`.
        unclipped: (m, n) values of `clippable`, NaN where not known.
    """
    n = len(entry.tokens)
    said = np.full(n, COUNTED, dtype=object)
    for mask, words in (*_clips(recipe, values, weights, unclipped), *_turns(turned)):
        said[mask] = words
    open_ = ~(weights != 0).any(0)
    for mask, words in _left_out(recipe, entry):
        said[open_ & mask] = words
        open_ &= ~mask
    return tuple(said.tolist())


def _turns(turned: Mask | None) -> Iterator[tuple[Mask, str]]:
    if turned is not None:
        yield turned.astype(bool), TURNED


def _clips(recipe: Recipe, values: Floats, weights: Floats, unclipped: Floats) -> Iterator[tuple[Mask, str]]:
    for k, term in enumerate(recipe.terms):
        limit = getattr(term, "token_clip", None)
        if limit is not None:
            yield (values[k] >= limit * (1 - _BINDS)) & (weights[k] != 0), CLIPPED
    for row, (k, _) in zip(unclipped, clippable(recipe), strict=True):
        with np.errstate(invalid="ignore"):
            yield (row - values[k] > _BINDS * (1 + np.abs(row))) & (weights[k] != 0), CLIPPED


def _left_out(recipe: Recipe, entry: Entry) -> Iterator[tuple[Mask, str]]:
    """Where each part of the recipe that can leave a token out may have done so, the most certain first."""
    n, position = len(entry.tokens), np.arange(len(entry.tokens))
    gates: Sequence[object] = [recipe.token_weight, *(getattr(term, "token_weight", None) for term in recipe.terms)]
    for part in gates:
        if isinstance(part, SkipFirst):
            yield position < part.tokens, f"skipped: first {part.tokens}"
    planned = np.ones(n, bool) if entry.reading is None else entry.reading.weight.numpy() != 0
    plans = [type(plan).__name__ for plan in recipe.plans if "weight" in plan.sets]
    if plans:
        yield ~planned, f"left out by {' or '.join(plans)}"
    others = dict.fromkeys(type(gate).__name__ for gate in gates if gate is not None)
    if others:
        yield np.ones(n, bool), f"left out by {' or '.join(others)}"
    yield np.ones(n, bool), "not learnt: every term counts it for 0"
