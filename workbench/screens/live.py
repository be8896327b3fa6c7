"""The screen Live: a rollout while it is written, token by token, as both roles see it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.context import Context

from workbench.errors import UsageError
from workbench.inspector.page.value import token_value
from workbench.inspector.seen import Seen
from workbench.screens import notify, reading, recorded, rolling, saving, trees
from workbench.screens.asking import Ask
from workbench.screens.fields import Fields, ask_of, connect, fields_of
from workbench.screens.links import Link
from workbench.screens.polling import CHOSEN, LIVELY, PLACED, TOLD
from workbench.screens.recorded import key
from workbench.screens.rolling import Frame, Seat
from workbench.screens.scoring import Wish
from workbench.screens.session import MODEL, STORE
from workbench.screens.sheet import Sheet, said, shown
from workbench.screens.stage import STATE_SECONDS, Opening, Stage
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


class Screen:
    """The components that frames change."""

    def __init__(self, stage: Stage) -> None:
        """Lay them out: the token view, and what stands below it."""
        self.seat = gr.State(Seat(), time_to_live=STATE_SECONDS)
        with gr.Column(visible=False, elem_id="live-recorded") as self.ways:
            reading.bar(stage, "live")
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
            screen = Screen(stage)
    connect(fields)
    _connect_work(fields, screen)
    _connect_records(fields, screen, stage)


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


def halt(seat: Seat) -> list[Any]:
    """What was written, after a Stop."""
    return [*settled(seat), *running(False)]


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


def settled(seat: Seat, select: int | None = None) -> list[Any]:
    """Everything there is to see of the rollout shown: status, tokens, list, prompts, verdict."""
    kept = STORE.get(seat.current)
    rows = [(name, one) for name in seat.ids if (one := STORE.get(name)) is not None]
    if kept is None:
        nothing = shown([said(EMPTY, "empty")])
        return [nothing, "", shown(trees.rollouts(rows, "")), "[]", "[]", "[]"]
    seen = kept.seen
    return [
        shown(rolling.summary(kept)),
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
        ready = button.click(announce, fields.all, told, **TOLD)
        events.append(ready.success(work, [screen.seat, *fields.all], everything, **WORK))
    fields.go.click(None, js=FOCUS, api_visibility="private")
    asked = screen.tokens.branch(wished, screen.author, wish, **TOLD).success(announce, fields.all, told, **TOLD)
    events.append(asked.success(branch, [screen.seat, wish, *fields.all], everything, **WORK))
    # The model is free at once; the page is told through the queue, behind whatever frame is still on its way.
    stopping = fields.stop.click(halted, None, screen.clock, cancels=events, **LIVELY)
    stopping.then(halt, screen.seat, [*screen.views, *buttons], **TOLD)
    screen.clock.tick(still_waiting, None, screen.status, **LIVELY)
    screen.list.act(picked, screen.seat, [screen.seat, *screen.views], **CHOSEN)
    saving.connect(screen.exports, screen.seat, lambda seat: found("", seat.current), TOLD)
    root = Context.root_block
    assert isinstance(root, gr.Blocks), "a screen is laid out inside the app"
    root.unload(gone)


# -- recorded rollouts, and where the page is ------------------------------------------------------------------------


def _connect_records(fields: Fields, screen: Screen, stage: Stage) -> None:
    """A wish to see a recorded rollout; and the place follows what is selected."""

    def opened(wish: Opening, seat: Seat) -> list[Any]:
        if not wish.link.rollout:
            return [gr.skip()] * (2 + len(screen.views) + len(fields.all))
        with notify.told():
            seat = seat.having(recorded.opened(stage, wish.link))
        ask = STORE.get(seat.current)
        values = (
            fields_of(ask.asked) if ask is not None and isinstance(ask.asked, Ask) else [gr.skip()] * len(fields.all)
        )
        return [seat, *settled(seat, wish.link.tok), gr.Column(visible=wish.link.recorded), *values]

    outputs = [screen.seat, *screen.views, screen.ways, *fields.all]
    stage.opened.change(opened, [stage.opened, screen.seat], outputs, **TOLD)
    screen.tokens.token(moved, stage.place, stage.place, **CHOSEN)
    screen.seat.change(placed, [screen.seat, stage.place], stage.place, **PLACED)
    fields.go.click(lambda: gr.Column(visible=False), None, screen.ways, **LIVELY)


def moved(event: gr.EventData, place: Link) -> Link:
    """The page's place after a token was selected. A rollout written here leaves the other screens on their run."""
    asked = event._data if isinstance(event._data, dict) else {}
    run, rollout, at = asked.get("run"), asked.get("rollout"), asked.get("t")
    try:
        where = Link(str(run or place.run), str(rollout or ""), at if type(at) is int and at >= 0 else None, "live")
    except UsageError:
        return place
    return where if run or where.live else place


def placed(seat: Seat, place: Link) -> Link:
    """The page's place after another rollout is shown; the screen that is open, and its token, stay."""
    kept = STORE.get(seat.current)
    if kept is None or (kept.seen.run in ("", place.run) and kept.seen.rollout == place.rollout):
        return place
    return replace(place, run=kept.seen.run or place.run, rollout=kept.seen.rollout, tok=None)
