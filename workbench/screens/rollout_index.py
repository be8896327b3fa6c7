"""Finding rollouts in a run's rollouts.jsonl without holding it: what filters need, and where each line stands.

A run may leave a gigabyte of rollouts. One pass keeps a few numbers a line; text is read again where it is shown or
searched, line by line.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from workbench.screens.links import RolloutKey

SLICE = 1.0
"""Seconds that one look spends on reading on: a page must not wait for a gigabyte."""
BLOCK = 1 << 22
FOUND = 2000
"""Rollouts a search looks for at most."""
KEPT = 8
"""Runs whose index the server remembers."""
Sort = Literal["newest", "divergence", "longest", "shortest"]


@dataclass(frozen=True)
class Entry:
    """A rollout, without its text."""

    key: RolloutKey
    start: int
    """Where its line starts in the file, in bytes."""
    length: int
    status: str
    kept: bool
    truncated: bool
    tokens: int
    score: float | None
    """The reward; None where nobody could judge."""
    divergence: float
    """Mean of the first term over its tokens; NaN where nothing was compared."""


@dataclass(frozen=True)
class Filters:
    """What is wanted; None wants everything."""

    step: int | None = None
    correct: str | None = None
    """correct, wrong or unjudged."""
    kept: bool | None = None
    truncated: bool | None = None
    shortest: int | None = None
    longest: int | None = None
    score: float | None = None
    """A bar of the histogram of rewards."""
    words: str = ""
    """Text that the completion or its question holds, in any case."""
    sort: Sort = "newest"

    def admits(self, entry: Entry) -> bool:
        """Whether the entry is wanted, as far as numbers say."""
        judged = entry.score is not None
        outcome = "unjudged" if not judged else "correct" if entry.status == "correct" else "wrong"
        return (
            (self.step is None or entry.key.step == self.step)
            and self.correct in (None, outcome)
            and self.kept in (None, entry.kept)
            and self.truncated in (None, entry.truncated)
            and (self.shortest or 0) <= entry.tokens <= (self.longest or math.inf)
            and (self.score is None or (judged and bucket(entry) == self.score))
        )


def bucket(entry: Entry) -> float:
    """The bar of the reward histogram that an entry stands in: tenths."""
    return math.nan if entry.score is None else round(entry.score, 1)


class RolloutIndex:
    """The entries of one file, in its order. `grow` reads on; readers see what is there."""

    def __init__(self, file: Path) -> None:
        """`file` is a rollouts.jsonl; it need not exist yet."""
        self.file = file
        self.entries: tuple[Entry, ...] = ()
        self._found: list[Entry] = []
        self.offset = 0
        """Bytes read."""
        self.size = 0
        """Bytes there are."""
        self.behind = False
        """Whether there is more to read at once."""
        self._lock = threading.Lock()
        self._wanted: dict[tuple[Filters, int, int], list[Entry]] = {}

    def grow(self, seconds: float = SLICE) -> None:
        """Read on for some time. A file that was cut back, as a resumed run does, is read anew."""
        with self._lock:
            try:
                with open(self.file, "rb") as stream:
                    self.size = os.fstat(stream.fileno()).st_size
                    if self.size < self.offset:
                        self.offset, self._found = 0, []
                    self._read(stream, time.monotonic() + seconds)
            except OSError:
                self.offset = self.size = 0
                self._found = []
            if len(self._found) != len(self.entries):
                self.entries = tuple(self._found)

    def _read(self, stream: Any, until: float) -> None:
        stream.seek(self.offset)
        self.behind = True
        while time.monotonic() < until:
            lines = stream.readlines(BLOCK)
            for line in lines:
                if not line.endswith(b"\n"):
                    lines = []
                    break  # torn: its end is still to be written
                if entry := _entry(line, self.offset):
                    self._found.append(entry)
                self.offset += len(line)
            if not lines:
                self.behind = False
                return

    def row(self, entry: Entry) -> dict[str, Any]:
        """The whole record; empty where the file has changed meanwhile."""
        try:
            with open(self.file, "rb") as stream:
                stream.seek(entry.start)
                found = json.loads(stream.read(entry.length))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and RolloutKey.of_row(found) == entry.key else {}

    def find(self, key: RolloutKey) -> Entry | None:
        """The rollout of that key; the last of several."""
        return next((entry for entry in reversed(self.entries) if entry.key == key), None)

    def wanted(self, filters: Filters) -> list[Entry]:
        """What the filters admit, sorted; remembered, for a page asks every two seconds."""
        key = (filters, len(self.entries), self.offset)
        if key not in self._wanted:
            self._wanted = {key: self._select(filters), **dict(list(self._wanted.items())[:3])}
        return self._wanted[key]

    def _select(self, filters: Filters) -> list[Entry]:
        found = [entry for entry in self.entries if filters.admits(entry)]
        if filters.words:
            found = list(self._searched(found, filters.words))
        return _sorted(found, filters.sort)

    def _searched(self, entries: Sequence[Entry], words: str) -> Iterator[Entry]:
        wanted, left = words.casefold(), FOUND
        try:
            with open(self.file, "rb") as stream:
                for entry in entries:
                    stream.seek(entry.start)
                    record = json.loads(stream.read(entry.length))
                    text = f"{record.get('text', '')}\n{record.get('question', '')}"
                    if wanted in text.casefold():
                        yield entry
                        left -= 1
                    if not left:
                        return
        except (OSError, ValueError):
            return

    def histogram(self, filters: Filters) -> list[tuple[float, int]]:
        """(reward, count) of the judged rollouts that the other filters admit."""
        counts: dict[float, int] = {}
        others = replace(filters, score=None)
        for entry in self.entries:
            if entry.score is not None and others.admits(entry):
                counts[bucket(entry)] = counts.get(bucket(entry), 0) + 1
        return sorted(counts.items())

    def neighbours(self, key: RolloutKey) -> dict[str, RolloutKey]:
        """Where one can go from a rollout: `previous` and `next` of its group, `earlier` and `later` by step."""
        group = [e.key for e in self.entries if (e.key.step, e.key.problem) == (key.step, key.problem)]
        same = [e.key for e in self.entries if e.key.problem == key.problem]
        found: dict[str, RolloutKey] = {}
        if key in group:
            at = group.index(key)
            found |= {"previous": group[at - 1]} if at else {}
            found |= {"next": group[at + 1]} if at + 1 < len(group) else {}
        before, after = ([k for k in same if k.step < key.step], [k for k in same if k.step > key.step])
        found |= {"earlier": _likest(before, max(k.step for k in before), key)} if before else {}
        found |= {"later": _likest(after, min(k.step for k in after), key)} if after else {}
        return found


def _likest(keys: Sequence[RolloutKey], step: int, key: RolloutKey) -> RolloutKey:
    """Of a step's rollouts of a problem the one with the same author and index, else the first."""
    there = [k for k in keys if k.step == step]
    return next((k for k in there if (k.author, k.index) == (key.author, key.index)), there[0])


def _sorted(entries: list[Entry], sort: Sort) -> list[Entry]:
    if sort == "divergence":
        return sorted(entries, key=lambda e: -math.inf if math.isnan(e.divergence) else e.divergence, reverse=True)
    if sort in ("longest", "shortest"):
        return sorted(entries, key=lambda e: e.tokens, reverse=sort == "longest")
    return entries[::-1]


def _entry(line: bytes, start: int) -> Entry | None:
    try:
        row = json.loads(line)
        found = _described(row, start, len(line))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None  # a broken line is nobody's rollout
    return found


def _described(row: dict[str, Any], start: int, length: int) -> Entry:
    status, score = str(row.get("status", "")), row.get("score")
    values = [v for v in row.get("divergence") or () if isinstance(v, (int, float))]
    judged = status not in ("unjudged", "error") and isinstance(score, (int, float)) and math.isfinite(score)
    return Entry(
        key=RolloutKey.of_row(row),
        start=start,
        length=length,
        status=status,
        kept=row.get("kept") is True,
        truncated=row.get("stop") == "length",
        tokens=len(row.get("token_ids") or ()),
        score=float(score) if judged else None,  # type: ignore[arg-type]
        divergence=math.fsum(values) / len(values) if values else math.nan,
    )


_known: OrderedDict[Path, RolloutIndex] = OrderedDict()
_guard = threading.Lock()


def index(run: Path, seconds: float = SLICE) -> RolloutIndex:
    """The index of a run, grown for a while; the `KEPT` asked for last are remembered."""
    file = run / "rollouts.jsonl"
    with _guard:
        found = _known.pop(file, None) or RolloutIndex(file)
        _known[file] = found
        while len(_known) > KEPT:
            _known.popitem(last=False)
    found.grow(seconds)
    return found
