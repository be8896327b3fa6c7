"""Sending a page only what changed: a screen that is redrawn every two seconds must not flicker or lose a scroll."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import gradio as gr

EVERY = 2.0
"""Seconds between looks at the files of a run."""
LIVELY: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
"""For events that look at files: no spinner, and no place in the queue that a rollout may wait in."""

Shown = Mapping[str, Hashable]
"""What a page shows, by component: kept in a `gr.State`."""


def changed(shown: Shown, now: Mapping[str, tuple[Hashable, Any]]) -> tuple[dict[str, Hashable], list[Any]]:
    """What is shown from now on, and an update a component: `gr.skip()` for those that show it already.

    `now` has for each component what it shows, to compare by, and the update that shows it.
    """
    updates = [gr.skip() if name in shown and shown[name] == key else update for name, (key, update) in now.items()]
    return {name: key for name, (key, _) in now.items()}, updates
