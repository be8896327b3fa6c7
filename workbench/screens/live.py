"""The screen Live: a rollout while it is written, token by token, as both roles see it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.context import Context

from workbench.inspector.page.value import token_value
from workbench.inspector.seen import Seen
from workbench.screens import asking, notify, rolling, saving, trees
from workbench.screens.asking import OWN, Ask
from workbench.screens.rolling import Frame, Seat, Wish
from workbench.screens.session import MODEL, STORE
from workbench.screens.sheet import Sheet, said, shown
from workbench.screens.shell import QUIET
from workbench.screens.stage import STATE_SECONDS, Stage
from workbench.screens.token_view import TokenView

WORK: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "api_visibility": "private",
    "show_progress": "hidden",
}
"""Model work: one at a time, whoever asks; the process's own lock holds where gradio's limit does not."""
EMPTY = (
    "Nothing is written yet. Press Roll out: the student writes, and both roles say how likely each token was. "
    "Then n goes to the first token where they part."
)
FOCUS = "() => { document.querySelector('#live-tokens [role=listbox]')?.focus(); }"
"""After Roll out the keys belong to the tokens."""


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
    texts = {name: str(value or "") for name, value in zip(names, values, strict=False)}
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


class Screen:
    """The components that frames change."""

    def __init__(self) -> None:
        """Lay them out: the token view, and what stands below it."""
        self.seat = gr.State(Seat(), time_to_live=STATE_SECONDS, delete_callback=lambda seat: STORE.drop(seat.ids))
        self.status = Sheet([said(EMPTY, "empty")], elem_id="live-status")
        self.tokens = TokenView(find=found, branch=True, group="live", elem_id="live-tokens")
        with gr.Row(elem_id="live-onward"):
            self.author = gr.Radio(
                [("the student", "student"), ("the teacher", "teacher")],
                value="student",
                label="Who goes on after Continue or b",
                elem_id="live-author",
            )
            self.again = gr.Button(
                "Score again with these fields", size="sm", elem_id="live-again", scale=0, min_width=210
            )
        self.list = Sheet(elem_id="live-rollouts")
        with gr.Tabs(elem_id="live-below"):
            with gr.Tab("Student sees", id="student", elem_id="live-tab-student"):
                self.student = Sheet(elem_id="live-student-sees")
            with gr.Tab("Teacher sees", id="teacher", elem_id="live-tab-teacher"):
                self.teacher = Sheet(elem_id="live-teacher-sees")
            with gr.Tab("Verdict", id="verdict", elem_id="live-tab-verdict"):
                self.verdict = Sheet(elem_id="live-verdict")
            with gr.Tab("Export", id="export", elem_id="live-tab-export"):
                self.exports = saving.buttons("live")
        self.clock = gr.Timer(1.0, active=False)

    @property
    def views(self) -> list[Any]:
        """What shows a rollout, in the order of `settled`."""
        return [self.status, self.tokens, self.list, self.student, self.teacher, self.verdict]


def build(stage: Stage) -> None:
    """Lay the screen out, inside its tab."""
    with gr.Row(elem_id="live-row"):
        with gr.Column(scale=0, min_width=304, elem_id="live-fields"):
            fields = Fields(stage)
        with gr.Column(scale=1, min_width=320, elem_id="live-main"):
            screen = Screen()
    _connect_fields(fields)
    _connect_work(fields, screen)


def _connect_fields(fields: Fields) -> None:
    """What depends on what was chosen."""
    choosing = [fields.recipe, fields.problem, fields.tokens, fields.temperature, fields.top_p]
    for field in (fields.model.change, fields.recipe.input, fields.problems.submit, fields.other_model.submit):
        field(chosen, fields.all, choosing, **QUIET)
    for box in (fields.question, fields.solution, fields.answer):
        box.input(lambda: OWN, None, fields.problem, **QUIET)


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


# -- work ------------------------------------------------------------------------------------------------------------


def announce(request: gr.Request, *values: Any) -> list[Any]:
    """Take a place in the line and say which; the work itself begins when gradio's queue lets it."""
    with notify.told():
        ask_of(*values)
    status, timer = announced(request)
    return [status, timer, *running(True)]


def announced(request: gr.Request) -> tuple[Any, Any]:
    """Join the line; what the status says, and whether it has to be looked at again."""
    waiting = MODEL.waiting(MODEL.join(session(request)))
    return shown([said(waiting or "Starting.", "busy")]), gr.Timer(active=bool(waiting))


def still_waiting(request: gr.Request) -> Any:
    """Which place in the line it is by now."""
    ticket = MODEL.ticket(session(request))
    waiting = MODEL.waiting(ticket) if ticket is not None else ""
    return shown([said(waiting, "busy")]) if waiting else gr.skip()


def halt(request: gr.Request, seat: Seat) -> list[Any]:
    """Stop this page's work, and show what was written."""
    return [*settled(seat), halted(request), *running(False)]


def halted(request: gr.Request) -> Any:
    """Stop whatever the page asked for; nobody needs to look at its place any more."""
    MODEL.forget(session(request))
    return gr.Timer(active=False)


def gone(request: gr.Request) -> None:
    """A page was closed: nobody waits for its work any more."""
    MODEL.forget(session(request))


def session(request: gr.Request | None) -> str:
    """Who asks: one open page."""
    return str(request.session_hash) if request is not None else ""


def running(now: bool) -> list[Any]:
    """Roll out, Stop, Step, Score again."""
    return [gr.Button(interactive=on) for on in (not now, now, not now, not now)]


def found(run: str, rollout: str) -> Seen | None:
    """What the token view looks up: stored rollouts alone."""
    kept = STORE.get(key(run, rollout))
    return None if kept is None else kept.seen


def key(run: str, rollout: str) -> str:
    """The store's id of a rollout that a view names."""
    return f"{run}/{rollout}" if run else rollout


def settled(seat: Seat, select: int | None = None) -> list[Any]:
    """Everything there is to see of the rollout shown: status, tokens, list, prompts, verdict."""
    kept = STORE.get(seat.current)
    rows = [(name, one) for name in seat.ids if (one := STORE.get(name)) is not None]
    if kept is None:
        nothing = shown([said(EMPTY, "empty")])
        return [nothing, "", shown(trees.rollouts(rows, "")), "[]", "[]", "[]"]
    seen = kept.seen
    return [
        shown([said(rolling.summary(kept))]),
        token_value(seen, about=False, at=select),
        shown(trees.rollouts(rows, seat.current)),
        shown(trees.prompt(seen, "student")),
        shown(trees.prompt(seen, "teacher")),
        shown(trees.verdict(seen)),
    ]


def outputs(frame: Frame, seat: Seat) -> list[Any]:
    """A frame as the values of the seat, `Screen.views`, the clock and the buttons."""
    if not frame.running:
        end = settled(seat, frame.select) if frame.off is not None else [gr.skip()] * 6
        status = end[0] if frame.status is None else shown(frame.status)
        return [seat, status, *end[1:], gr.Timer(active=False), *running(False)]
    seen = None if frame.off is None else found("", seat.current)
    tokens = gr.skip() if seen is None else token_value(seen, frame.off or 0, about=False, at=frame.select)
    status = gr.skip() if frame.status is None else shown(frame.status)
    return [seat, status, tokens, *[gr.skip()] * 4, gr.Timer(active=False), *[gr.skip()] * 4]


def played(frames: Iterator[Frame], seat: Seat) -> Iterator[list[Any]]:
    """Frames as outputs; closing it closes them, so that a stopped page lets go of the model at once."""
    try:
        for frame in frames:
            seat = frame.seat or seat
            yield outputs(frame, seat)
    except Exception as error:  # a bug: the page must not wait for ever, the terminal gets the traceback
        traceback.print_exc()
        bug = f"This is a bug in the workbench ({type(error).__name__}: {error}). The terminal has the details."
        yield outputs(Frame(status=[said(bug, "error")], running=False), seat)
    finally:
        frames.close()  # type: ignore[attr-defined]


def roll(request: gr.Request, seat: Seat, *values: Any) -> Iterator[list[Any]]:
    """The button Roll out."""
    yield from played(rolling.roll(ask_of(*values), seat, session(request)), seat)


def step(request: gr.Request, seat: Seat, *values: Any) -> Iterator[list[Any]]:
    """The button Step one token."""
    yield from played(rolling.step(ask_of(*values), seat, session(request)), seat)


def score_again(request: gr.Request, seat: Seat, *values: Any) -> Iterator[list[Any]]:
    """The button Score again."""
    yield from played(rolling.score_again(ask_of(*values), seat, session(request)), seat)


def branch(request: gr.Request, seat: Seat, wish: Wish | None, *values: Any) -> Iterator[list[Any]]:
    """Continue from here, after `wished` has understood what the page asks for."""
    if wish is not None:
        yield from played(rolling.branch(ask_of(*values), seat, session(request), wish), seat)


def wished(event: gr.EventData, author: str) -> Wish:
    """What a page asks for when somebody continues from a token; anything it made up is refused."""
    asked = event._data if isinstance(event._data, dict) else {}
    run, rollout, at, token = (asked.get(name) for name in ("run", "rollout", "t", "token"))
    text = asked.get("text")
    if not (isinstance(rollout, str) and type(at) is int and type(token) is int and author in ("student", "teacher")):
        raise notify.error("this is no place to continue from. The page is out of date. Load it again.")
    return Wish(key(str(run or ""), rollout), at, token, str(text or ""), author)  # type: ignore[arg-type]


def picked(event: gr.EventData, seat: Seat) -> list[Any]:
    """Another rollout of the page is shown."""
    act = str((event._data or {}).get("act", "")) if isinstance(event._data, dict) else ""
    name = act.removeprefix("show:")
    chosen_seat = Seat(name, seat.ids) if name in seat.ids and STORE.get(name) is not None else seat
    return [chosen_seat, *settled(chosen_seat)]


def _connect_work(fields: Fields, screen: Screen) -> None:
    """Roll out, Stop, Step, Continue, Score again."""
    buttons = [fields.go, fields.stop, fields.step, screen.again]
    told, everything = [screen.status, screen.clock, *buttons], [screen.seat, *screen.views, screen.clock, *buttons]
    wish = gr.State(None, time_to_live=STATE_SECONDS)
    events = []
    for button, work in ((fields.go, roll), (fields.step, step), (screen.again, score_again)):
        ready = button.click(announce, fields.all, told, **QUIET)
        events.append(ready.success(work, [screen.seat, *fields.all], everything, **WORK))
    fields.go.click(None, js=FOCUS, api_visibility="private")
    asked = screen.tokens.branch(wished, screen.author, wish, **QUIET).success(announce, fields.all, told, **QUIET)
    events.append(asked.success(branch, [screen.seat, wish, *fields.all], everything, **WORK))
    fields.stop.click(halt, screen.seat, [*screen.views, screen.clock, *buttons], cancels=events, **QUIET)
    screen.clock.tick(still_waiting, None, screen.status, **QUIET)
    screen.list.act(picked, screen.seat, [screen.seat, *screen.views], **QUIET)
    saving.connect(screen.exports, "live", screen.seat, lambda seat: found("", seat.current), QUIET)
    root = Context.root_block
    assert isinstance(root, gr.Blocks), "a screen is laid out inside the app"
    root.unload(gone)
