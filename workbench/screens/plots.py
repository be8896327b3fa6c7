"""Small plots beside each other, drawn by the browser from numbers: lines over steps, or bars that can be chosen.

gradio's own plot keeps the colours and axes of its first data, cuts labels off and warns on the console; this one is a
page of script that draws what it is given, with the last value of each line in words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from workbench.screens.component import Drawn
from workbench.text import printable


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    points: Sequence[tuple[int, float]]
    place: int = 0
    """Which of the four colours and dashes; a run has the same in every panel."""


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram."""

    label: str
    count: int
    key: str = ""
    """What the event `pick` says; empty: the bar cannot be chosen."""
    mark: bool = False
    """Drawn as chosen, or as over a limit."""
    place: int = 0


@dataclass(frozen=True)
class Panel:
    """One plot: lines, or bars."""

    title: str
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    note: str = ""
    """A line under the title."""


class Plots(Drawn):
    """Panels in a grid. `pick` is its event: `event._data["pick"]` is the key of the bar."""

    def __init__(self, panels: Sequence[Panel] = (), **settings: Any) -> None:
        """`elem_id` and the like, as every component takes them."""
        super().__init__(drawn(panels), "plots", **settings)


def drawn(panels: Sequence[Panel]) -> str:
    """The value of the plots; text in it obeys nothing, and the browser only ever sets it as text."""
    return json.dumps([_plain(asdict(panel)) for panel in panels], allow_nan=False)


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_plain(value) for value in node]
    return printable(node) if isinstance(node, str) else node
