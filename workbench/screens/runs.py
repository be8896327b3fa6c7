"""The screen Runs: every run there is, the curves of up to four, and of one what it was started with and its way on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from workbench.screens import notify, run_table
from workbench.screens.component import machine_text
from workbench.screens.curves import FIGURES, curves
from workbench.screens.links import Link
from workbench.screens.plots import Line, Panel, Plots, drawn
from workbench.screens.polling import CHOSEN, EVERY, LIVELY, PLACED, TOLD, Shown, changed
from workbench.screens.stage import Stage
from workbench.text import printable
from workbench.train.reporting import RunView

FIRST = ("divergence", "correct", "tokens", "truncated", "entropy", "seconds")
"""The figures drawn."""
MOST = 4
"""Runs whose curves are drawn beside each other."""
EMPTY = """### No runs yet
A run is one training job: its settings, its figures by step, every rollout, and the model it made.

* Start one on the screen **Train**, or in a terminal: `python -m workbench.opsd`
* Runs that lie elsewhere: `python app.py --output FOLDER`, or `--run FOLDER/NAME`

It appears here within seconds of its start, and stays when it has ended, however it ended."""


@dataclass(frozen=True)
class Parts:
    """The components, in the order of the updates."""

    empty: gr.Markdown
    board: gr.Column
    table: gr.Dataframe
    picker: gr.Dropdown
    plots: Plots
    standing: gr.Textbox
    command: gr.Textbox
    settings: gr.Textbox

    def outputs(self) -> list[Any]:
        """As a list of outputs."""
        rest = [self.standing, self.command, self.settings]
        return [self.empty, self.board, self.table, self.picker, self.plots, *rest]


def build(stage: Stage) -> None:
    """Lay the screen out, inside its tab."""
    parts, rollouts = _layout()
    picked, shown = gr.State([]), gr.State({})

    def look(place: Link, names: list[str], was: Shown) -> list[Any]:
        if place.view != "runs":
            return [was, *(gr.skip() for _ in parts.outputs())]
        now, updates = changed(was, updates_for(stage.runs(), place.run, names))
        return [now, *updates]

    given, drawn_parts = [stage.place, picked, shown], [shown, *parts.outputs()]
    event: Any
    for event in (gr.Timer(EVERY).tick, stage.place.change, picked.change):
        event(look, given, drawn_parts, **LIVELY)

    def click(place: Link, event: gr.SelectData) -> tuple[Link, list[str]]:
        run = clicked(stage.runs(), event.row_value)
        return (replace(place, run=run.name, rollout="", tok=None), [run.name]) if run else (place, [])

    parts.table.select(click, stage.place, [stage.place, picked], **CHOSEN)
    parts.picker.input(lambda names: names[:MOST], parts.picker, picked, **TOLD)

    def to_rollouts(place: Link) -> tuple[Link, Any]:
        if stage.find(place.run) is None:
            raise notify.error("No run is selected. Choose one in the table first.")
        return replace(place, view="rollouts"), gr.Tabs(selected="rollouts")

    rollouts.click(to_rollouts, stage.place, [stage.place, stage.tabs], **PLACED)


def _layout() -> tuple[Parts, gr.Button]:
    empty = gr.Markdown(EMPTY, elem_id="runs-empty", elem_classes="app-empty", visible=False)
    with gr.Column(elem_id="runs-board") as board:
        table = gr.Dataframe(
            headers=list(run_table.HEADERS),
            datatype="str",
            type="array",
            interactive=False,
            label="Runs. Choose one to see its curves, its settings and its way on.",
            column_widths=list(run_table.WIDTHS),
            max_height=264,
            buttons=[],
            elem_id="runs-table",
        )
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                picker = gr.Dropdown(
                    [], multiselect=True, max_choices=MOST, label="Curves of up to four runs", elem_id="runs-picker"
                )
                plots = Plots(elem_id="runs-curves")
            with gr.Column(scale=3, min_width=320):
                standing = gr.Textbox(
                    label="Selected run", lines=2, max_lines=6, interactive=False, elem_id="runs-standing"
                )
                command = machine_text(label="Go on with it", lines=1, max_lines=4, elem_id="runs-command")
                rollouts = gr.Button("Look at its rollouts", variant="primary", elem_id="runs-rollouts")
                settings = machine_text(
                    label="What it was started with", lines=12, max_lines=18, elem_id="runs-settings"
                )
    return Parts(empty, board, table, picker, plots, standing, command, settings), rollouts


def clicked(runs: list[RunView], row: list[str]) -> RunView | None:
    """The run whose row was chosen, however the page has sorted the table."""
    return next((run for run in runs if row and printable(run.name) == row[0]), None)


def panels(runs: list[RunView]) -> list[Panel]:
    """Every figure of some runs; a run has one colour in all of them."""
    read = [(run.name, place, curves(run.path)) for place, run in enumerate(runs)]
    return [
        Panel(FIGURES[figure][0], [Line(name, found.points(figure), place) for name, place, found in read])
        for figure in FIRST
    ]


def updates_for(runs: list[RunView], selected: str, names: list[str]) -> dict[str, tuple[Any, Any]]:
    """By component: what it shows and the update that shows it. Without a selection the first run is shown."""
    by_name = {run.name: run for run in runs}
    one = by_name.get(selected) or next(iter(runs), None)
    drawn_runs = [by_name[name] for name in names if name in by_name][:MOST] or ([one] if one else [])
    rows, labels = run_table.table(runs), [(printable(run.name), run.name) for run in runs]
    chosen = [run.name for run in drawn_runs]
    now: dict[str, tuple[Any, Any]] = {
        "empty": (not runs, gr.Markdown(visible=not runs)),
        "board": (bool(runs), gr.Column(visible=bool(runs))),
        "table": (repr(rows), rows),
        "picker": (repr((labels, chosen)), gr.Dropdown(choices=labels, value=chosen)),
        "plots": (plotted := drawn(panels(drawn_runs)), plotted),
    }
    texts = {
        "standing": f"{printable(one.name)}: {run_table.standing(one)}" if one else "",
        "command": run_table.way_on(one) if one else "",
        "settings": run_table.settings(one) if one else "",
    }
    return now | {name: (text, text) for name, text in texts.items()}
