r"""Which column is the question, which the solution, which the answer; and a row made into a problem.

First match by name. Two columns that could both be meant and differ in some row are an error, never a guess.
GSM8K's `answer` is the solution before `####` and the answer after it; without an answer column the solution is
searched for `####`, then for its last `\boxed{}`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import InputError, UsageError, nearest
from workbench.problems.chats import (
    UnusableRow,
    has_reply,
    question_text,
    refuse_unpaired,
    reply_text,
    whole_text,
    why_refused,
)
from workbench.problems.manual import manual_pages
from workbench.problems.reading import Row, Rows
from workbench.records import Problem

CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "problem": ("problem", "question", "prompt", "messages", "input"),
    "solution": ("solution", "answer_cot", "privileged_context", "rationale"),
    "answer": ("answer", "final_answer"),
    "document": ("document",),
    "demonstration": ("demonstration",),
    "feedback": ("feedback",),
    "tests": ("tests",),
    "id": ("id",),
    "difficulty": ("difficulty",),
    "chat_template_kwargs": ("chat_template_kwargs",),
}
"""Field of a problem, as `--columns` calls it, and the column names it is looked for under."""

_FIELDS = {"question": "problem", "template_kwargs": "chat_template_kwargs"}
"""Names that `Problem` has for what `--columns` calls otherwise."""


_ANSWER_RULES = (("####", "after ####"), ("\\boxed", "last \\boxed"))
"""A mark that some row of the column must hold, and what is then read of every row."""


@dataclass(frozen=True)
class ColumnMap:
    """Where each field comes from."""

    columns: Mapping[str, str]
    """Field and column, dotted into nested values; `answer` may stand on the solution's column."""
    answer_rule: str = ""
    """What of its column is the answer: all of it, `after ####`, or the `last \\boxed`."""
    worked: bool = False
    """The answer's column holds the solution too, before `####`: GSM8K."""
    unused: tuple[str, ...] = ()
    n_chats: int = 0
    """Rows whose chat has turns beside the question, such as a system turn: those are not shown."""

    @property
    def _replies(self) -> bool:
        return self.columns.get("solution") == self.columns["problem"]

    def __str__(self) -> str:
        """What is printed: `problem=question solution=answer (before ####) answer=answer (after ####)`."""
        parts = {
            "answer": f" ({self.answer_rule})" if self.answer_rule else "",
            "solution": " (before ####)" if self.worked else " (the reply)" if self._replies else "",
        }
        shown = [
            f"{field}={self.columns[field]}{parts.get(field, '')}" for field in CANDIDATES if field in self.columns
        ]
        chats = f"; the other turns of {self.n_chats} chats are not shown" if self.n_chats else ""
        return " ".join(shown) + chats + (f"; not used: {', '.join(self.unused)}" if self.unused else "")


def parse_columns(text: str | Iterable[str]) -> dict[str, str]:
    """`problem=question solution=metadata.answer_cot` as a mapping; an empty column leaves a field out."""
    pairs = text.split() if isinstance(text, str) else [pair for item in text for pair in item.split()]
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--columns {pair} names no column. Write field=column, such as solution=answer_cot.")
    return dict(pair.split("=", 1) for pair in pairs)


def map_columns(read: Rows, given: Mapping[str, str] | None = None) -> ColumnMap:
    """The mapping for these rows; raises UsageError for a wrong name and InputError for an ambiguous one."""
    present = list({name: None for row in read.rows for name, value in row.items() if value is not None})
    chosen = _checked(read, dict(given or {}), present)
    for field in CANDIDATES:
        if field not in chosen:
            chosen[field] = _first_match(read, field, present)
    if "solution" not in (given or {}):
        chosen["solution"] = chosen["solution"] or _reply_column(read, chosen["problem"], present)
    columns = {field: column for field, column in chosen.items() if column}
    if "problem" not in columns:
        raise InputError(
            f"{read.label} has no question: it has {', '.join(present) or 'nothing'}, and none of "
            f"{', '.join(CANDIDATES['problem'])}. {why_refused(present)}Map one: --columns problem=COLUMN."
        )
    refuse_unpaired(columns, given or {}, present, read.label)
    left_out = {_FIELDS.get(name, name) for name, column in (given or {}).items() if not column}
    rule, worked = _place_answer(read, columns, left_out)
    used = {column.split(".")[0] for column in columns.values()} | set(columns.values())
    unused = tuple(name for name in present if name not in used)
    n_chats = sum(_more_turns(row, columns) for row in read.rows)
    return ColumnMap(columns, rule, worked, unused, n_chats)


def problem_from(row: Row, place: str, columns: ColumnMap, default_id: str) -> Problem:
    """The row as a problem. Raises UnusableRow where it has no question or is no text, InputError for nested data."""

    def text(field: str) -> str | None:
        column = columns.columns.get(field)
        if column is None:
            return None
        return _clean(_reader(field, column)(pick(row, column), f"{place}, column {column}"))

    question = text("problem")
    if question is None:
        raise UnusableRow("no question")
    answer, solution = text("answer"), text("solution")
    if answer is not None and columns.answer_rule:
        own_column = columns.columns["answer"] != columns.columns.get("solution")
        found = _final(answer, columns.answer_rule)
        if columns.worked:
            solution = _clean(answer.rpartition("####")[0].rstrip()) if found else answer
        answer = _clean(found) or (answer if own_column else None)
    tests = _tests(pick(row, columns.columns.get("tests")))
    return Problem(
        id=text("id") or default_id,
        question=question,
        answer=answer,
        solution=solution,
        document=text("document") or (manual_pages(solution) if tests else None),
        demonstration=text("demonstration"),
        feedback=text("feedback"),
        tests=tests,
        difficulty=text("difficulty"),
        template_kwargs=_kwargs(pick(row, columns.columns.get("chat_template_kwargs")), place),
    )


def pick(row: Row, column: str | None) -> Any:
    """A column's value, or the nested one a dotted name leads to; None where it leads nowhere."""
    if column is None:
        return None
    if column in row:
        return row[column]
    value: Any = row
    for step in column.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list | tuple) and step.isdigit():
            value = value[int(step)] if int(step) < len(value) else None
        else:
            return None
    return value


def _final(text: str, rule: str) -> str | None:
    """What the rule takes for the answer in a text; None where its mark is absent."""
    if rule == "after ####":
        return text.rpartition("####")[2].strip() if "####" in text else None
    return last_boxed(text)


def last_boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` holds, braces balanced; None where there is none."""
    at = text.rfind("\\boxed{")
    while at >= 0:
        start = at + len("\\boxed{")
        depth, here = 1, start
        while here < len(text) and depth:
            if text[here] == "\\":
                here += 1  # an escaped brace opens nothing
            else:
                depth += {"{": 1, "}": -1}.get(text[here], 0)
            here += 1
        if not depth:
            return text[start : here - 1].strip()
        at = text.rfind("\\boxed{", 0, at)
    return None


def _more_turns(row: Row, columns: Mapping[str, str]) -> bool:
    """Whether a chat has turns that are neither the question nor the reply that is the solution."""
    chat = pick(row, columns["problem"])
    replied = columns.get("solution") == columns["problem"] and has_reply(chat)
    return isinstance(chat, list | tuple) and len(chat) > 1 + replied


def _checked(read: Rows, given: dict[str, str], present: Sequence[str]) -> dict[str, str]:
    chosen = {}
    for name, column in given.items():
        field = _FIELDS.get(name, name)
        if field not in CANDIDATES:
            raise UsageError(f"--columns {name}={column}: a problem has no {name}. {nearest(name, CANDIDATES)}")
        if column and all(pick(row, column) is None for row in read.rows):
            raise UsageError(f"--columns {name}={column}: {read.label} has no {column}. {nearest(column, present)}")
        chosen[field] = column
    return chosen


def _reader(field: str, column: str) -> Callable[[Any, str], str | None]:
    if field == "problem":
        return question_text
    return whole_text if column == "privileged_context" else reply_text


def _reply_column(read: Rows, question: str, present: Sequence[str]) -> str:
    """Where a solution is looked for that no column is named after: the completion, or the reply that ends a chat."""
    if "completion" in present:
        return "completion"
    return question if question and any(has_reply(pick(row, question)) for row in read.rows) else ""


def _first_match(read: Rows, field: str, present: Sequence[str]) -> str:
    found = [name for name in CANDIDATES[field] if name in present]
    if len(found) > 1:
        _refuse_ambiguity(read, field, found)
    return found[0] if found else ""


def _place_answer(read: Rows, columns: dict[str, str], left_out: Collection[str]) -> tuple[str, bool]:
    """The rule that reads the answer, and whether its column holds the solution too; writes both to `columns`."""
    named = columns.get("answer", "")
    source = named or ("" if "answer" in left_out else columns.get("solution", ""))
    rule = next((rule for mark, rule in _ANSWER_RULES if source and _mentions(read, source, mark)), "")
    if rule:
        columns["answer"] = source
    worked = bool(named) and rule == "after ####" and "solution" not in left_out
    worked = worked and columns.setdefault("solution", named) == named
    return rule, worked


def _mentions(read: Rows, column: str, mark: str) -> bool:
    return any(mark in str(pick(row, column)) for row in read.rows)


def _refuse_ambiguity(read: Rows, field: str, found: Sequence[str]) -> None:
    first, *rest = found
    for row, place in zip(read.rows, read.places, strict=True):
        for other in rest:
            values = row.get(first), row.get(other)
            one, two = (_reader(field, c)(v, place) for c, v in zip((first, other), values, strict=True))
            if None not in values and one != two:
                raise InputError(
                    f"{read.label}: {field} could be {first} or {other}, which differ (first: {place}). "
                    f"Say which: --columns {field}={first}."
                )


def _clean(text: str | None) -> str | None:
    """None for a blank; raises UnusableRow for half of a surrogate pair, which no tokenizer can encode."""
    if text is None or not text.strip():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UnusableRow("text that is not Unicode (a lone surrogate)") from None
    return text


def _tests(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str) and value.lstrip().startswith("["):  # a table cell holds a list as text
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in items)


def _kwargs(value: Any, place: str) -> tuple[tuple[str, str | bool], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping) or not all(v is None or isinstance(v, str | bool) for v in value.values()):
        raise InputError(f"{place}: chat_template_kwargs must hold names with texts or true and false.")
    return tuple(sorted((str(name), v) for name, v in value.items() if v is not None))
