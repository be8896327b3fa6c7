"""The screen Compare: one rollout under two recipes, checkpoints or contexts, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from workbench.inspector.page.value import token_value
from workbench.screens import asking, comparing, notify
from workbench.screens.asking import Ask
from workbench.screens.comparing import Beside
from workbench.screens.live import WORK, announced, found, halted, session, still_waiting
from workbench.screens.polling import LIVELY, TOLD
from workbench.screens.session import STORE
from workbench.screens.sheet import Sheet, said, shown
from workbench.screens.stage import STATE_SECONDS, Stage
from workbench.screens.token_view import TokenView

EMPTY = (
    "Nothing is compared yet. Choose two recipes, models or contexts, then Compare: the left side writes a rollout, "
    "both sides say what they think of it. As it stands, the right teacher reads another problem's solution: the "
    "control that tells knowledge from style."
)
WRITE, TAKE = "write", "take"


@dataclass(frozen=True)
class Side:
    """One side's fields."""

    model: gr.Dropdown
    recipe: gr.Dropdown
    student: gr.Dropdown
    teacher: gr.Dropdown
    other_model: gr.Textbox
    tokens: TokenView

    @property
    def fields(self) -> list[Any]:
        """In the order of `ask_of`."""
        return [self.model, self.recipe, self.student, self.teacher, self.other_model]


def side(name: str, stage: Stage, recipe: str) -> Side:
    """Lay one side out."""
    ask, contexts = Ask(model=stage.models[0]), asking.context_choices()
    offered = [(m, m) for m in stage.models if m != "smollm2"]
    with gr.Row():
        model = gr.Dropdown(
            [*offered, *asking.model_choices(stage.output)],
            value=stage.models[0],
            label=f"Model, {name}",
            allow_custom_value=True,
            elem_id=f"compare-{name}-model",
        )
        chosen = gr.Dropdown(
            asking.recipe_choices(ask), value=recipe, label=f"Recipe, {name}", elem_id=f"compare-{name}-recipe"
        )
    with gr.Accordion("Contexts: who sees what", open=False, elem_id=f"compare-{name}-contexts"):
        student = gr.Dropdown(contexts, value="", label="Student sees", elem_id=f"compare-{name}-student")
        teacher = gr.Dropdown(contexts, value="", label="Teacher sees", elem_id=f"compare-{name}-teacher")
        other = gr.Textbox(
            label="Whose weights teach",
            placeholder="the model itself, or as --teacher",
            elem_id=f"compare-{name}-other",
        )
    tokens = TokenView(find=found, group="compare", elem_id=f"compare-{name}-tokens")
    return Side(model, chosen, student, teacher, other, tokens)


def build(stage: Stage) -> None:
    """Lay the screen out, inside its tab."""
    with gr.Row(elem_id="compare-row"):
        source = gr.Radio(
            [("written now", WRITE), ("the one on Live", TAKE)],
            value=WRITE,
            label="Rollout",
            elem_id="compare-source",
        )
        problem = gr.Dropdown(
            asking.problem_choices(Ask(model=stage.models[0]))[:-1], label="Problem", elem_id="compare-problem"
        )
        tokens = gr.Number(64, label="Tokens at most", precision=0, elem_id="compare-max-tokens", min_width=110)
        seed = gr.Number(0, label="Seed", precision=0, elem_id="compare-seed", min_width=80)
        go = gr.Button("Compare", variant="primary", elem_id="compare-go", min_width=100)
        stop = gr.Button("Stop", interactive=False, elem_id="compare-stop", min_width=80)
    status = Sheet([said(EMPTY, "empty")], elem_id="compare-status")
    with gr.Row(elem_id="compare-sides"):
        with gr.Column(min_width=320):
            left = side("left", stage, "opsd")
        with gr.Column(min_width=320):
            right = side("right", stage, "opsd_other_problem")
    totals = Sheet(elem_id="compare-totals")
    held = gr.State((), time_to_live=STATE_SECONDS, delete_callback=STORE.drop)
    clock = gr.Timer(1.0, active=False)
    fields = [source, problem, tokens, seed, *left.fields, *right.fields]
    outputs = [held, status, left.tokens, right.tokens, totals, clock, go, stop]
    ready = go.click(announce, fields, [status, clock, go, stop], **TOLD)
    work = ready.success(compare, [held, *fields], outputs, **WORK)
    stop.click(halted, None, clock, cancels=[work], **LIVELY).then(halt, None, [status, go, stop], **TOLD)
    clock.tick(still_waiting, None, status, **LIVELY)
    for picked in (left.model.input, left.recipe.input):
        picked(problems, fields, problem, **TOLD)


def asks_of(*values: Any) -> tuple[Ask, Ask]:
    """Both sides. Raises UsageError."""
    _, problem, tokens, seed, *sides = values
    names = ("model", "recipe", "student", "teacher", "other_model")
    left, right = (
        dict[str, Any](zip(names, (str(v or "") for v in part), strict=True)) for part in (sides[:5], sides[5:])
    )
    # One set of problems for both: the left recipe's.
    source = asking.source_of(Ask(**left))
    common: dict[str, Any] = {
        "problem": str(problem or ""),
        "tokens": int(tokens or 0),
        "seed": int(seed or 0),
        "problems": source,
    }
    return Ask(**left, **common), Ask(**right, **common)


def problems(*values: Any) -> Any:
    """The problems of the left recipe."""
    with notify.told():
        left, _ = asks_of(*values)
        choices = asking.problem_choices(left)[:-1]
    there = [name for _, name in choices]
    return gr.Dropdown(choices, value=left.problem if left.problem in there else there[0])


def announce(request: gr.Request, *values: Any) -> list[Any]:
    """Take a place in the line."""
    with notify.told():
        asks_of(*values)
        if values[0] == TAKE and STORE.latest(session(request)) is None:
            raise notify.error(
                "there is no rollout on Live yet. Compare has nothing to take. Roll one out there first."
            )
    status, timer = announced(request)
    return [status, timer, *buttons(True)]


def halt() -> list[Any]:
    """What is said after a Stop."""
    return [shown([said("Stopped. What was written stays.")]), *buttons(False)]


def buttons(now: bool) -> list[Any]:
    """Compare and Stop."""
    return [gr.Button(interactive=not now), gr.Button(interactive=now)]


def compare(request: gr.Request, held: tuple[str, ...], *values: Any) -> Iterator[list[Any]]:
    """Both sides, as they come."""
    left, right = asks_of(*values)
    given = STORE.latest(session(request)) if values[0] == TAKE else None
    frames = comparing.compare(left, right, session(request), given)
    try:
        for frame in frames:
            held = tuple(dict.fromkeys([*held, *(name for name in (frame.left, frame.right) if name)]))[-8:]
            yield [held, *outputs(frame)]
    finally:
        frames.close()  # type: ignore[attr-defined]


def outputs(frame: Beside) -> list[Any]:
    """Status, both views, totals, clock, buttons."""
    views = [
        gr.skip()
        if name is None or off is None or (seen := found("", name)) is None
        else token_value(seen, off, about=False)
        for name, off in ((frame.left, frame.left_off), (frame.right, frame.right_off))
    ]
    status = gr.skip() if frame.status is None else shown(frame.status)
    totals = gr.skip() if frame.totals is None else shown(frame.totals)
    last = [gr.skip()] * 2 if frame.running else buttons(False)
    return [status, *views, totals, gr.Timer(active=False), *last]
