"""What a program does on the visible inputs, as one digest: programs that behave alike vote together.

| policy | reason |
|---|---|
| inputs are those of the visible tests; what is expected of them is not looked at | a vote needs no label |
| the first eight of them | a program that fails late may take its time once an input |
| an outcome is the value, the arguments afterwards where a test asks for them, or the output | as it would be judged |
| floats and numbers in outputs count to nine significant digits | two orders of computation are one behaviour |
| on an input that fails, how the run ended is the outcome | failing alike is behaving alike |
| after a death the inputs left go to a new process, after a timeout they count as timed out | all are seen, in time |
| a program without one statement (all failed, returned None or wrote nothing) has no vote | nothing is no agreement |
| a jail that failed: no vote | that says nothing about the program |
| check tests: no vote | their inputs are source that asserts |

The digest is made here, of plain data that was read here: a program chooses what it returns, never its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from verifiers.programs.box import Box, Raised, Ran
from verifiers.programs.cases import Call, Check, Stdin, Suite, TestsError, parse_tests
from verifiers.programs.output import stated_output

Group = tuple[Call | Stdin | Check, ...]

NO_VOTE = ""
"""The digest of a program that states nothing."""

MOST = 8
"""Inputs of which a vote is made."""

_FAILED, _NOTHING = "failed", "nothing"


def check_votes(tests: Sequence[str]) -> str | None:
    """Why programs for these tests cannot be told apart by what they do; None where they can, or where no test is."""
    try:
        suite = parse_tests(tests) if tests else None
    except TestsError as refusal:
        return str(refusal)
    if suite is None:
        return None
    if suite.kind == "check":
        return "Its tests are checks, whose inputs are source and no plain data."
    return "All its tests are hidden." if all(case.hidden for case in suite.cases) else None


def behaviour(suite: Suite, cases: Group, runs: Iterable[Ran], again: Callable[[Group], Ran], box: Box) -> str:
    """The digest of what a program did on `cases`, by the table above; `NO_VOTE` where it has none.

    Args:
        suite: where the cases are from.
        cases: the visible ones, in order.
        runs: made already: of all calls, or of the first inputs one by one.
        again: runs the program on the cases left.
        box: which ran it.
    """
    if suite.kind == "check":
        return NO_VOTE
    cases = cases[:MOST]
    seen: list[tuple[str, Any]] = []
    done = iter(runs)
    while len(seen) < len(cases):
        left = cases[len(seen) :]
        ran = next(done, None) or again(left)
        if ran.ended == "infra_error":
            return NO_VOTE
        seen += _of_script(ran, box) if suite.kind == "stdin" else _of_calls(ran, cast("tuple[Call, ...]", left), box)
        # A program that cannot be loaded cannot be called at all; one that takes all its time is not asked again.
        if ran.ended == "timeout" or (ran.ended == "raised" and suite.kind == "call"):
            seen += [(_FAILED, ran.ended)] * (len(cases) - len(seen))
    if all(outcome in (_FAILED, _NOTHING) for outcome, _ in seen):
        return NO_VOTE
    return hashlib.sha256(json.dumps([suite.kind, seen]).encode()).hexdigest()


def _of_calls(ran: Ran, cases: tuple[Call, ...], box: Box) -> list[tuple[str, Any]]:
    """One outcome a call that came back, and one for the end where that was not a good one."""
    found = [
        (_FAILED, "raised") if isinstance(value, Raised) else _stated(value.data, value.arguments, case, box)
        for value, case in zip(ran.values, cases, strict=False)
    ]
    # Without a value for every call a run has not ended well, whatever it says of itself.
    ended = "protocol" if ran.ended == "returned" and len(found) < len(cases) else ran.ended
    return found if ended == "returned" else [*found, (_FAILED, ended)]


def _stated(data: Any, arguments: Any, case: Call, box: Box) -> tuple[str, Any]:
    if case.after is None and box.equal(data, None):
        return _NOTHING, ""
    texts = [box.stated(part) for part, asked in ((data, case.returns), (arguments, case.after is not None)) if asked]
    return (_FAILED, "no plain value") if None in texts else ("stated", texts)


def _of_script(ran: Ran, box: Box) -> list[tuple[str, Any]]:
    if ran.ended != "returned" or ran.exit_status != 0:
        return [(_FAILED, "raised" if ran.ended == "returned" else ran.ended)]
    if not ran.stdout.strip():
        return [(_NOTHING, "")]
    text = stated_output(ran.stdout)
    return [(_FAILED, "too much") if text is None else ("stated", text)]
