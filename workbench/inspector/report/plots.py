"""Small pictures of a section's rows as inline SVG: an interval a row, or a curve. Nothing but text and lines.

Colours come from the page's style, so that a picture is as readable in the dark; series differ by mark and by dash too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from workbench.inspector.report.section import Plot, Row, Section, number
from workbench.text import printable
from workbench.train.intervals import Estimate

WIDTH, LABELS, RIGHT, LINE = 720, 250, 20, 22
"""Pixels: of a picture, of its labels, right of its frame, of a row."""
CHARACTERS = 38
"""Of a row's label; the table beside it has the rest."""


@dataclass(frozen=True)
class Axis:
    """Values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value, kept inside the frame."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Four to eight round values from end to end."""
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def picture(section: Section) -> str:
    """The section's picture, or nothing where there is nothing to draw."""
    if section.plot is None:
        return ""
    return _curve(section, section.plot) if section.plot.kind == "curve" else _intervals(section, section.plot)


def _known(row: Row, column: str) -> Estimate | None:
    found = row.cells.get(column)
    return found if isinstance(found, Estimate) and found.n and math.isfinite(found.value) else None


def _range(values: Sequence[Estimate], reference: float | None) -> tuple[float, float]:
    ends = [x for e in values for x in (e.low, e.value, e.high) if math.isfinite(x)]
    ends += [] if reference is None else [reference]
    low, high = min(ends), max(ends)
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return low - margin, high + margin


def _intervals(section: Section, plot: Plot) -> str:
    """A mark and a line for each value of each row."""
    drawn = [(row, c, e) for row in section.rows for c in plot.columns if (e := _known(row, c)) is not None]
    if not drawn:
        return ""
    axis = Axis(*_range([e for _, _, e in drawn], plot.reference), LABELS, WIDTH - RIGHT)
    height, parts = LINE * len(drawn) + 8, list[str]()
    several = len(plot.columns) > 1
    for i, (row, column, e) in enumerate(drawn):
        y = LINE * (i + 0.5) + 4
        first = i == 0 or drawn[i - 1][0] is not row
        label = row.label if first else ""
        parts.append(f'<text class="label" x="{LABELS - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(label)}</text>')
        parts.append(_mark(axis, e, y, plot.columns.index(column)))
    parts += _frame(axis, height, plot.reference)
    parts.append(_axis_name(plot.axis, height))
    legend = [_legend(i, name) for i, name in enumerate(plot.columns)] if several else []
    return _svg(section.title, height + 46 + (24 if several else 0), [*parts, *_placed(legend, height + 58)])


def _mark(axis: Axis, e: Estimate, y: float, series: int) -> str:
    """An interval with its value; where there is no interval the value alone."""
    x = axis(e.value)
    line = ""
    if math.isfinite(e.low) and math.isfinite(e.high):
        line = f'<line class="s{series}" x1="{axis(e.low):.1f}" x2="{axis(e.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + _shape(x, y, series)


def _shape(x: float, y: float, series: int) -> str:
    if series % 3 == 1:
        return f'<rect class="m{series}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    if series % 3 == 2:
        points = f"{x:.1f},{y - 5:.1f} {x + 5:.1f},{y + 4:.1f} {x - 5:.1f},{y + 4:.1f}"
        return f'<polygon class="m{series}" points="{points}"/>'
    return f'<circle class="m{series}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


def _frame(axis: Axis, height: float, reference: float | None) -> list[str]:
    lines = [f'<line class="axis" x1="{axis.start}" x2="{axis.end}" y1="{height}" y2="{height}"/>']
    for tick in axis.ticks():
        x = axis(tick)
        lines.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{height}" y2="{height + 5}"/>')
        lines.append(f'<text x="{x:.1f}" y="{height + 18}" text-anchor="middle">{_tick(tick)}</text>')
    if reference is not None:
        x = axis(reference)
        lines.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
    return lines


def _curve(section: Section, plot: Plot) -> str:
    """One line a column over `Row.at`, an interval at each point."""
    series = [
        [(row.at, e) for row in section.rows if row.at is not None and (e := _known(row, column)) is not None]
        for column in plot.columns
    ]
    points = [point for line in series for point in line]
    if len(points) < 2:
        return ""
    height = 200
    xs = [at for at, _ in points]
    across = Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, 70, WIDTH - RIGHT - 20)
    up = Axis(*_range([e for _, e in points], plot.reference), height, 10)
    parts = _grid(across, up, sorted(set(xs)), height)
    for i, line in enumerate(series):
        places = [(across(at) + 4 * i, e) for at, e in line]
        path = " ".join(f"{x:.1f},{up(e.value):.1f}" for x, e in places)
        parts.append(f'<polyline class="s{i}" fill="none" points="{path}"/>')
        for x, e in places:
            if math.isfinite(e.low) and math.isfinite(e.high):
                ends = f'y1="{up(e.low):.1f}" y2="{up(e.high):.1f}"'
                parts.append(f'<line class="s{i}" x1="{x:.1f}" x2="{x:.1f}" {ends}/>')
            parts.append(_shape(x, up(e.value), i))
    parts.append(_axis_name(f"{plot.axis} over {plot.over}", height))
    legend = [_legend(i, name) for i, name in enumerate(plot.columns)]
    return _svg(section.title, height + 70, [*parts, *_placed(legend, height + 58)])


def _grid(across: Axis, up: Axis, xs: Sequence[float], height: float) -> list[str]:
    parts = [f'<line class="axis" x1="{across.start}" x2="{across.end}" y1="{height}" y2="{height}"/>']
    for x in xs:
        parts.append(f'<text x="{across(x):.1f}" y="{height + 18}" text-anchor="middle">{_tick(x)}</text>')
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<line class="grid" x1="{across.start}" x2="{across.end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{across.start - 8}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick)}</text>')
    return parts


def _legend(series: int, name: str) -> tuple[str, str]:
    return _shape(0, 0, series), escape(printable(name.replace("_", " ")))


def _placed(legend: Sequence[tuple[str, str]], y: float) -> list[str]:
    parts, x = list[str](), 80.0
    for mark, name in legend:
        parts.append(f'<g transform="translate({x:.0f},{y:.0f})">{mark}<text x="10" y="4">{name}</text></g>')
        x += 34 + 7.2 * len(name)
    return parts


def _axis_name(name: str, height: float) -> str:
    return f'<text x="{(WIDTH + 60) / 2:.0f}" y="{height + 36}" text-anchor="middle">{escape(printable(name))}</text>'


def _tick(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-12 else value:g}" if abs(value) < 1e5 else number(value)


def _short(label: str) -> str:
    text = printable(label)
    return escape(text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 3]}...")


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    name = escape(printable(title), quote=True)
    box = f'viewBox="0 0 {WIDTH} {height:.0f}"'
    return f'<svg role="img" aria-label="{name}" {box}>{"".join(parts)}</svg>'
