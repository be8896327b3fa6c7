"""What a run did to its student, in one word and in one line: moved, did not move, got worse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from workbench.text import printable
from workbench.train.intervals import FEWEST, Estimate

Word = Literal["moved", "did not move", "got worse"]


@dataclass(frozen=True)
class Outcome:
    """What a run did to its student, in one word and in one line."""

    word: Word
    line: str


def verdict_line(
    accuracy: Estimate | None = None,
    tokens: Estimate | None = None,
    divergence: Estimate | None = None,
    *,
    divergence_name: str = "held-out divergence",
) -> Outcome:
    """Judge paired differences after - before. Only what is clear of noise counts as movement.

    A clear loss of accuracy is worse whatever else moved; so is a clear move away from the teacher that bought no
    accuracy. Fewer tokens are neither good nor bad by themselves.
    """
    right, away = _direction(accuracy), _direction(divergence)
    length = _direction(tokens)
    clauses = [
        {1: "answers more problems right", -1: "answers fewer problems right"}.get(right, ""),
        {1: "moved away from the teacher", -1: "moved towards the teacher"}.get(away, ""),
        {1: "writes longer completions", -1: "writes shorter completions"}.get(length, ""),
    ]
    said = " and ".join(clause for clause in clauses if clause)
    worse = right < 0 or (away > 0 and right <= 0)
    word: Word = "got worse" if worse else "moved" if said else "did not move"
    details = [
        _detail("accuracy", accuracy, 2),
        _detail(printable(divergence_name), divergence, 3),
        _detail("tokens", tokens, 0),
    ]
    line = f"{word}: the student {said or 'shows no change that can be told from noise'}"
    return Outcome(word, "; ".join([line, *(detail for detail in details if detail)]))


def _direction(change: Estimate | None) -> int:
    return 0 if change is None or not change.clear_of_zero else 1 if change.value > 0 else -1


def _detail(name: str, change: Estimate | None, digits: int) -> str:
    if change is None or math.isnan(change.value):
        return ""
    if change.clear_of_zero:
        sure = "clear of zero"
    else:
        sure = "within noise" if change.n >= FEWEST else f"too few problems to tell (needs {FEWEST})"
    return f"{name} {change.text(digits, signed=True)}, {sure} ({change.n} problems)"
