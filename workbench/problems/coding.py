"""Problems whose answer is a program: the packaged set, and public code sets in our columns."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

from verifiers.programs import TestsError, built_in
from verifiers.programs.adapters import adapted, layout_of
from workbench.errors import UsageError, nearest
from workbench.problems.manual import manual_pages
from workbench.problems.reading import Row, Rows
from workbench.records import Problem

LEVELS = ("easy", "medium", "hard")


def code_problems(options: str, limit: int | None) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """The packaged problems, train and held out: every third of a level is held out, whatever is asked for.

    Args:
        options: `difficulty=easy`, several joined by `+`; empty for all.
        limit: how many to train on, from the easiest.

    Raises:
        UsageError: an option that does not exist.
    """
    wanted: tuple[str, ...] = LEVELS
    for pair in filter(None, options.split(",")):
        name, mark, value = pair.partition("=")
        if name.strip() != "difficulty" or not mark:
            raise UsageError(f"code has no option '{pair}'. {nearest(name, ('difficulty',))}")
        wanted = tuple(level.strip() for level in value.split("+"))
        if unknown := [level for level in wanted if level not in LEVELS]:
            raise UsageError(f"code has no difficulty '{unknown[0]}'. {nearest(unknown[0], LEVELS)}")
    train: list[Problem] = []
    held_out: list[Problem] = []
    for level in LEVELS:
        rows = [row for row in built_in() if row["difficulty"] == level and level in wanted]
        for at, row in enumerate(rows):
            (held_out if at % 3 == 2 else train).append(_problem(row))
    return tuple(train[:limit]), tuple(held_out)


def _problem(row: Row) -> Problem:
    return Problem(
        id=f"code-{row['id']}",
        question=row["question"],
        solution=row["solution"],
        document=manual_pages(row["solution"]),
        tests=tuple(json.dumps(test, ensure_ascii=False) for test in row["tests"]),
        difficulty=row["difficulty"],
    )


def in_our_columns(read: Rows) -> tuple[Rows, Counter[str]]:
    """Rows of a public code set with our columns, and what was left out; other rows as they are."""
    layout = layout_of(list({name: None for row in read.rows for name in row}))
    if layout is None:
        return read, Counter()
    rows: list[Row] = []
    places: list[str] = []
    dropped: Counter[str] = Counter()
    for row, place in zip(read.rows, read.places, strict=True):
        try:
            rows.append(adapted(row, layout))
        except TestsError:
            dropped[f"no tests that can be read ({layout} layout)"] += 1
            continue
        places.append(place)
    return replace(read, rows=tuple(rows), places=tuple(places)), dropped
