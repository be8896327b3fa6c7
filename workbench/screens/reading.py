"""One rollout to read, and the ways from it to its neighbours: for Rollouts, and for Live in recorded mode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from workbench.errors import UsageError
from workbench.screens import notify
from workbench.screens.component import machine_text
from workbench.screens.links import Link, RolloutKey
from workbench.screens.polling import LIVELY, PLACED
from workbench.screens.rollout_index import index
from workbench.screens.stage import Stage, opening
from workbench.text import printable

WAYS = (
    ("previous", "Previous in group"),
    ("next", "Next in group"),
    ("earlier", "Same problem, step before"),
    ("later", "Same problem, step after"),
)
"""Where one can go from a rollout, and the button that says so."""


def neighbours(stage: Stage, place: Link) -> dict[str, RolloutKey]:
    """By way, the rollout it leads to; empty where the page shows no rollout of a run."""
    run = stage.find(place.run)
    if run is None or not place.recorded:
        return {}
    try:
        return index(run.path, seconds=0.2).neighbours(RolloutKey.parse(place.rollout))
    except UsageError:
        return {}


def bar(stage: Stage, screen: str) -> list[gr.Button]:
    """The four ways from the rollout that `stage.place` names, as buttons; each opens what it leads to.

    On the screen Live the wish to open it is written to `stage.opened`, elsewhere only the place moves.
    """
    with gr.Row(elem_id=f"{screen}-ways"):
        buttons = [
            gr.Button(title, size="sm", interactive=False, elem_id=f"{screen}-{way}", min_width=96)
            for way, title in WAYS
        ]

    def enabled(place: Link) -> list[Any]:
        found = neighbours(stage, place)
        return [gr.Button(interactive=way in found) for way, _ in WAYS]

    stage.place.change(enabled, stage.place, buttons, **LIVELY)
    for button, (way, title) in zip(buttons, WAYS, strict=True):
        button.click(_go(stage, way, title, screen), stage.place, [stage.place, stage.opened], **PLACED)
    return buttons


def _go(stage: Stage, way: str, title: str, screen: str) -> Any:
    def go(place: Link) -> tuple[Link, Any]:
        found = neighbours(stage, place).get(way)
        if found is None:
            raise notify.error(f"{title}: there is none.")
        link = replace(place, rollout=found.text, tok=None)
        return link, opening(link) if screen == "live" else gr.skip()

    return go


def build(stage: Stage, screen: str) -> None:
    """The panel: question, verdict and text of the rollout that the place names, above the ways from it."""
    with gr.Column(elem_id=f"{screen}-reading"):
        bar(stage, screen)
        title = gr.Textbox(
            label="Rollout",
            placeholder="The rollout chosen last stands here to be read.",
            lines=2,
            max_lines=6,
            interactive=False,
            elem_id=f"{screen}-title",
        )
        text = machine_text(label="Completion", lines=6, max_lines=18, elem_id=f"{screen}-text")
        show = gr.Button("Open on Live, token by token", variant="primary", interactive=False, elem_id=f"{screen}-open")

    def read(place: Link) -> list[Any]:
        found = shown(stage, place)
        return [*(found or ("", "")), gr.Button(interactive=found is not None)]

    stage.place.change(read, stage.place, [title, text, show], **LIVELY)

    def open_live(place: Link) -> tuple[Link, Any, Any]:
        link = replace(place, view="live")
        return link, opening(link), gr.Tabs(selected="live")

    show.click(open_live, stage.place, [stage.place, stage.opened, stage.tabs], **PLACED)


def shown(stage: Stage, place: Link) -> tuple[str, str] | None:
    """(what it is and what was said of it, its text); None where the place names no rollout that is there."""
    run = stage.find(place.run)
    if run is None or not place.recorded:
        return None
    found = index(run.path)
    entry = found.find(RolloutKey.parse(place.rollout))
    if entry is None:
        return None
    row = found.row(entry)
    answer = f", read as {row.get('extracted')!r}" if row.get("extracted") is not None else ""
    lines = [
        f"step {entry.key.step}, problem {entry.key.problem}, {entry.key.author} {entry.key.index}: {entry.status}"
        f"{answer}; {'kept' if entry.kept else 'rejected'}; {entry.tokens} tokens{', truncated' * entry.truncated}",
        str(row.get("question") or "")[:2000],
        *([f"verdict: {row['reason']}"] if row.get("reason") else []),
    ]
    return "\n".join(printable(line, lines=True) for line in lines), printable(row.get("text", ""), lines=True)
