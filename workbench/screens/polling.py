"""Sending a page only what changed: a screen that is redrawn every two seconds must not flicker or lose a scroll."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import gradio as gr

EVERY = 2.0
"""Seconds between looks at the files of a run."""
LIVELY: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
"""For events that look at files: no spinner, and no place in the queue that a rollout may wait in."""
TOLD: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""For events that may say something or change a state: what does not pass through gradio's queue shows no toast and
sets off no `change` of a `gr.State`."""
PLACED: dict[str, Any] = TOLD | {"concurrency_id": "place", "concurrency_limit": 1}
"""For events that write where a page is: one after the other, since a state is read when an event begins and written
when it ends. A tab chosen while the page's first answer is on its way would be forgotten."""
CHOSEN: dict[str, Any] = PLACED | {"trigger_mode": "multiple"}
"""For events that say which row or token it was: all of them, one after the other. By default gradio drops one that
comes while the last is under way, and one that it defers has the data of the first."""

Shown = Mapping[str, int]
"""What a page shows, by component, as a hash: kept in a `gr.State`."""


def changed(shown: Shown, now: Mapping[str, tuple[Hashable, Any]]) -> tuple[dict[str, int], list[Any]]:
    """What is shown from now on, and an update a component: `gr.skip()` for those that show it already.

    `now` has for each component what it shows, to compare by, and the update that shows it.
    """
    seen = {name: hash(key) for name, (key, _) in now.items()}
    return seen, [gr.skip() if shown.get(name) == seen[name] else update for name, (_, update) in now.items()]
