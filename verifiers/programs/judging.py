"""From a program and its tests to what can be said about it: the only place where values are compared.

Visible and hidden tests never share a run: what a program does on a visible one, its exception texts included, is
computed by a process that has seen no hidden input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

from verifiers.programs.behaviour import NO_VOTE, Group, behaviour
from verifiers.programs.box import Box, Raised, Ran
from verifiers.programs.cases import Call, Check, Kind, Stdin, Suite
from verifiers.programs.output import same_output
from verifiers.verdict import Status

Result = Literal["pass", "wrong", "error", "timeout", "died", "limit", "protocol", "infra_error"]
"""`wrong`: a value or output differs. `error`: an exception, or an exit status other than 0. `died`: the process
ended by itself. `limit`: memory, output or files ran out. `protocol`: what came back was no plain data.
`infra_error`: the jail failed, which says nothing about the program."""

STATUS: Mapping[Result, Status] = {
    "pass": "correct",
    "wrong": "wrong",
    "error": "wrong",
    "timeout": "timeout",
    "died": "wrong",
    "limit": "wrong",
    "protocol": "wrong",
    "infra_error": "error",  # score None: never a reward
}
"""Result -> status of the verdict."""


@dataclass(frozen=True)
class Failure:
    """The first test that failed. Of a hidden one nothing but its place is kept."""

    index: int
    """Place in the `tests` column, from 0."""
    hidden: bool
    asked: str = ""
    """The call, the input or the check, as text."""
    expected: str = ""
    got: str = ""
    raised: Raised | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a program."""

    result: Result
    level: str
    """The isolation it was judged under; empty where none was needed."""
    failure: Failure | None = None
    behaviour: str = NO_VOTE
    """Digest of what it did on the visible inputs, whatever is expected there; see `verifiers.programs.behaviour`."""

    @property
    def status(self) -> Status:
        """Of the verdict."""
        return STATUS[self.result]

    @property
    def reason(self) -> str:
        """One line for a person; of a hidden test it says only that one failed."""
        if self.failure is None:
            return self.result
        place = f"{self.result} in {'hidden ' if self.failure.hidden else ''}test {self.failure.index + 1}"
        raised = self.failure.raised
        return f"{place}: {raised.name}: {raised.message}" if raised and not self.failure.hidden else place


def judge_program(suite: Suite, program: str, box: Box) -> Outcome:
    """Run the tests, visible ones first, up to the first failure.

    Args:
        suite: from `parse_tests`; it is never empty.
        program: what the completion states.
        box: an open jail.

    Returns:
        The outcome; `pass` only if every test ran and was compared equal here.
    """
    source, lines_before = _with_preamble(suite, program)
    level, did = "", NO_VOTE
    for group in suite.groups:
        result, level, failure, runs = _RUN[suite.kind](suite, source, group, box)
        if not group[0].hidden:
            did = behaviour(suite, group, runs, partial(_run, suite, source, box), box)
        if result != "pass":
            return Outcome(result, level, _told(failure, lines_before), NO_VOTE if result == "infra_error" else did)
    return Outcome("pass", level, behaviour=did)


Found = tuple[Result, str, Failure, tuple[Ran, ...]]


def _run(suite: Suite, source: str, box: Box, group: Group) -> Ran:
    """All calls of the group in one process, or its first input."""
    if isinstance(group[0], Stdin):
        return box.script(source, group[0].stdin, suite.seconds)
    cases = cast("tuple[Call, ...]", group)
    source, name = _entry(suite, source)
    after = any(case.after is not None for case in cases)
    return box.call(source, name, tuple(case.arguments for case in cases), suite.seconds, after)


def _calls(suite: Suite, source: str, group: Group, box: Box) -> Found:
    cases = cast("tuple[Call, ...]", group)
    ran = _run(suite, source, box, group)
    for at, case in enumerate(cases):
        asked = f"{suite.entry_point}({', '.join(map(repr, case.arguments))})"
        failure = Failure(case.index, case.hidden, asked, _wanted(case))
        if at >= len(ran.values):  # the run ended before this call did
            return _unfinished(ran), ran.level, _with(failure, raised=ran.raised), (ran,)
        value = ran.values[at]
        if isinstance(value, Raised):
            return "error", ran.level, _with(failure, raised=value), (ran,)
        if case.returns and not box.equal(value.data, case.expected):
            return "wrong", ran.level, _with(failure, got=box.show(value.data)), (ran,)
        if case.after is not None and not box.equal(value.arguments, case.after):
            got = f"arguments afterwards {box.show(value.arguments)}"
            return "wrong", ran.level, _with(failure, got=got), (ran,)
    # All values are right, but a run that did not end well is no pass.
    last = Failure(cases[-1].index, cases[-1].hidden, raised=ran.raised)
    return ("pass" if ran.ended == "returned" else _unfinished(ran)), ran.level, last, (ran,)


def _scripts(suite: Suite, source: str, group: Group, box: Box) -> Found:
    runs: tuple[Ran, ...] = ()
    level, failure = "", Failure(0, False)
    for at, case in enumerate(cast("tuple[Stdin, ...]", group)):
        ran = _run(suite, source, box, group[at:])
        level, runs = ran.level, (*runs, ran)
        failure = Failure(case.index, case.hidden, case.stdin, case.stdout, ran.stdout, ran.raised)
        if ran.ended != "returned":
            return _unfinished(ran), level, failure, runs
        if ran.exit_status != 0:
            return "error", level, failure, runs
        if not same_output(ran.stdout, case.stdout):
            return "wrong", level, _with(failure, got=ran.stdout), runs
    return "pass", level, failure, runs


def _checks(suite: Suite, source: str, group: Group, box: Box) -> Found:
    level, failure = "", Failure(0, False)
    source, name = _entry(suite, source)
    for case in cast("tuple[Check, ...]", group):
        ran = box.check(source, name, case.prompt, case.check, suite.seconds)
        level, failure = ran.level, Failure(case.index, case.hidden, raised=ran.raised)
        if ran.ended not in ("returned", "raised"):
            return _unfinished(ran), level, failure, ()
        if ran.ended != "returned" or not ran.passed:
            raised = ran.raised
            if raised is None or raised.name != "AssertionError":
                return "error", level, failure, ()
            # An assertion's line is the check's own, and says what was asked.
            asked = Failure(case.index, case.hidden, _line(case.check, raised.line), raised=Raised(raised.name))
            return "wrong", level, asked, ()
    return "pass", level, failure, ()


_RUN: Mapping[Kind, Callable[[Suite, str, Group, Box], Found]] = {
    "call": _calls,
    "stdin": _scripts,
    "check": _checks,
}


def _unfinished(ran: Ran) -> Result:
    """What a run is called that ended before its tests did."""
    if ran.ended == "raised":
        return "error"
    # A jail that says all is well without a value for every call has not kept to its own protocol.
    return "protocol" if ran.ended == "returned" else ran.ended


def _entry(suite: Suite, source: str) -> tuple[str, str]:
    """The source with what calls a method after it, and the function to call: line numbers stay the program's."""
    owner, _, method = suite.entry_point.partition(".")
    if not method:
        return source, suite.entry_point
    body = f"    return {owner}().{method}(*arguments)"
    return f"{source}\n\n\ndef judged_entry_point(*arguments):\n{body}\n", "judged_entry_point"


def _with_preamble(suite: Suite, program: str) -> tuple[str, int]:
    """The source to run, and how many lines stand before the program's first."""
    program = program.removeprefix("\ufeff")
    # A future import must come first, and a program that has one brings its own imports.
    if not suite.preamble or "from __future__" in program:
        return program, 0
    before = suite.preamble.rstrip("\n") + "\n"
    return before + program, before.count("\n")


def _wanted(case: Call) -> str:
    wanted = [repr(case.expected)] if case.returns else []
    if case.after is not None:
        wanted.append(f"arguments afterwards {case.after!r}")
    return "; ".join(wanted)


def _line(source: str, number: int | None) -> str:
    lines = source.split("\n")
    return lines[number - 1].strip() if number is not None and 0 < number <= len(lines) else ""


def _with(failure: Failure, *, asked: str = "", got: str = "", raised: Raised | None = None) -> Failure:
    return Failure(
        failure.index, failure.hidden, asked or failure.asked, failure.expected, got, raised or failure.raised
    )


def _told(failure: Failure, lines_before: int) -> Failure:
    """Without everything that a hidden test could shine through, and with the program's own line numbers."""
    if failure.hidden:
        return Failure(failure.index, True)
    raised = failure.raised
    if raised is None or raised.line is None or not lines_before:
        return failure
    line = raised.line - lines_before
    return Failure(
        failure.index,
        False,
        failure.asked,
        failure.expected,
        failure.got,
        Raised(raised.name, raised.message, line if line > 0 else None),
    )
