"""The screen Data: a problem set as the workbench understands it, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from workbench.recipes import ALL
from workbench.screens import children, notify
from workbench.screens.component import machine_text
from workbench.screens.data_facts import Facts, look, panels, summary
from workbench.screens.plots import Plots, drawn
from workbench.screens.stage import Stage
from workbench.text import printable

PROBLEMS = ["sums", "sums:terms=3,maximum=50", "code:difficulty=easy", "gsm_symbolic"]
EMPTY = """### What is in a problem set?
Name one and press **Look**. Nothing is trained; of the model only the tokenizer is read.

* which column became the question, the solution and the answer, and what was left out
* golds that no verifier can read: such problems are left out of a run, never scored 0
* how long the prompts are in both roles, and how many exceed what the model takes"""
FIELDS = ("problems", "recipe", "model", "columns", "limit", "max_prompt_tokens")
ROWS = 200
"""Rows a table shows."""


def build(stage: Stage) -> None:
    """Lay the screen out, inside its tab."""
    with gr.Row(elem_id="data-asked"):
        problems = gr.Dropdown(
            PROBLEMS, value="sums", allow_custom_value=True, label="Problems", elem_id="data-problems", scale=3,
            info="a file, a hub id, or a generated family",
        )  # fmt: skip
        recipe = gr.Dropdown(
            list(ALL), value="opsd", label="Recipe", info="says what each role sees", elem_id="data-recipe", scale=2
        )
        models = list(stage.models)
        model = gr.Dropdown(
            models, value=models[0], allow_custom_value=True, label="Model", info="its tokenizer counts",
            elem_id="data-model", scale=2,
        )  # fmt: skip
    with gr.Row():
        columns = gr.Textbox(
            label="Columns", placeholder="found by their names; else solution=rationale, one a line",
            lines=1, max_lines=4, elem_id="data-columns", scale=3,
        )  # fmt: skip
        limit = gr.Textbox(label="First rows only", placeholder="all", elem_id="data-limit", scale=1, min_width=120)
        longest = gr.Textbox(
            label="Longest prompt, tokens", placeholder="what the model takes", elem_id="data-longest", scale=2,
        )  # fmt: skip
        button = gr.Button("Look", variant="primary", elem_id="data-look", scale=1, min_width=96)
    state = gr.Textbox(visible=False, label="So far", interactive=False, elem_id="data-progress")
    empty = gr.Markdown(EMPTY, elem_id="data-empty", elem_classes="app-empty")
    with gr.Column(visible=False, elem_id="data-board") as board:
        parts = _board()
    asked = [problems, recipe, model, columns, limit, longest]

    def answer(*values: Any) -> Iterator[list[Any]]:
        waiting = "reading problems and tokenizer; a model that must be converted first takes a minute"
        yield [gr.Textbox(waiting, visible=True), gr.Markdown(visible=False), *(gr.skip() for _ in (board, *parts))]
        try:
            with notify.told():
                facts = look(children.configured(dict(zip(FIELDS, values, strict=True))))
        except gr.Error:
            yield [gr.Textbox(visible=False), gr.Markdown(visible=True), *(gr.skip() for _ in (board, *parts))]
            raise
        yield [gr.Textbox(visible=False), gr.Markdown(visible=False), gr.Column(visible=True), *shown(facts)]

    button.click(
        answer, asked, [state, empty, board, *parts], api_visibility="private", show_progress="hidden",
        concurrency_id="data", concurrency_limit=1,
    )  # fmt: skip


def _board() -> list[Any]:
    text = machine_text(copy=False, label="As understood", lines=4, max_lines=12, elem_id="data-summary")
    plots = Plots(elem_id="data-lengths")
    settings: dict[str, Any] = {"datatype": "str", "type": "array", "interactive": False, "buttons": []}
    golds = gr.Dataframe(
        headers=["problem", "gold", "why no verifier can read it"], label="Golds that cannot be graded",
        column_widths=["15%", "30%", "55%"], max_height=240, visible=False, elem_id="data-golds", **settings,
    )  # fmt: skip
    with gr.Row():
        prompts = [
            machine_text(
                label=f"The first problem, as the {role} sees it", lines=6, max_lines=14, elem_id=f"data-{role}"
            )
            for role in ("student", "teacher")
        ]
    table = gr.Dataframe(
        headers=["problem", "question", "answer", "student", "teacher", "over"],
        label="Problems, longest prompts first", column_widths=["12%", "48%", "14%", "9%", "9%", "8%"],
        max_height=320, elem_id="data-table", **settings,
    )  # fmt: skip
    return [text, plots, golds, *prompts, table]


def shown(facts: Facts) -> list[Any]:
    """The updates of the board."""
    golds = [[printable(cell)[:300] for cell in row] for row in facts.ungraded[:ROWS]]
    longest = sorted(facts.measured, key=lambda m: -m.longest)[:ROWS]
    rows = [
        [
            printable(m.problem.id),
            printable(m.problem.question)[:300],
            printable(m.problem.answer or "")[:100],
            str(m.student),
            "" if m.teacher is None else str(m.teacher),
            "over" if m.longest > facts.limit else "",
        ]
        for m in longest
    ]
    counted = f"Golds that cannot be graded: {len(facts.ungraded)}"
    return [
        printable(summary(facts), lines=True),
        drawn(panels(facts)),
        gr.Dataframe(value=golds, label=counted, visible=bool(golds)),
        *(printable(text, lines=True) for text in facts.prompts),
        rows,
    ]
