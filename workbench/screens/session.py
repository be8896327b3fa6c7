"""What the app holds between two clicks: loaded models, the one place at the model, and rollouts by id.

A browser's state holds ids alone. Tensors, records and locks stay here, bounded: the least recently used goes first.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from workbench.inspector.seen import Seen

Key = TypeVar("Key")
Made = TypeVar("Made")

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
POLL = 0.05
"""Seconds between two looks at the stop flag while one waits for the model."""
PAGES = 256
"""Open pages whose rollout is remembered."""


@dataclass(eq=False)
class Ticket:
    """One piece of model work that somebody asked for."""

    owner: str
    """The browser session that asked."""
    total: int = 0
    """Tokens it may write; 0: not known."""
    done: int = 0
    started: float | None = None
    """Monotonic seconds; None while it waits."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Ask the work to end; it looks at every token."""
        self._stop.set()

    def stopped(self) -> bool:
        """What the engine polls."""
        return self._stop.is_set()

    def remaining(self, now: float) -> float | None:
        """Seconds the work will still take at its pace so far; None: nothing is known."""
        if self.started is None or not self.done or not self.total:
            return None
        return (now - self.started) / self.done * max(0, self.total - self.done)


class Turnstile:
    """Model work one piece at a time, whatever thread it runs in.

    Gradio's own limit is not enough: cancelling frees its slot while the thread of a plain function goes on, and the
    next job would run on top. Tickets say who waits; the lock itself goes to whoever enters first, since Gradio's
    queue has an order of its own and waiting for it here would be waiting for each other.
    """

    def __init__(self) -> None:
        """Nobody waits."""
        self._line: list[Ticket] = []
        self._guard, self._model = threading.Lock(), threading.Lock()
        self._last: float | None = None

    def join(self, owner: str, total: int = 0) -> Ticket:
        """A ticket at the end of the line; what the same owner still had there is stopped and leaves."""
        self.forget(owner)
        ticket = Ticket(owner, total)
        with self._guard:
            self._line.append(ticket)
        return ticket

    def ticket(self, owner: str) -> Ticket | None:
        """The owner's newest ticket; None where it asked for nothing, or took it back."""
        with self._guard:
            return next((ticket for ticket in reversed(self._line) if ticket.owner == owner), None)

    def forget(self, owner: str) -> bool:
        """Stop the owner's work and take it out of the line; says whether there was any."""
        with self._guard:
            mine = [ticket for ticket in self._line if ticket.owner == owner]
            # One that holds the model leaves in `entered`, when it has really ended.
            self._line = [t for t in self._line if t.owner != owner or t.started is not None]
        for ticket in mine:
            ticket.stop()
        return bool(mine)

    @contextmanager
    def entered(self, ticket: Ticket) -> Iterator[bool]:
        """Hold the model; the value says whether it was reached: False where the work was stopped while waiting."""
        held = False
        try:
            while not held and not ticket.stopped():
                held = self._model.acquire(timeout=POLL)
            if held:
                ticket.started = time.monotonic()
            yield held
        finally:
            if held:
                if ticket.started is not None and not ticket.stopped():
                    self._last = time.monotonic() - ticket.started
                self._model.release()
            with self._guard:
                self._line = [other for other in self._line if other is not ticket]

    @property
    def busy(self) -> bool:
        """Whether somebody holds the model."""
        return self._model.locked()

    def waiting(self, ticket: Ticket) -> str:
        """`One rollout at a time: yours is second, about 20 s.`; empty where it holds the model or is next to."""
        with self._guard:
            before = self._line[: self._line.index(ticket)] if ticket in self._line else []
        ahead = [other for other in before if not other.stopped() or other.started is not None]
        if ticket.started is not None or not ahead:
            return ""
        place = _ORDINALS[len(ahead)] if len(ahead) < len(_ORDINALS) else f"number {len(ahead) + 1}"
        seconds = self._expected(ahead)
        return f"One rollout at a time: yours is {place}" + ("." if seconds is None else f", about {seconds:.0f} s.")

    def _expected(self, ahead: Iterable[Ticket]) -> float | None:
        """Seconds until all of them are through."""
        total, now = 0.0, time.monotonic()
        for other in ahead:
            left = other.remaining(now) if other.started is not None else self._last
            if left is None:
                return None
            total += max(1.0, left)
        return total


class Shelf(Generic[Key, Made]):
    """The `size` things used last, made when they are first asked for. Making happens under the lock of the caller."""

    def __init__(self, size: int) -> None:
        """Nothing on it."""
        self._size = size
        self._things: OrderedDict[Key, Made] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        """Whether it lies there already."""
        return key in self._things

    def get(self, key: Key, make: Callable[[], Made]) -> Made:
        """The thing; whatever does not fit any more goes before the new one is made, so that both are never held."""
        if key in self._things:
            self._things.move_to_end(key)
            return self._things[key]
        while len(self._things) >= self._size:
            self._things.popitem(last=False)
        made = make()
        self._things[key] = made
        return made

    def clear(self) -> None:
        """Forget all."""
        self._things.clear()


@dataclass(frozen=True)
class Kept:
    """A rollout in the store, and where it came from."""

    seen: Seen
    label: str = ""
    """What a list of rollouts calls it."""
    parent: str | None = None
    """The id of the rollout it branches from."""
    at: int | None = None
    """The position whose token was replaced."""
    model: str = ""
    asked: object = None
    """What was asked for, so that it can be continued."""
    seconds: float = 0.0
    """What writing it took."""


class Store:
    """Rollouts by id, bounded by the tokens they hold together; ids cannot be guessed."""

    def __init__(self, tokens: int = 262_144) -> None:
        """Empty."""
        self._tokens = tokens
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._latest: OrderedDict[str, str] = OrderedDict()
        self._guard = threading.Lock()

    @staticmethod
    def name() -> str:
        """A new id."""
        return f"live-{secrets.token_urlsafe(9)}"

    def put(self, kept: Kept, name: str) -> None:
        """Keep it, perhaps in the place of another; the oldest go while there are too many tokens."""
        with self._guard:
            self._kept[name] = kept
            self._kept.move_to_end(name)
            while len(self._kept) > 1 and sum(len(k.seen) + 64 for k in self._kept.values()) > self._tokens:
                self._kept.popitem(last=False)

    def get(self, name: object) -> Kept | None:
        """What lies there; None where it never did, or no longer does."""
        with self._guard:
            kept = self._kept.get(name) if isinstance(name, str) else None
            if kept is not None:
                self._kept.move_to_end(str(name))
            return kept

    def show(self, owner: str, name: str) -> None:
        """Remember which rollout a page shows."""
        with self._guard:
            self._latest[owner] = name
            self._latest.move_to_end(owner)
            while len(self._latest) > PAGES:
                self._latest.popitem(last=False)

    def latest(self, owner: str) -> Kept | None:
        """What a page shows."""
        return self.get(self._latest.get(owner))

    def drop(self, names: Iterable[str]) -> None:
        """Forget some."""
        with self._guard:
            for name in names:
                self._kept.pop(name, None)

    def __len__(self) -> int:
        """How many."""
        return len(self._kept)


class Walks:
    """Rollouts that are written step by step: their generators, which hold both roles' caches, few of them."""

    def __init__(self, size: int = 3) -> None:
        """None."""
        self._size = size
        self._going: OrderedDict[str, Iterator[Seen]] = OrderedDict()

    def get(self, name: str) -> Iterator[Seen] | None:
        """The generator of a rollout; None: it has ended, or was let go of."""
        return self._going.get(name)

    def put(self, name: str, going: Iterator[Seen]) -> None:
        """Keep it; the one used longest ago goes."""
        self._going[name] = going
        self._going.move_to_end(name)
        while len(self._going) > self._size:
            self._going.popitem(last=False)

    def drop(self, name: str) -> None:
        """Let go of one."""
        self._going.pop(name, None)

    def clear(self) -> None:
        """Let go of all: they hold the engines that wrote them."""
        self._going.clear()


MODEL = Turnstile()
"""The process's one place at the model: every screen that generates or scores goes through it."""
STORE = Store()
WALKS = Walks()
