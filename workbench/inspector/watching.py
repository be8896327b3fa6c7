"""What training records of a step's rollouts, token by token: what the loss itself used, before it moved a weight."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.divergence import Scored
from workbench.inspector.measuring import KNOWN, Numbers, numbers
from workbench.inspector.reasons import Share, clippable
from workbench.inspector.seen import Seen
from workbench.inspector.trajectory import TOP, Stage, bare, learnt
from workbench.parts.terms import Distill
from workbench.recipe import Recipe
from workbench.records import Judged
from workbench.train.batches import Entry, entry
from workbench.train.objective import Signal
from workbench.train.watching import Opening

_log = logging.getLogger(__name__)

Shows = Callable[[Sequence[Judged], int], Sequence[Judged]]
"""Rollouts of a step and its number -> those of them that a person is shown."""


class Recording:
    """Records every rollout of a step: what the loss made of it, and for those that are shown what both roles thought.

    Values, weights and log-probs are the loss's own and cost nothing. Divergences, entropies, ranks and likeliest
    entries take one more product with each head, and are made for the shown rollouts alone. Never raises: what fails
    is said once, counted in `failed`, and the step goes on.
    """

    def __init__(self, run: str, shows: Shows, note: Callable[[str], None] | None = None, top: int = TOP) -> None:
        """`note` is told the first failure."""
        self.run, self.shows, self.top, self.failed = run, shows, top, 0
        self._note = note
        self._opening: Opening | None = None
        self._shown: frozenset[int] = frozenset()

    def begin(self, opening: Opening) -> None:
        """Choose who is shown: by the same rule once more among those that teach, for the others were not scored."""
        self._opening = opening
        everybody = [judged for group in opening.groups for judged in group]
        kept = [one.judged for one in opening.kept]
        chosen = (*self.shows(everybody, opening.step), *self.shows(kept, opening.step))
        self._shown = frozenset(id(judged) for judged in chosen)

    def look(self, signal: Signal) -> object:
        """id(entry) -> Numbers, for the shown; {} where that failed."""
        try:
            return self._look(signal)
        except Exception as error:  # whatever it is, it is a viewer's
            self._fail(error)
            return {}

    def end(self, signals: Sequence[Signal]) -> tuple[Seen, ...]:
        """A record of every rollout, kept or not; () where that failed."""
        try:
            return self._end(signals)
        except Exception as error:
            self._fail(error)
            return ()
        finally:
            self._opening = None

    def _fail(self, error: Exception) -> None:
        self.failed += 1
        if self.failed == 1:
            text = f"tokens were not recorded ({type(error).__name__}: {error}). Training goes on; said once."
            _log.warning("%s", text, exc_info=error)
            if self._note is not None:
                self._note(text)

    def _look(self, signal: Signal) -> dict[int, Numbers]:
        views = signal.views
        assert views is not None
        assert self._opening is not None
        spans = [(one, rows) for one, rows, _ in Share.each(signal) if id(one.judged) in self._shown]
        if not spans:
            return {}
        chosen = torch.cat([torch.arange(rows.start, rows.stop) for _, rows in spans]).to(views.ids.device)
        teacher = views.teacher
        if isinstance(teacher, Scored):
            teacher = replace(teacher, hidden=teacher.hidden[chosen])
        elif teacher is not None:
            teacher = teacher.take(chosen)
        student = replace(views.student, hidden=views.student.hidden[chosen])
        asked = [divergence for _, divergence in clippable(self._opening.recipe)]
        read = numbers(student, teacher, views.ids[chosen], top=self.top, asked=asked)
        found, start = {}, 0
        for one, rows in spans:
            end = start + rows.stop - rows.start
            found[id(one)] = read.take(slice(start, end))
            start = end
        return found

    def _end(self, signals: Sequence[Signal]) -> tuple[Seen, ...]:
        opening = self._opening
        assert opening is not None
        stage = Stage(opening.engine, opening.recipe, run=self.run, step=opening.step)
        found: dict[int, Seen] = {}
        for signal in signals:
            looked = signal.looked if isinstance(signal.looked, dict) else {}
            for one, rows, share in Share.each(signal):
                read = looked.get(id(one)) or of_loss(opening.recipe, signal, one, rows)
                found[id(one.judged)] = learnt(stage, one, share, opening.counts, read, "recorded")
        for group in opening.groups:
            for judged in group:
                if id(judged) not in found:
                    one = entry(stage.engine, stage.recipe, judged, group)
                    found[id(judged)] = bare(stage, one, opening.refused.get(id(judged)), "recorded")
        return tuple(found[id(judged)] for group in opening.groups for judged in group)


def of_loss(recipe: Recipe, signal: Signal, one: Entry, rows: slice) -> Numbers:
    """What the loss happened to know of a rollout's tokens; the rest is NaN."""

    def some(x: Tensor | None) -> np.ndarray | None:
        return None if x is None else x[rows].detach().double().cpu().numpy()

    read = Numbers.unknown(rows.stop - rows.start, len(clippable(recipe)))
    names = ("student_logp", "teacher_logp", "student_entropy", "teacher_entropy")
    columns: dict[str, Any] = {name: x for name in names if (x := some(getattr(signal.stats, name))) is not None}
    dropped = np.isnan(columns["student_logp"])
    if one.reading is not None:  # tokens that a plan left out are not in the loss, but in its first reading
        columns |= {name: x.numpy() for name in names if (x := getattr(one.reading, name)) is not None}
    if one.reading is None or one.reading.temperature is None:
        for k, term in enumerate(recipe.terms):
            for name, divergence in KNOWN:
                if term == Distill(
                    divergence, coef=term.coef, where=term.where, token_weight=getattr(term, "token_weight", None)
                ):
                    columns[name] = np.where(dropped, np.nan, signal.values[k, rows].double().numpy())
    return replace(read, **columns)
