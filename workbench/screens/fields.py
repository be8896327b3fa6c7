"""What is filled in on the left of the screen Live, and what it means."""

from __future__ import annotations

from typing import Any

import gradio as gr

from workbench.screens import asking, notify
from workbench.screens.asking import OWN, Ask
from workbench.screens.polling import TOLD
from workbench.screens.stage import Stage


class Fields:
    """What is filled in on the left."""

    def __init__(self, stage: Stage) -> None:
        """Lay them out."""
        first = stage.models[0]
        ask = Ask(model=first)
        offered = [(m, m) for m in stage.models if m != "smollm2"]
        self.model = gr.Dropdown(
            [*offered, *asking.model_choices(stage.output)],
            value=first,
            label="Model",
            allow_custom_value=True,
            elem_id="live-model",
        )
        self.recipe = gr.Dropdown(
            asking.recipe_choices(ask), value="opsd", label="Recipe", elem_id="live-recipe", filterable=True
        )
        self.problem = gr.Dropdown(asking.problem_choices(ask), label="Problem", elem_id="live-problem")
        with gr.Row(elem_id="live-buttons"):
            self.go = gr.Button("Roll out", variant="primary", elem_id="live-go", min_width=90)
            self.stop = gr.Button("Stop", interactive=False, elem_id="live-stop", min_width=70)
            self.step = gr.Button("Step one token", elem_id="live-step", min_width=120)
        with gr.Accordion("Contexts: who sees what", open=False, elem_id="live-contexts"):
            choices = asking.context_choices()
            self.student = gr.Dropdown(choices, value="", label="Student sees", elem_id="live-student-context")
            self.teacher = gr.Dropdown(choices, value="", label="Teacher sees", elem_id="live-teacher-context")
            self.other_model = gr.Textbox(
                label="Whose weights teach", placeholder="the model itself, or as --teacher", elem_id="live-other-model"
            )
        with gr.Accordion("Problems, or your own", open=False, elem_id="live-own"):
            self.problems = gr.Textbox(
                label="Problem set", placeholder="what the recipe was set to, or as --problems", elem_id="live-problems"
            )
            self.question = gr.Textbox(label="Problem", lines=2, elem_id="live-own-problem")
            self.solution = gr.Textbox(label="Solution", lines=2, elem_id="live-own-solution")
            self.answer = gr.Textbox(label="Answer", elem_id="live-own-answer")
        with gr.Accordion("Sampling and seed", open=False, elem_id="live-sampling"):
            tokens, temperature, top_p = defaults(ask)
            self.tokens = gr.Number(tokens, label="Tokens at most", precision=0, elem_id="live-max-tokens")
            self.temperature = gr.Number(temperature, label="Temperature", step=0.1, elem_id="live-temperature")
            self.top_p = gr.Number(top_p, label="Top-p", step=0.05, elem_id="live-top-p")
            self.seed = gr.Number(0, label="Seed", precision=0, elem_id="live-seed")

    @property
    def all(self) -> list[Any]:
        """In the order of `ask_of`."""
        return [
            self.model, self.recipe, self.problems, self.problem, self.question, self.solution, self.answer,
            self.student, self.teacher, self.other_model, self.tokens, self.temperature, self.top_p, self.seed,
        ]  # fmt: skip


def ask_of(*values: Any) -> Ask:
    """The fields as an `Ask`; an emptied field is one that was not given. Raises UsageError."""
    names = (
        "model", "recipe", "problems", "problem", "question", "solution", "answer", "student", "teacher", "other_model",
    )  # fmt: skip
    texts: dict[str, Any] = {name: str(value or "") for name, value in zip(names, values, strict=False)}
    tokens, temperature, top_p, seed = values[len(names) :]
    return Ask(
        **texts,
        tokens=int(tokens or 0),
        temperature=None if temperature is None else float(temperature),
        top_p=None if top_p is None else float(top_p),
        seed=int(seed or 0),
    )


def defaults(ask: Ask) -> tuple[int, float, float]:
    """What a recipe samples with, in the length of a screen: 64 to 512 tokens."""
    sampling = asking.settled(ask).sampling
    return min(512, max(64, sampling.max_new_tokens)), sampling.temperature, sampling.top_p


def fields_of(ask: Ask) -> list[Any]:
    """An ask as the values of `Fields.all`."""
    return [
        ask.model, gr.Dropdown(asking.recipe_choices(ask), value=ask.recipe), ask.problems,
        gr.Dropdown(asking.problem_choices(ask), value=ask.problem), ask.question, ask.solution, ask.answer,
        ask.student, ask.teacher, ask.other_model, ask.tokens, ask.temperature, ask.top_p, ask.seed,
    ]  # fmt: skip


def connect(fields: Fields) -> None:
    """What depends on what was chosen."""
    choosing = [fields.recipe, fields.problem, fields.tokens, fields.temperature, fields.top_p]
    for field in (fields.model.input, fields.recipe.input, fields.problems.submit, fields.other_model.submit):
        field(chosen, fields.all, choosing, **TOLD)
    for box in (fields.question, fields.solution, fields.answer):
        box.input(lambda: OWN, None, fields.problem, **TOLD)


def chosen(*values: Any) -> list[Any]:
    """Which recipes and problems there are now, and how the recipe samples."""
    with notify.told():
        ask = ask_of(*values)
        recipes, problems = asking.recipe_choices(ask), asking.problem_choices(ask)
        there = [name for _, name in problems]
        tokens, temperature, top_p = defaults(ask)
        if why := asking.why_not(ask.recipe, ask):
            notify.warn(f"recipe {ask.recipe} cannot be shown here: {why}")
    picked = ask.problem if ask.problem in there else there[0]
    return [gr.Dropdown(recipes, value=ask.recipe), gr.Dropdown(problems, value=picked), tokens, temperature, top_p]
