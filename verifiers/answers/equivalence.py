"""Whether a written answer states what the gold states: plain forms first, the worker for the rest, all cached."""

from __future__ import annotations

import atexit
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from verifiers.answers.compare import same, squeezed
from verifiers.answers.extract import LONGEST
from verifiers.answers.link import DEADLINE_S, Link
from verifiers.answers.normalise import PLACEHOLDERS, read
from verifiers.answers.notation.characters import tidy
from verifiers.answers.statements.agreement import Question, Undecided
from verifiers.answers.statements.forms import Form, Literal
from verifiers.answers.values.polynomial import bounded
from verifiers.verdict import Status

CACHE_SIZE = 16_384

_LINK = Link()


@dataclass(frozen=True)
class Judgement:
    """The outcome of one comparison, in a verdict's words."""

    status: Status
    reason: str
    level: str = "plain"


class _Cache:
    """A bounded map that forgets what was used longest ago."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: OrderedDict[tuple[str, str], Judgement] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: tuple[str, str]) -> Judgement | None:
        with self.lock:
            found = self.entries.get(key)
            if found is not None:
                self.entries.move_to_end(key)
            return found

    def put(self, key: tuple[str, str], value: Judgement) -> None:
        with self.lock:
            self.entries[key] = value
            self.entries.move_to_end(key)
            while len(self.entries) > self.size:
                self.entries.popitem(last=False)


_CACHE = _Cache(CACHE_SIZE)


def judge(gold: str, answer: str) -> Judgement:
    """Compare an answer with a gold.

    Args:
        gold: the gold as its data set writes it, without a mark.
        answer: the answer as extracted.

    Returns:
        `correct`, `wrong`, `unparsed` (one of them cannot be read), `timeout` or `error`, with the reason. Symmetric
        in its arguments up to the reason. Never raises on any text; at most `DEADLINE_S` are spent in the worker.
    """
    # Different spellings of one answer share an entry; beyond the cap on length nothing is read.
    key = (gold, tidy(_unwrapped(answer)) if len(answer) <= LONGEST else answer.strip())
    found = _CACHE.get(key)
    if found is None:
        found = _compare(gold, answer)
        if found.status not in ("timeout", "error"):  # these say something about the moment, not about the pair
            _CACHE.put(key, found)
    return found


def _compare(gold: str, answer: str) -> Judgement:
    gold, answer = _unwrapped(gold), _unwrapped(answer)
    for text in (answer, gold):
        if len(" ".join(text.split())) > LONGEST:
            return Judgement("unparsed", f"longer than {LONGEST} characters")
        if is_placeholder(text):
            return Judgement("unparsed", f"{text.strip()!r} is a placeholder, not an answer")
    if squeezed(tidy(gold)) == squeezed(tidy(answer)):
        return Judgement("correct", "the same text")
    oracle = _Oracle()
    stated = _read(gold, _read_gold)
    with bounded():
        claimed = _read(answer, read)
    try:
        with bounded():
            agree = same(stated, claimed, oracle)
        if agree:
            return Judgement("correct", f"states the gold: {_kinds(stated, claimed)}", oracle.level)
        return Judgement("wrong", f"states something else: {_kinds(stated, claimed)}", oracle.level)
    except Undecided as reason:
        return Judgement(reason.status, str(reason), oracle.level)


def _unwrapped(text: str) -> str:
    """Without braces around the whole of it, however many: they set nothing apart and would count as length."""
    text = text.strip()
    opened, closed = len(text) - len(text.lstrip("{")), len(text) - len(text.rstrip("}"))
    inside = text[opened : len(text) - closed]
    return inside if opened == closed and not set("{}\\") & set(inside) else text


@lru_cache(maxsize=CACHE_SIZE)
def _read_gold(text: str) -> Form:
    """A gold is read once, however many different answers come between."""
    return read(text)


def _read(text: str, by: Callable[[str], Form] = read) -> Form:
    try:
        return by(text if len(text) <= LONGEST else " ".join(text.split()))
    except RecursionError:  # a caller deep in its own stack; the caps on depth leave room for any other
        return Literal(text, "nested too deeply")


def _kinds(gold: Form, answer: Form) -> str:
    one, other = type(gold).__name__.lower(), type(answer).__name__.lower()
    return one if one == other else f"{other} for {one}"


class _Oracle:
    """The worker, with one deadline for all questions of a verdict."""

    def __init__(self) -> None:
        self.level = "plain"
        self.deadline = float("inf")

    def __call__(self, question: Question) -> bool:
        if self.level == "plain":
            self.level, self.deadline = "worker", time.monotonic() + DEADLINE_S
        return _LINK.ask(question, self.deadline)


def is_placeholder(text: str) -> bool:
    """Whether a text only holds the place of an answer."""
    return tidy(text[: 4 * LONGEST]).strip("{} .,;:").casefold() in PLACEHOLDERS


def unreadable(text: str) -> str | None:
    """Why a text states nothing this room can compare but with itself; None when it does."""
    form = _read(text)
    return form.why if isinstance(form, Literal) else None


def close() -> None:
    """End the worker process, if one runs. The next question that needs it starts another."""
    _LINK.close()


atexit.register(close)
