"""The screen Rollouts: what a run wrote, filtered, searched and sorted; a row opens it token by token on Live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import gradio as gr

from workbench.screens import notify, reading
from workbench.screens.links import Link, RolloutKey
from workbench.screens.plots import Bar, Panel, Plots, drawn
from workbench.screens.polling import CHOSEN, EVERY, LIVELY, PLACED, TOLD, Shown, changed
from workbench.screens.rollout_index import Entry, Filters, RolloutIndex, index
from workbench.screens.stage import Stage, opening
from workbench.text import printable
from workbench.train.reporting import RunView

HEADERS = ("step", "problem", "rollout", "verdict", "kept", "tokens", "reward", "nat/token", "text")
WIDTHS = ("6%", "12%", "10%", "11%", "7%", "7%", "8%", "9%", "30%")
PAGE = 50
"""Rows a page."""
SORTS = [
    ("newest first", "newest"),
    ("largest divergence first", "divergence"),
    ("longest first", "longest"),
    ("shortest first", "shortest"),
]
EMPTY = """### No rollouts yet
A rollout is one completion, with its verdict and what the loss made of it. Every run writes all of its rollouts down.

* Choose a run above, or start one on the screen **Train**: the first rollouts appear after the first step
* A row opens on **Live**, token by token, as both roles saw it"""


@dataclass(frozen=True)
class Controls:
    """The filters as components, in the order in which `asked` takes their values."""

    step: gr.Slider
    correct: gr.Radio
    kept: gr.Radio
    truncated: gr.Radio
    shortest: gr.Number
    longest: gr.Number
    words: gr.Textbox
    sort: gr.Dropdown

    def all(self) -> list[Any]:
        """As a list of inputs."""
        return [getattr(self, field.name) for field in fields(self)]


def build(stage: Stage) -> None:
    """Lay the screen out, inside its tab."""
    with gr.Row():
        picker = gr.Dropdown([], label="Run", elem_id="rollouts-run", scale=3)
        words = gr.Textbox(
            label="Search in completions and questions", placeholder="any text", elem_id="rollouts-search", scale=4
        )
        sort = gr.Dropdown(SORTS, value="newest", label="Order", elem_id="rollouts-sort", scale=2, filterable=False)
    with gr.Row():
        with gr.Column(scale=1, min_width=272, elem_id="rollouts-filters"):
            controls = _filters(words, sort)
            rewards = Plots(elem_id="rollouts-rewards")
        with gr.Column(scale=4, min_width=320):
            empty = gr.Markdown(EMPTY, elem_id="rollouts-empty", elem_classes="app-empty", visible=False)
            table = gr.Dataframe(
                headers=list(HEADERS),
                datatype="str",
                type="array",
                interactive=False,
                label="Rollouts",
                column_widths=list(WIDTHS),
                max_height=420,
                buttons=[],
                elem_id="rollouts-table",
            )
            with gr.Row(elem_id="rollouts-pages"):
                back = gr.Button("Previous page", size="sm", elem_id="rollouts-back")
                onward = gr.Button("Next page", size="sm", elem_id="rollouts-onward")
            reading.build(stage, "rollouts")
    _wire(stage, controls, (picker, empty, table, rewards), (back, onward))


def _filters(words: gr.Textbox, sort: gr.Dropdown) -> Controls:
    any_of = [("any", "any")]
    step = gr.Slider(0, 1, value=0, step=1, label="Step (0: all)", elem_id="rollouts-step")
    states = ("correct", "wrong", "unjudged")
    correct = gr.Radio(
        [*any_of, *((state, state) for state in states)], value="any", label="Verdict", elem_id="rollouts-correct"
    )
    gates = [*any_of, ("kept", "yes"), ("rejected", "no")]
    kept = gr.Radio(gates, value="any", label="Gates", elem_id="rollouts-kept")
    ends = [*any_of, ("truncated", "yes"), ("ended", "no")]
    truncated = gr.Radio(ends, value="any", label="End", elem_id="rollouts-truncated")
    with gr.Row():
        low, high = (
            gr.Number(0, label=word, precision=0, minimum=0, min_width=96, elem_id=f"rollouts-{name}")
            for word, name in (("Tokens from", "shortest"), ("to (0: any)", "longest"))
        )
    return Controls(step, correct, kept, truncated, low, high, words, sort)


def _wire(stage: Stage, controls: Controls, parts: tuple[Any, ...], pages: tuple[gr.Button, gr.Button]) -> None:
    picker, empty, table, rewards = parts
    bar, page, shown = gr.State(None), gr.State(0), gr.State({})
    outputs = [picker, controls.step, empty, table, rewards, *pages]

    def look(place: Link, score: float | None, number: int, was: Shown, *values: Any) -> list[Any]:
        if place.view != "rollouts":
            return [was, *(gr.skip() for _ in outputs)]
        runs = stage.runs()
        run = next((r for r in runs if r.name == place.run), next(iter(runs), None))
        now, updates = changed(was, updates_for(runs, run, replace(asked(values), score=score), number, place.run))
        return [now, *updates]

    given, drawn_parts = [stage.place, bar, page, shown, *controls.all()], [shown, *outputs]
    event: Any
    for event in (gr.Timer(EVERY).tick, stage.place.change, bar.change, page.change):
        event(look, given, drawn_parts, **LIVELY)
    for control in controls.all():
        event = control.input if control is not controls.step else control.release
        event(lambda: 0, None, page, **LIVELY).then(look, given, drawn_parts, **LIVELY)
    rewards.pick(picked_bar, bar, [bar, page], **TOLD)
    picker.input(
        lambda name, place: replace(place, run=name, rollout="", tok=None),
        [picker, stage.place],
        stage.place,
        **PLACED,
    )
    pages[0].click(lambda number: max(0, number - 1), page, page, **TOLD)
    pages[1].click(lambda number: number + 1, page, page, **TOLD)

    def click(
        place: Link, score: float | None, number: int, event: gr.SelectData, *values: Any
    ) -> tuple[Link, Any, Any]:
        run = stage.find(place.run) or next(iter(stage.runs()), None)
        found = rows_of(run, replace(asked(values), score=score), number) if run else []
        chosen = next((e for e in found if cells(e, {})[:3] == event.row_value[:3]), None)
        if run is None or chosen is None:
            raise notify.error("This row has moved on. Choose it again.")
        with notify.told():  # an id can be too long for a link
            link = link_of(run, chosen.key)
        return link, opening(link), gr.Tabs(selected="live")

    inputs = [stage.place, bar, page, *controls.all()]
    table.select(click, inputs, [stage.place, stage.opened, stage.tabs], **CHOSEN)


def asked(values: Sequence[Any]) -> Filters:
    """The filters that the controls say, in the order of `Controls`."""
    step, correct, kept, truncated, shortest, longest, words, sort = values
    yes = {"yes": True, "no": False}
    return Filters(
        step=int(step) or None,
        correct=None if correct == "any" else correct,
        kept=yes.get(kept),
        truncated=yes.get(truncated),
        shortest=int(shortest or 0) or None,
        longest=int(longest or 0) or None,
        words=(words or "").strip(),
        sort=sort or "newest",
    )


def picked_bar(score: float | None, event: gr.EventData) -> tuple[float | None, int]:
    """The bar of rewards that was chosen, or none where it was chosen already; and the first page."""
    try:
        chosen = float(event._data["pick"])
    except (KeyError, ValueError, TypeError):
        return score, 0
    return (None if chosen == score else chosen), 0


def rows_of(run: RunView, filters: Filters, page: int) -> list[Entry]:
    """The entries of a page."""
    return index(run.path).wanted(filters)[page * PAGE : (page + 1) * PAGE]


def cells(entry: Entry, row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    key = entry.key
    first = [str(key.step), key.problem, f"{key.author} {key.index}"]
    score = "" if entry.score is None else f"{entry.score:.2f}"
    divergence = "" if entry.divergence != entry.divergence else f"{entry.divergence:.3f}"
    text = " ".join(str(row.get("text", ""))[:160].split())
    rest = [entry.status, "kept" if entry.kept else "rejected", str(entry.tokens), score, divergence, text]
    return [printable(cell) for cell in (*first, *rest)]


def updates_for(
    runs: list[RunView], run: RunView | None, filters: Filters, page: int, wanted_run: str = ""
) -> dict[str, tuple[Any, Any]]:
    """By component: what it shows and the update that shows it; a wanted run that is gone is said to be."""
    found = index(run.path) if run else None
    wanted = found.wanted(filters) if found else []
    page = min(page, max(0, len(wanted) - 1) // PAGE)
    visible = wanted[page * PAGE : (page + 1) * PAGE]
    rows = [cells(entry, found.row(entry)) for entry in visible] if found else []
    labels = [(printable(r.name), r.name) for r in runs]
    steps = max((entry.key.step for entry in found.entries), default=1) if found else 1
    counted = label(found, len(wanted), page, len(visible))
    if run is not None and wanted_run not in ("", run.name):
        counted = f"{printable(wanted_run)} is gone; this is {printable(run.name)}. {counted}"
    bars = drawn([rewards_panel(found, filters)]) if found else drawn([])
    name = run.name if run else None
    return {
        "picker": (repr((labels, name)), gr.Dropdown(choices=labels, value=name)),
        "step": (steps, gr.Slider(maximum=max(1, steps))),
        "empty": (bool(rows), gr.Markdown(visible=not rows)),
        "table": (repr((rows, counted)), gr.Dataframe(value=rows, label=counted, visible=bool(rows))),
        "rewards": (bars, bars),
        "back": (page > 0, gr.Button(interactive=page > 0)),
        "onward": (len(wanted) > (page + 1) * PAGE, gr.Button(interactive=len(wanted) > (page + 1) * PAGE)),
    }


def label(found: RolloutIndex | None, wanted: int, page: int, visible: int) -> str:
    """How many there are, and how far the file is read."""
    if found is None or not visible:
        return "Rollouts"
    first = page * PAGE + 1
    text = f"Rollouts {first} to {first + visible - 1} of {wanted}; a row opens on Live"
    if found.behind:
        text += f" (reading: {found.offset / 2**20:.0f} of {found.size / 2**20:.0f} MiB)"
    return text


def rewards_panel(found: RolloutIndex, filters: Filters) -> Panel:
    """The histogram of rewards; its bars filter."""
    counts = found.histogram(filters)
    bars = [Bar(f"{score:.1f}", n, key=str(score), mark=score == filters.score) for score, n in counts]
    note = "" if counts else "No rollout was judged, so there is no reward."
    return Panel("Rewards; choose a bar to filter", bars=bars, note=note)


def link_of(run: RunView, key: RolloutKey) -> Link:
    """The place of a rollout on Live."""
    return Link(run=run.name, rollout=key.text, view="live")
