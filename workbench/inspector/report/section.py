"""What a report is made of: sections with rows of estimates. Page, text and JSON are three views of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.inspector.diagnostics import Decision
from workbench.train.intervals import FEWEST, Estimate, Scores, paired_bootstrap, wilson
from workbench.train.run_directory import encode

Cell = Estimate | int | float | str | None
"""None: not measured, shown as a dash."""
Source = Literal["recorded", "probed"]


@dataclass(frozen=True)
class Row:
    """One line of a section's table."""

    label: str
    cells: Mapping[str, Cell]
    """Column -> value; columns are API in report.json."""
    at: float | None = None
    """Where it stands on the horizontal axis of a curve."""


@dataclass(frozen=True)
class Plot:
    """Which columns of the rows are drawn: an interval a row, or a curve over `Row.at`."""

    kind: Literal["intervals", "curve"]
    columns: tuple[str, ...]
    axis: str
    """What the values are, with their unit."""
    over: str = ""
    """What the horizontal axis of a curve counts."""
    reference: float | None = None
    """A line to compare with: 0 for a difference, .5 for a coin."""


@dataclass(frozen=True)
class Section:
    """One question, and what can be said to it."""

    name: str
    title: str
    answer: str
    """One sentence with its numbers; or why there is none."""
    source: Source
    basis: str = ""
    """What it rests on: rollouts, problems, seeds, weights."""
    rows: tuple[Row, ...] = ()
    plot: Plot | None = None
    key: Mapping[str, Estimate] = field(default_factory=dict)
    """The figures that headline, decisions and comparisons read; names are API."""
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Figure -> problem -> values, where two runs can be compared problem by problem."""
    missing: tuple[str, ...] = ()
    """What could not be measured, and why."""
    misleads: str = ""
    """When to distrust it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of the rows, in the order of first appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.cells))

    def as_dict(self) -> dict[str, Any]:
        """For report.json: everything but the values by problem."""
        return {
            "name": self.name,
            "title": self.title,
            "answer": self.answer,
            "source": self.source,
            "basis": self.basis,
            "rows": [{"label": r.label, "at": r.at, **{k: _plain(v) for k, v in r.cells.items()}} for r in self.rows],
            "key": {name: value.as_dict() for name, value in self.key.items()},
            "missing": list(self.missing),
            "misleads": self.misleads,
        }


@dataclass(frozen=True)
class Triggered:
    """A row of the decision table whose symptom is seen."""

    decision: Decision
    seen: str
    """The numbers that triggered it."""


@dataclass(frozen=True)
class Report:
    """One run's report."""

    run: str
    facts: Mapping[str, str]
    """What was run: recipe, model, problems, seed, command, thinking modes."""
    word: str
    """`teaches`, `is mostly style and format`, `points the wrong way`, `cannot be told`."""
    headline: str
    sections: tuple[Section, ...]
    decisions: tuple[Triggered, ...]
    unseen: tuple[str, ...]
    """Symptoms of the decision table that were looked for and not seen, or could not be looked for, with the reason."""

    def section(self, name: str) -> Section | None:
        """By name."""
        return next((s for s in self.sections if s.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "run": self.run,
            "facts": dict(self.facts),
            "verdict": {"word": self.word, "headline": self.headline},
            "decisions": [
                {"symptom": t.decision.symptom, "seen": t.seen, "look_at": t.decision.look_at,
                 "sources": list(t.decision.sources)}
                for t in self.decisions
            ],
            "unseen": list(self.unseen),
            "sections": [s.as_dict() for s in self.sections],
        }  # fmt: skip


def number(value: float, *, signed: bool = False) -> str:
    """Three figures that matter: `0.0123`, `12.3`, `1.2e-05`; NaN is `not known`."""
    if math.isnan(value):
        return "not known"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
        return f"{value:{'+' if signed else ''}.{digits}f}"
    return f"{value:{'+' if signed else ''}.1e}"


def shown(cell: Cell, *, signed: bool = False) -> str:
    """A cell as every view writes it: `0.412 nat/token [0.380, 0.450]`, `12`, `-`."""
    if cell is None:
        return "-"
    if isinstance(cell, Estimate):
        if cell.n == 0 or math.isnan(cell.value):
            return "not known"
        unit = f" {cell.unit}" if cell.unit else ""
        text = number(cell.value, signed=signed) + unit
        if not (math.isfinite(cell.low) and math.isfinite(cell.high)):
            return f"{text} (no interval, n {cell.n})"
        few = "" if cell.n >= FEWEST else f" (n {cell.n})"
        return f"{text} [{number(cell.low, signed=signed)}, {number(cell.high, signed=signed)}]{few}"
    return number(cell, signed=signed) if isinstance(cell, float) else str(cell)


def percent(estimate: Estimate) -> str:
    """`61 % [52, 70]`: a share in a sentence."""
    if estimate.n == 0 or math.isnan(estimate.value):
        return "an unknown share"
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return f"{100 * estimate.value:.0f} % (no interval)"
    return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def unknown(name: str, title: str, why: str, source: Source = "recorded") -> Section:
    """A section that says why it is empty."""
    return Section(name, title, f"not measured: {why}", source, missing=(why,))


def common(one: Scores, other: Scores) -> tuple[dict[str, Sequence[float | None]], dict[str, Sequence[float | None]]]:
    """Both restricted to the problems that both have."""
    both = sorted(one.keys() & other.keys())
    return {key: one[key] for key in both}, {key: other[key] for key in both}


def as_json(data: Mapping[str, Any]) -> str:
    """ASCII JSON; what is not finite is null and named in `bad`, as in a run's own files."""
    return json.dumps(json.loads(encode(data)), indent=1)


def paired_share(before: Scores, after: Scores, *, seed: int = 0) -> Estimate:
    """`paired_bootstrap` of numbers from 0 to 1: where no problem differs, by how much the mean still could.

    The bound is Wilson's on the share of problems that differ: each of them could move the mean by 1 / n at most.
    """
    found = paired_bootstrap(before, after, seed=seed)
    if found.n == 0 or found.value != 0.0 or found.low < found.high < math.inf:
        return found
    bound = wilson(0, found.n).high
    return Estimate(0.0, -bound, bound, found.n)


def _plain(cell: Cell) -> object:
    return cell.as_dict() if isinstance(cell, Estimate) else cell
