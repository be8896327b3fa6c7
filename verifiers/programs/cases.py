r"""Tests of a program as data: what our `tests` column holds, read and refused at load.

One JSON object a test. All tests of a problem are of one kind:

| kind | keys |
|---|---|
| call | `call` (name, or `Class.method`), `args` (list), `expected`, `args_after` (the arguments after the call) |
| stdin | `stdin`, `stdout` |
| check | `check` (source that defines `check(candidate)`), `call`, optionally `prompt` (source that it may use) |

Every test may have `hidden` (true: never quoted to a model) and `seconds` (deadline of the run, 10 by default; the
longest counts). With `"literals": true` the values of `args`, `expected` and `args_after` are texts of Python
literals, for what JSON cannot say: tuples, sets, keys that are no texts. A call or check test may have `preamble`:
source that goes before the program, such as the imports of a prompt.

    >>> suite = parse_tests(['{"call": "add", "args": [1, 2], "expected": 3, "hidden": true}'])
    >>> suite.kind, suite.entry_point, suite.cases[0].expected
    ('call', 'add', 3)
"""

from __future__ import annotations

import ast
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["call", "stdin", "check"]

SECONDS = 10.0
"""Deadline of a run where no test names one."""

_KEYS: Mapping[Kind, tuple[frozenset[str], frozenset[str]]] = {
    "call": (frozenset({"call", "args"}), frozenset({"expected", "args_after", "literals", "preamble"})),
    "stdin": (frozenset({"stdin", "stdout"}), frozenset()),
    "check": (frozenset({"check", "call"}), frozenset({"prompt", "preamble"})),
}
"""Kind -> what it must have, and what it may have beside `hidden` and `seconds`."""


class TestsError(ValueError):
    """Tests that cannot be used; the text says which and why."""

    __test__ = False  # pytest collects by name


@dataclass(frozen=True)
class Call:
    """f(*arguments) == expected, and the arguments afterwards where they are asked for."""

    arguments: tuple[Any, ...]
    expected: Any
    returns: bool = True
    """Whether `expected` is compared: an in-place task may return whatever it likes."""
    after: tuple[Any, ...] | None = None
    hidden: bool = False
    index: int = 0
    """Its place in the column, from 0."""


@dataclass(frozen=True)
class Stdin:
    """A program reads `stdin` and writes `stdout`."""

    stdin: str
    stdout: str
    hidden: bool = False
    index: int = 0


@dataclass(frozen=True)
class Check:
    """Source that asserts: it defines `check(candidate)`, and may use what `prompt` defines."""

    check: str
    prompt: str = ""
    hidden: bool = False
    index: int = 0


@dataclass(frozen=True)
class Suite:
    """All tests of a problem, the visible ones first: then what fails first may be quoted if anything may."""

    kind: Kind
    entry_point: str
    cases: tuple[Call | Stdin | Check, ...]
    preamble: str = ""
    seconds: float = SECONDS

    @property
    def groups(self) -> tuple[tuple[Call | Stdin | Check, ...], ...]:
        """Visible and hidden cases: never in one run, so that no visible failure can carry a hidden input."""
        split = (tuple(c for c in self.cases if not c.hidden), tuple(c for c in self.cases if c.hidden))
        return tuple(group for group in split if group)


def parse_tests(tests: Sequence[str]) -> Suite:
    """The `tests` column as a suite. Raises TestsError naming the first test that cannot be used."""
    if not tests:
        raise TestsError("There are no tests: a program that nothing tests cannot pass.")
    rows = [_row(text, f"Test {index + 1}") for index, text in enumerate(tests)]
    kinds = [_kind(row, f"Test {index + 1}") for index, row in enumerate(rows)]
    if len(set(kinds)) > 1:
        raise TestsError(f"Tests are of kinds {' and '.join(sorted(set(kinds)))}. A problem has one kind.")
    names = {str(row.get("call", "")) for row in rows}
    preambles = {str(row.get("preamble", "")) for row in rows}
    if len(names) > 1 or len(preambles) > 1:
        raise TestsError("Tests differ in `call` or `preamble`. A problem has one of each.")
    cases = [_case(kinds[0], row, index) for index, row in enumerate(rows)]
    if kinds[0] == "stdin" and not any(row["stdout"].strip() for row in rows):
        raise TestsError("No test expects any output: a program that does nothing would pass.")
    seconds = max(float(row.get("seconds", 0)) for row in rows) or SECONDS
    ordered = tuple(sorted(cases, key=_is_hidden))
    return Suite(kinds[0], names.pop(), ordered, preambles.pop(), seconds)


def check_tests(tests: Sequence[str]) -> str | None:
    """Why tests cannot be used, to be told when problems are loaded; None where they can."""
    try:
        parse_tests(tests)
    except TestsError as refusal:
        return str(refusal)
    return None


def _is_hidden(case: Call | Stdin | Check) -> bool:
    return case.hidden


def _row(text: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TestsError(f"{where} is not JSON ({str(error)[:60]}).") from error
    if not isinstance(row, dict):
        raise TestsError(f"{where} is not an object.")
    return row


def _kind(row: Mapping[str, Any], where: str) -> Kind:
    kind: Kind = "stdin" if "stdin" in row else "check" if "check" in row else "call"
    required, optional = _KEYS[kind]
    if lacking := sorted(required - row.keys()):
        raise TestsError(f"{where}: a {kind} test needs {', '.join(sorted(required))}; it lacks {', '.join(lacking)}.")
    if extra := sorted(row.keys() - required - optional - {"hidden", "seconds"}):
        raise TestsError(f"{where}: a {kind} test has no {', '.join(extra)}.")
    _check_types(row, where)
    return kind


def _check_types(row: Mapping[str, Any], where: str) -> None:
    for name in ("call", "stdin", "stdout", "check", "prompt", "preamble"):
        if name in row and not isinstance(row[name], str):
            raise TestsError(f"{where}: `{name}` must be a text.")
    for name in ("hidden", "literals"):
        if not isinstance(row.get(name, False), bool):
            raise TestsError(f"{where}: `{name}` must be true or false.")
    seconds = row.get("seconds", SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 600:
        raise TestsError(f"{where}: `seconds` must be a number above 0 and up to 600.")
    if "call" in row and not all(part.isidentifier() for part in row["call"].split(".", 1)):
        raise TestsError(f"{where}: `call` must be a name or Class.method.")


def _case(kind: Kind, row: Mapping[str, Any], index: int) -> Call | Stdin | Check:
    where, hidden = f"Test {index + 1}", bool(row.get("hidden", False))
    if kind == "stdin":
        return Stdin(row["stdin"], row["stdout"], hidden, index)
    if kind == "check":
        return Check(_checked_source(row["check"], where), row.get("prompt", ""), hidden, index)
    values = {name: _value(row, name, where) for name in ("args", "expected", "args_after") if name in row}
    if "expected" not in values and "args_after" not in values:
        raise TestsError(f"{where} compares nothing: it needs `expected` or `args_after`.")
    for name in ("args", "args_after"):
        if not isinstance(values.get(name, []), list | tuple):
            raise TestsError(f"{where}: `{name}` must be a list of arguments.")
    after = tuple(values["args_after"]) if "args_after" in values else None
    if after is not None and len(after) != len(values["args"]):
        raise TestsError(f"{where}: `args_after` must have as many values as `args`.")
    return Call(tuple(values["args"]), values.get("expected"), "expected" in values, after, hidden, index)


def _value(row: Mapping[str, Any], name: str, where: str) -> Any:
    value = row[name]
    if row.get("literals", False):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
            raise TestsError(f"{where}: `{name}` is no Python literal.") from error
    if name != "args" and _holds_nan(value):
        raise TestsError(f"{where}: `{name}` holds a not-a-number, which equals nothing.")
    return value


def _holds_nan(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_nan(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return any(_holds_nan(item) for item in value)
    return isinstance(value, float) and math.isnan(value)


def _checked_source(source: str, where: str) -> str:
    """Source that defines `check`, and in it asserts or calls something: an empty one would pass everything."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestsError(f"{where}: `check` is no Python source ({str(error)[:60]}).") from error
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
    if not found:
        raise TestsError(f"{where}: `check` defines no function check(candidate).")
    if not any(isinstance(node, ast.Name) and node.id == "candidate" for node in ast.walk(found[-1])):
        raise TestsError(f"{where}: check never uses its candidate: everything would pass.")
    if missing := _imported(tree) - sys.stdlib_module_names:
        raise TestsError(f"{where}: check imports {min(missing)}, and the jail holds the standard library alone.")
    return source


def _imported(tree: ast.AST) -> set[str]:
    """Top-level names of the modules a source imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found
