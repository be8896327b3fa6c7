"""What every screen is given: where runs lie, which were asked for, and the components that all screens share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr

from workbench.screens.links import Link, linkable
from workbench.train.reporting import RunView, list_runs, view

STATE_SECONDS = 3600
"""How long the server remembers what a closed page had selected."""


@dataclass(frozen=True)
class Opening:
    """A wish to see a recorded rollout on the screen Live."""

    link: Link = field(default_factory=Link)
    number: int = 0
    """Differs from wish to wish, so that asking for the same rollout twice is two events."""


@dataclass(frozen=True)
class Stage:
    """One app. The components belong to a page (gradio keeps their values by session), the rest to the server."""

    output: Path
    """Where runs lie, and where Train puts new ones."""
    chosen: tuple[Path, ...]
    """Runs named on the command line; they may lie elsewhere."""
    models: tuple[str, ...]
    """Models offered, the first as the default."""
    tabs: gr.Tabs
    """The screens: `gr.Tabs(selected="live")` as an output changes to one."""
    place: gr.State
    """`Link`: where this page is. A screen whose selection moves writes it; *Copy link* reads it."""
    opened: gr.State
    """`Opening`: a screen writes it to show a recorded rollout; Live listens to its `change`."""
    preferences: gr.BrowserState
    """A dict of what this browser likes: `colour`, `threshold`, ... Read it defensively, the browser wrote it."""

    def runs(self) -> list[RunView]:
        """Every run there is, those of the command line first, then the one heard of last."""
        named = [run for path in self.chosen if (run := view(path))]
        known = {run.path.resolve() for run in named}
        # A directory that no link can name is none of ours: the commands refuse such names.
        return [*named, *(r for r in list_runs(self.output) if r.path.resolve() not in known and linkable(r.name))]

    def find(self, name: str) -> RunView | None:
        """The run of that name. By comparison with what is there: a name never becomes part of a path."""
        return next((run for run in self.runs() if run.name == name), None)


def opening(link: Link) -> Opening:
    """A wish for now."""
    return Opening(link, time.monotonic_ns())
