"""A run's figures over its steps, read as they are written and thinned for a screen without losing a peak."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.screens.run_table import term
from workbench.train.run_directory import follow

Point = tuple[int, float]
Row = Mapping[str, Any]
POINTS = 500
"""Points a curve has at most."""
KEPT = 32
"""Runs whose figures the server remembers."""


def _share(part: str, whole: str) -> Callable[[Row], object]:
    return lambda row: row[part] / row[whole] if row.get(whole) else None


FIGURES: dict[str, tuple[str, Callable[[Row], object]]] = {
    "divergence": ("divergence, nat/token", lambda row: row.get(term(row))),
    "correct": ("correct, share of judged", _share("correct", "judged")),
    "tokens": ("tokens a rollout, mean", lambda row: row.get("tokens_mean")),
    "truncated": ("truncated, share of rollouts", lambda row: row.get("truncated_share")),
    "kept": ("kept, share of rollouts", _share("kept", "rollouts")),
    "entropy": ("student's entropy, nat", lambda row: row.get("student_entropy")),
    "gradient": ("gradient norm", lambda row: row.get("grad_norm")),
    "seconds": ("seconds a step", lambda row: sum(row["seconds"].values())),
}
"""Figure -> (its title with the unit, how it is read from a row of metrics.jsonl)."""


class Curves:
    """All figures of one run, by step. Reads on from where it stopped; a resumed run's earlier steps are replaced."""

    def __init__(self, path: Path) -> None:
        """`path` is the run's directory."""
        self._file, self._offset = path / "metrics.jsonl", 0
        self._rows: dict[int, dict[str, float]] = {}
        self._lock = threading.Lock()

    def read_on(self) -> None:
        """Take up what was written since."""
        with self._lock:
            before = self._offset
            rows, self._offset = follow(self._file, before)
            if self._offset < before:
                self._rows.clear()
            for row in rows:
                if isinstance(step := row.get("step"), int):
                    for later in [s for s in self._rows if s >= step]:
                        del self._rows[later]
                    self._rows[step] = _figures(row)

    def points(self, figure: str) -> list[Point]:
        """(step, value) of the steps that have the figure, thinned to `POINTS`."""
        with self._lock:
            found = [(step, row[figure]) for step, row in self._rows.items() if figure in row]
        return thinned(found)


def _figures(row: Row) -> dict[str, float]:
    found = {}
    for name, (_, read) in FIGURES.items():
        try:
            value = read(row)
        except (TypeError, KeyError, AttributeError, ZeroDivisionError):
            continue
        if isinstance(value, (int, float)) and math.isfinite(value):
            found[name] = float(value)
    return found


def thinned(points: Sequence[Point], limit: int = POINTS) -> list[Point]:
    """At most `limit` points: of each stretch of steps the lowest and the highest, in order. Ends stay."""
    if len(points) <= limit:
        return list(points)
    inner, buckets = points[1:-1], (limit - 2) // 2
    kept = {0, len(points) - 1}
    for b in range(buckets):
        stretch = range(b * len(inner) // buckets, (b + 1) * len(inner) // buckets)
        kept.add(1 + min(stretch, key=lambda i: inner[i][1]))
        kept.add(1 + max(stretch, key=lambda i: inner[i][1]))
    return [points[i] for i in sorted(kept)]


_known: OrderedDict[Path, Curves] = OrderedDict()
_guard = threading.Lock()


def curves(path: Path) -> Curves:
    """The figures of a run, read up to now; the `KEPT` asked for last are remembered."""
    with _guard:
        found = _known.pop(path, None) or Curves(path)
        _known[path] = found
        while len(_known) > KEPT:
            _known.popitem(last=False)
    found.read_on()
    return found
