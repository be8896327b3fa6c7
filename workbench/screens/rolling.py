"""Model work of the screens Live and Compare, as generators of frames: roll out, step, branch, score again.

Plain functions of ids and fields; gradio drives them. At most eight frames a second, since a browser draws every one
of them. Whatever ends a generator (the end, Stop, a closed tab), it leaves through `finally`: the model is free again,
and what was written so far stays in the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from workbench.errors import WorkbenchError
from workbench.inspector.page.value import divergence_name
from workbench.inspector.seen import Seen
from workbench.screens import asking, scoring, trees
from workbench.screens.asking import Ask
from workbench.screens.scoring import Scene, Wish
from workbench.screens.session import MODEL, STORE, WALKS, Kept, Ticket
from workbench.screens.sheet import Node, node, said, visible
from workbench.text import printable

INTERVAL = 0.125
"""Seconds between two frames of a rollout that is being written."""
LEAST = 16
"""Tokens that a branch may write at least."""


@dataclass(frozen=True)
class Seat:
    """What a page remembers: ids alone."""

    current: str = ""
    ids: tuple[str, ...] = ()
    """Every rollout this page made, in order."""

    def having(self, name: str) -> Seat:
        """With one more, which is shown."""
        return Seat(name, self.ids if name in self.ids else (*self.ids, name))


@dataclass(frozen=True)
class Frame:
    """What a screen shows next; None: as it was."""

    status: list[Node] | None = None
    seat: Seat | None = None
    off: int | None = None
    """Show the current rollout from this token on."""
    select: int | None = None
    """A position to select."""
    running: bool = True


@dataclass(frozen=True)
class Job:
    """A piece of model work on one rollout."""

    ask: Ask
    kept: Kept
    """Where it goes; its record is what there is before the work."""
    total: int
    """Tokens it may write."""
    pieces: Callable[[Scene], Iterator[Seen]]
    name: str | None = None
    """The id it goes on with; None: a new one."""
    select: int | None = None


def roll(ask: Ask, seat: Seat, owner: str) -> Iterator[Frame]:
    """A rollout from the first token on, as both roles see it."""
    yield from _work(Job(ask, _new(ask), ask.tokens, scoring.first), seat, owner)


def step(ask: Ask, seat: Seat, owner: str) -> Iterator[Frame]:
    """One token more of the rollout that is being stepped through, or the first one of a new rollout.

    The tokens are those of a whole rollout: the same generator, asked for one piece at a time. Between two clicks it
    waits, and the model is free.
    """
    kept = STORE.get(seat.current)
    walk = WALKS.get(seat.current) if kept is not None and kept.asked == ask else None
    going_on = kept is not None and walk is not None
    name = seat.current if going_on else STORE.name()

    def pieces(scene: Scene) -> Iterator[Seen]:
        # Its own ticket: a Stop ends the step, not the walk.
        going = walk or scoring.first(replace(scene, ticket=Ticket(owner)))
        piece = next(going, None)
        if piece is None:
            return
        yield piece
        if piece.token_ids[-1] in scene.engine.stop_ids or piece.start + 1 >= ask.tokens:
            WALKS.drop(name)
            yield from going
        else:
            WALKS.put(name, going)

    job = (
        Job(ask, kept, 1, pieces, name, len(kept.seen))
        if kept and going_on
        else Job(ask, _new(ask), 1, pieces, name, 0)
    )
    yield from _work(job, seat, owner)


def branch(ask: Ask, seat: Seat, owner: str, wish: Wish) -> Iterator[Frame]:
    """Keep the text before a position, write another token there, and let a role go on from it."""
    kept = STORE.get(wish.rollout)
    if kept is None or not 0 <= wish.at < len(kept.seen):
        yield _gone(owner)
        return
    again = kept.asked if isinstance(kept.asked, Ask) else ask
    again = replace(again, tokens=max(again.tokens, ask.tokens, wish.at + LEAST))
    label = f"{visible(wish.text)} written at token {wish.at}, then the {wish.author} goes on"
    new = Kept(scoring.nothing(), label, wish.rollout, wish.at, again.model, again)
    job = Job(again, new, again.tokens, lambda scene: scoring.other(scene, kept.seen, wish), None, wish.at)
    yield from _work(job, seat, owner)


def score_again(ask: Ask, seat: Seat, owner: str) -> Iterator[Frame]:
    """The rollout shown, scored now by the model and the recipe of the fields."""
    kept = STORE.get(seat.current)
    if kept is None:
        yield _gone(owner)
        return
    label = f"scored again: {ask.recipe}, {ask.model}"
    new = Kept(scoring.nothing(), label, seat.current, None, ask.model, ask)
    yield from _work(Job(ask, new, len(kept.seen), lambda scene: scoring.again(scene, kept.seen)), seat, owner)


def _gone(owner: str) -> Frame:
    MODEL.forget(owner)  # nobody behind this page waits for nothing
    text = "This rollout is no longer held here: the app keeps the newest ones. Roll out again."
    return Frame(status=[said(text, "error")], running=False)


def _new(ask: Ask) -> Kept:
    return Kept(scoring.nothing(), f"{ask.recipe}, seed {ask.seed}", None, None, ask.model, ask)


def _work(job: Job, seat: Seat, owner: str) -> Iterator[Frame]:
    """Wait for the model, load what is needed, and show pieces as they come."""
    ticket = MODEL.ticket(owner)
    if ticket is None:  # taken back while gradio's queue held the event
        yield Frame(status=[said("Stopped before it began.")], running=False)
        return
    ticket.total = job.total
    try:
        with MODEL.entered(ticket) as mine:
            if not mine:
                yield Frame(status=[said("Stopped before it began.")], running=False)
                return
            if text := asking.loading(job.ask):
                yield Frame(status=[said(text, "busy")])
            scene = scoring.scene(job.ask, ticket)
            yield from _shown(job, seat, scene)
    except WorkbenchError as error:
        yield Frame(status=[said(error, "error")], running=False)


def _shown(job: Job, seat: Seat, scene: Scene) -> Iterator[Frame]:
    """Frames of a job that has the model. Whatever ends it, the store has what was written."""
    kept, name, sent = job.kept, job.name or STORE.name(), len(job.kept.seen)
    begun = time.monotonic() - kept.seconds
    for piece in paced(job.pieces(scene)):
        whole = piece.verdict is not None
        stop = piece.stop if whole else "cancelled"  # what it is until it has ended
        seen = replace(scoring.joined(kept.seen, piece), rollout=name, run="", stop=stop)
        kept = replace(kept, seen=seen, seconds=time.monotonic() - begun)
        STORE.put(kept, name)
        STORE.show(scene.ticket.owner, name)
        seat, scene.ticket.done = seat.having(name), len(seen)
        if not whole:
            select = job.select if not sent else None
            yield Frame([said(progress(kept, job.total), "busy")], seat, min(sent, piece.start), select)
            sent = len(seen)
    if len(kept.seen):
        yield Frame(None, seat, 0, job.select, running=False)
    else:
        yield Frame(status=[said("Stopped before the first token.")], running=False)


def paced(pieces: Iterator[Seen]) -> Iterator[Seen]:
    """Pieces put together so that they come at most every INTERVAL; the first comes at once."""
    waiting, told = None, 0.0
    for piece in pieces:
        waiting = piece if waiting is None or piece.start <= waiting.start else scoring.joined(waiting, piece)
        if time.monotonic() - told >= INTERVAL:
            yield waiting
            waiting, told = None, time.monotonic()
    if waiting is not None:
        yield waiting


def progress(kept: Kept, total: int) -> str:
    """What is said while a rollout is being written."""
    n = len(kept.seen)
    pace = f", {n / kept.seconds:.1f} tokens/s" if kept.seconds else ""
    return f"{n} tokens{pace}. At most {kept.seen.start + total} tokens; Stop keeps what is written."


def summary(kept: Kept) -> list[Node]:
    """What is said of a rollout: where its numbers come from, how it ended, what both roles make of it."""
    seen = kept.seen
    source = {
        "live": ("live", "numbers made while it was written"),
        "recorded": ("recorded", "numbers as the training step had them"),
        "recomputed": ("recomputed", "numbers made now, by a model that may have moved since"),
    }[seen.source]
    counted = seen.weight > 0
    total = float(np.nansum(seen.divergence[counted])) if counted.any() else 0.0
    mean = total / max(1, int(counted.sum()))
    verdict = "" if seen.verdict is None else f"{trees.STATUS_WORDS.get(seen.verdict.status, seen.verdict.status)}, "
    text = (
        f"{verdict}{len(seen)} tokens, {trees.STOP_WORDS.get(seen.stop, seen.stop)}; {divergence_name(seen)} "
        f"{mean:.3f} nat/token over {int(counted.sum())} tokens in the loss; {source[1]}"
    )
    return [node("p", node("span", source[0], kind="tag"), printable(text), kind="said")]
