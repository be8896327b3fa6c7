"""A completion in a terminal: tinted where colours are wanted, and marked below every line where they are not seen.

Under a line of text stands a line of marks where there are any, so that nothing hangs on colour:

    `+` the teacher says more, `#` much more (half of the scale); `-` and `=` the same of the student;
    `/` not in the loss

What the text holds of controls, bidi marks and line ends is written as escapes, so the terminal obeys none of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len

from workbench.inspector.seen import Seen
from workbench.text import printable

SCALE = 3.0
"""Nat: the fixed scale of every view."""
_FAINT, _STRONG = 0.1, 0.5
"""Shares of the scale from which a token gets its mark."""
_TEACHER, _STUDENT = (230, 97, 1), (94, 60, 153)
_LONGEST = 200
"""Characters of one token that are shown."""
MARKS = "+ teacher says more   # much more   - student says more   = much more   / not in the loss"


@dataclass(frozen=True)
class Pen:
    """How a terminal is written to."""

    width: int = 80
    """Columns; at least 20 are used."""
    colour: bool = False
    encoding: str = "utf-8"
    """Characters it lacks become escapes."""

    def text(self, raw: str, *, lines: bool = False) -> str:
        """Hostile text as this terminal can show it."""
        shown = printable(raw, lines=lines)
        return shown.encode(self.encoding, "backslashreplace").decode(self.encoding, "replace")


def tinted(seen: Seen, pen: Pen, *, scale: float = SCALE) -> str:
    """The completion: lines of text, each with its line of marks.

    Args:
        seen: what both roles saw.
        pen: the terminal.
        scale: the difference of log-probs, nat, at which a tint is full.
    """
    lines: list[str] = []
    for cells in _lines(seen, pen, scale):
        lines.append("".join(_tint(text, level, pen) for text, level, _ in cells).rstrip())
        marks = "".join(mark * cell_len(text) for text, _, mark in cells).rstrip()
        lines += [marks] if marks else []
    return "\n".join(lines)


Cell = tuple[str, float, str]
"""Text without a line end, the signed share of the scale, the mark."""


def _lines(seen: Seen, pen: Pen, scale: float) -> Iterator[list[Cell]]:
    line: list[Cell] = []
    used, width = 0, max(20, pen.width)
    for t in range(len(seen)):
        level = _level(float(seen.difference[t]), scale)
        mark = _mark(level, bool(seen.weight[t] != 0))
        for piece, ends in _pieces(_written(seen, t), pen):
            for part in _cut(piece, width):
                if used + cell_len(part) > width:
                    yield line
                    line, used = [], 0
                line.append((part, level, mark))
                used += cell_len(part)
            if ends:
                yield line
                line, used = [], 0
    if line:
        yield line


def _written(seen: Seen, t: int) -> str:
    """What stands for a token: what it adds; else a special token's name; else a sign for a part of a character."""
    alone = seen.pieces.get(seen.token_ids[t], "")
    return seen.text[t][:_LONGEST] or (alone[:_LONGEST] if alone.strip("\ufffd") else "\u25b9")


def _pieces(text: str, pen: Pen) -> Iterator[tuple[str, bool]]:
    """A token's text line by line, the line end as a sign; whether a line ends after it."""
    sign = "\u21b5" if _has(pen.encoding, "\u21b5") else "\\n"
    *ended, last = text.replace("\u25b9", "\u25b9" if _has(pen.encoding, "\u25b9") else ">").split("\n")
    for piece in ended:
        yield pen.text(piece) + sign, True
    if last:
        yield pen.text(last), False


def _cut(text: str, width: int) -> Iterator[str]:
    """Pieces no wider than a line."""
    while cell_len(text) > width:
        end = width
        while cell_len(text[:end]) > width:
            end -= 1
        yield text[:end]
        text = text[end:]
    yield text


def _has(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _level(difference: float, scale: float) -> float:
    return 0.0 if math.isnan(difference) else max(-1.0, min(1.0, difference / scale))


def _mark(level: float, counted: bool) -> str:
    if not counted:
        return "/"
    if abs(level) < _FAINT:
        return " "
    strong = abs(level) >= _STRONG
    return ("#" if strong else "+") if level > 0 else ("=" if strong else "-")


def _tint(text: str, level: float, pen: Pen) -> str:
    """Black on a tint: the ground is ours, so the contrast does not hang on the terminal's theme."""
    if not pen.colour or abs(level) < _FAINT:
        return text
    goal = _TEACHER if level > 0 else _STUDENT
    share = 0.15 + 0.45 * abs(level)
    red, green, blue = (round(255 + (c - 255) * share) for c in goal)
    return f"\x1b[30;48;2;{red};{green};{blue}m{text}\x1b[0m"
