"""Why a token is in the loss, is cut in it or is not in it, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.divergence import Divergence, EntryClipped
from workbench.inspector.seen import COUNTED, Floats, Ints
from workbench.parts.gates import Gate
from workbench.parts.terms import Distill
from workbench.parts.weights import SkipFirst
from workbench.recipe import Recipe
from workbench.records import Judged
from workbench.train.batches import Entry
from workbench.train.objective import Signal

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


@dataclass(frozen=True, eq=False)
class Share:
    """What a loss made of n tokens of one rollout: values and weights (K, n), `Signal.turned` (n,)."""

    values: Floats
    weights: Floats
    turned: Mask | None = None
    planned: Mask | None = None
    """(n,) the tokens that the recipe's plans let count; None: all."""

    @classmethod
    def nothing(cls, recipe: Recipe, n: int) -> Share:
        """They are in no loss and nobody knows what they would have been."""
        return cls(np.full((len(recipe.terms), n), np.nan), np.zeros((len(recipe.terms), n)))

    @classmethod
    def each(cls, signal: Signal) -> Iterator[tuple[Entry, slice, Share]]:
        """A micro-batch by rollout, with the rows of each."""
        values, weights = signal.values.double().numpy(), signal.weights.double().numpy()
        turned = None if signal.turned is None else signal.turned.cpu().numpy() != 0
        start = 0
        for one in signal.batch:
            rows = slice(start, start + len(one.tokens))
            planned = None if one.reading is None else one.reading.weight.numpy() != 0
            yield one, rows, cls(values[:, rows], weights[:, rows], None if turned is None else turned[rows], planned)
            start = rows.stop


def reasons(recipe: Recipe, share: Share, unclipped: Floats, first: int = 0) -> tuple[str, ...]:
    """One reason a token of a rollout that is learnt from.

    Args:
        recipe: with numbers for schedules.
        share: what the loss made of the tokens.
        unclipped: (m, n) values of `clippable`, NaN where not known.
        first: position of the first of the tokens.
    """
    values, weights, n = share.values, share.weights, share.weights.shape[1]
    said = np.full(n, COUNTED, dtype=object)
    for mask, words in (*_clips(recipe, values, weights, unclipped), *_turns(share.turned)):
        said[mask] = words
    open_ = ~(weights != 0).any(0)
    for mask, words in _left_out(recipe, np.arange(first, first + n), share.planned):
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


def _left_out(recipe: Recipe, position: Ints, planned: Mask | None) -> Iterator[tuple[Mask, str]]:
    """Where each part of the recipe that can leave a token out may have done so, the most certain first."""
    n = len(position)
    gates: Sequence[object] = [recipe.token_weight, *(getattr(term, "token_weight", None) for term in recipe.terms)]
    for part in gates:
        if isinstance(part, SkipFirst):
            yield position < part.tokens, f"skipped: first {part.tokens}"
    plans = [type(plan).__name__ for plan in recipe.plans if "weight" in plan.sets]
    if plans and planned is not None:
        yield ~planned, f"left out by {' or '.join(plans)}"
    others = dict.fromkeys(type(gate).__name__ for gate in gates if gate is not None)
    if others:
        yield np.ones(n, bool), f"left out by {' or '.join(others)}"
    yield np.ones(n, bool), "not learnt: every term counts it for 0"
