"""The screen Train: a configuration as a form, what it would do, the command that does it, and the run as it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from workbench.config import RunConfig
from workbench.errors import WorkbenchError
from workbench.recipes import ALL
from workbench.screens import children, form, notify, run_table
from workbench.screens.component import machine_text
from workbench.screens.curves import FIGURES, curves
from workbench.screens.links import Link
from workbench.screens.plots import Line, Panel, Plots, drawn
from workbench.screens.polling import EVERY, LIVELY, PLACED, TOLD, Shown, changed
from workbench.screens.stage import Stage
from workbench.text import printable
from workbench.train.reporting import RunView

FIRST = "Choose what to train and press Dry run: nothing is written, and both prompts are shown. Start does it."
PROBLEMS = ["sums", "sums:terms=3,maximum=50", "code:difficulty=easy", "gsm_symbolic"]
FIGURE_PAIR = ("divergence", "correct")


@dataclass(frozen=True)
class Watch:
    """The part of the screen that shows a run as it goes."""

    picker: gr.Dropdown
    standing: gr.Textbox
    way_on: gr.Textbox
    plots: Plots
    log: gr.Textbox
    stop: gr.Button
    resume: gr.Button
    steps: gr.Number

    def outputs(self) -> list[Any]:
        """What is redrawn, in the order of `updates_for`."""
        return [self.picker, self.standing, self.way_on, self.plots, self.log, self.stop, self.resume]


def build(stage: Stage) -> None:
    """Lay the screen out, inside its tab."""
    choices = {"model": list(stage.models), "problems": PROBLEMS, "recipe": list(ALL)}
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            fields = form.essentials(choices)
            command = machine_text(label="The same in a terminal", lines=2, max_lines=6, elem_id="train-command")
            with gr.Row():
                dry = gr.Button("Dry run", elem_id="train-dry")
                start = gr.Button("Start", variant="primary", elem_id="train-start")
            plan = machine_text(
                FIRST, copy=False, label="What it would do", lines=3, max_lines=20, elem_id="train-plan"
            )
            fields |= form.rest(choices)
        with gr.Column(scale=4, min_width=320, elem_id="train-watch"):
            watch = _watch()
    _wire_form(stage, fields, command, plan, dry, start)
    _wire_watch(stage, watch)


def _watch() -> Watch:
    picker = gr.Dropdown([], label="Run to watch", elem_id="train-run")
    standing = gr.Textbox(label="State", lines=2, max_lines=6, interactive=False, elem_id="train-state")
    stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="train-stop")
    with gr.Row(equal_height=True):
        steps = gr.Number(0, label="Resume up to step (0: as it was)", precision=0, minimum=0, elem_id="train-more")
        resume = gr.Button("Resume", interactive=False, elem_id="train-resume")
    way_on = machine_text(label="Resume it in a terminal", lines=1, max_lines=3, elem_id="train-way-on")
    plots = Plots(elem_id="train-curves")
    log = machine_text(copy=False, label="What it says", lines=14, max_lines=14, autoscroll=True, elem_id="train-log")
    return Watch(picker, standing, way_on, plots, log, stop, resume, steps)


def _wire_form(
    stage: Stage, fields: dict[str, Any], command: gr.Textbox, plan: gr.Textbox, dry: gr.Button, start: gr.Button
) -> None:
    names, parts = list(fields), list(fields.values())

    def line(*values: Any) -> str:
        return command_of(stage, names, values)

    command.value = line(*(part.value for part in parts))
    # One event for all: answers to several could overtake each other, and the command be an older form's.
    gr.on([part.change for part in parts], line, parts, command, trigger_mode="always_last", **LIVELY)

    def look(*values: Any) -> Iterator[str]:
        with notify.told():
            config = configured(stage, names, values)
        yield "loading: a few seconds, a minute for a model that is converted first"
        yield from children.dry_run(config)

    dry.click(look, parts, plan, api_visibility="private", concurrency_id="dry-run", concurrency_limit=1)

    def go(place: Link, *values: Any) -> tuple[Link, str]:
        with notify.told():
            config, fresh = children.start(configured(stage, names, values))
        name = str(config.name)
        notify.info(f"{name} is starting; its first words appear in seconds." if fresh else f"{name} runs already.")
        # With its name in the form, a second Start means the same run.
        return replace(place, run=name, rollout="", tok=None), name

    start.click(go, [stage.place, *parts], [stage.place, fields["name"]], **PLACED)


def configured(stage: Stage, names: Sequence[str], values: Sequence[Any]) -> RunConfig:
    """The configuration that the form says, with runs where the app looks for them. Raises UsageError."""
    return replace(children.configured(dict(zip(names, values, strict=True))), output=str(stage.output))


def command_of(stage: Stage, names: Sequence[str], values: Sequence[Any]) -> str:
    """The command, or why there is none."""
    try:
        return children.command(configured(stage, names, values))
    except WorkbenchError as error:
        return printable(f"not a command yet: {error}")


def _wire_watch(stage: Stage, watch: Watch) -> None:
    shown = gr.State({})

    def look(place: Link, was: Shown) -> list[Any]:
        if place.view != "train":
            return [was, *(gr.skip() for _ in watch.outputs())]
        now, updates = changed(was, updates_for(stage, place.run))
        return [now, *updates]

    event: Any
    for event in (gr.Timer(EVERY).tick, stage.place.change):
        event(look, [stage.place, shown], [shown, *watch.outputs()], **LIVELY)
    watch.picker.input(
        lambda name, place: replace(place, run=name, rollout="", tok=None),
        [watch.picker, stage.place],
        stage.place,
        **PLACED,
    )

    def halt(place: Link) -> None:
        run = stage.find(place.run)
        path = run.path if run else stage.output / place.run
        if place.run and children.stop(path):
            notify.info("Stopping after this rollout, and saving. Press Stop again to stop at once.")
        else:
            notify.warn("Nothing runs under this name.")

    watch.stop.click(halt, stage.place, None, **TOLD)

    def onward(place: Link, steps: float | None) -> None:
        run = stage.find(place.run)
        if run is None:
            raise notify.error("No run is selected. Choose one above.")
        started = children.resume(run, int(steps) if steps else None)
        notify.info(f"{run.name} {'goes on' if started else 'runs already'}.")

    watch.resume.click(onward, [stage.place, watch.steps], None, **TOLD)


def updates_for(stage: Stage, name: str) -> dict[str, tuple[Any, Any]]:
    """By component: what it shows and the update that shows it."""
    runs = stage.runs()
    run = next((r for r in runs if r.name == name), None if name else next(iter(runs), None))
    shown = run.name if run else name
    path = run.path if run else stage.output / name if name else None
    alive = path is not None and children.running(path)
    labels = [(printable(r.name), r.name) for r in runs]
    if name and run is None:
        labels.insert(0, (printable(name), name))
    standing = state_of(stage, run, name)
    way_on = run_table.way_on(run) if run and not alive else ""
    plots = drawn(panels(run))
    log = children.said(path) if path is not None else ""
    over = run is not None and not alive
    return {
        "picker": (repr((labels, shown)), gr.Dropdown(choices=labels, value=shown or None)),
        "standing": (standing, standing),
        "way_on": (way_on, way_on),
        "plots": (plots, plots),
        "log": (log, log),
        "stop": (alive, gr.Button(interactive=alive)),
        "resume": (over, gr.Button(interactive=over)),
    }


def state_of(stage: Stage, run: RunView | None, name: str) -> str:
    """What the run is doing, or why it is not; a start that came to nothing says so too."""
    if run is not None:
        return f"{printable(run.name)}: {run_table.standing(run)}"
    if not name:
        return "No run yet. Fill the form and press Start; a small one takes minutes."
    path = stage.output / name
    code = children.exit_code(path)
    if children.running(path):
        return f"{printable(name)}: starting; torch and the model are loading"
    if code is not None:
        return f"{printable(name)}: failed to start (exit code {code}). What it said is below."
    return f"{printable(name)}: there is no such run here"


def panels(run: RunView | None) -> list[Panel]:
    """Two figures of the run, as it goes."""
    if run is None:
        return []
    found = curves(run.path)
    return [Panel(FIGURES[figure][0], [Line(run.name, found.points(figure))]) for figure in FIGURE_PAIR]
