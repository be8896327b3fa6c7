"""One run in one or two jails, seen from outside: feed it, watch it, end it at its deadline, say how it ended."""

from __future__ import annotations

import json
import time
from typing import Any

from verifiers.sandbox import data
from verifiers.sandbox.jail import Jail
from verifiers.sandbox.programs import Calls, Checked, Ended, Limits, Outcome, Program, Raised, Script, Value
from verifiers.sandbox.watching import Child, Stopped


class Run:
    """A program on its way through its jails."""

    def __init__(self, program: Program, limits: Limits) -> None:
        """Nothing starts yet."""
        self.program, self.limits = program, limits
        self.values: list[Value | Raised] = []
        self.raised: Raised | None = None
        self.passed: bool | None = None
        self.children: list[Child] = []

    def go(self, jails: list[Jail]) -> Outcome:
        """Run it to its end, whatever that is. Afterwards a jail whose `report` is None or unclean is to be dropped."""
        started = time.monotonic()
        self.deadline = started + self.limits.seconds
        ended: Ended = "returned"
        reason = ""
        try:
            stdin = self.program.stdin if isinstance(self.program, Script) else ""
            self.children.append(Child(jails[0], self.limits, stdin))
            if isinstance(self.program, Checked):
                self.children.append(Child(jails[1], self.limits))
            self._ready(*self.children)
            if isinstance(self.program, Script):
                self._script(self.program)
            elif isinstance(self.program, Calls):
                self._calls(self.program)
            else:
                self._checked(self.program, *self.children)
        except Stopped as stop:
            ended, reason = stop.ended, stop.reason
        finally:
            for child in self.children:
                child.finish()
        wall = time.monotonic() - started
        return self._outcome(jails[0].level, ended, reason, wall)

    def _outcome(self, level: str, ended: Ended, reason: str, wall: float) -> Outcome:
        reports = [child.report for child in self.children]
        known: list[dict[str, Any]] = [report for report in reports if report is not None]
        first = self.children[0] if self.children else None
        status = first.report["status"] if first is not None and first.report is not None else None
        if ended == "died" and (first is None or None in reports):
            ended, reason = "infra_error", "the worker died"
        if ended == "returned" and isinstance(self.program, Script) and status != 0:
            ended = "infra_error" if status is None else "died" if status < 0 else "raised"
        return Outcome(
            ended,
            level,
            tuple(self.values),
            self.passed,
            self.raised,
            first.text("stdout") if first is not None else "",
            first.text("stderr") if first is not None else "",
            status,
            wall,
            sum(r["cpu"] for r in known),
            max((r["peak"] for r in known), default=0),
            reason,
        )

    def _ready(self, *children: Child) -> None:
        """Wait until each child has confined itself. It has been sent nothing yet, so what it says is its own."""
        for child in children:
            try:
                kind, _ = self._next(child)
            except Stopped as stop:
                child.drain()
                raise Stopped("infra_error", f"not confined ({stop.ended}): {child.text('stderr')[-300:]}") from None
            if kind != b"R":
                raise Stopped("infra_error", "not confined: an unknown frame")

    def _wait(self, *children: Child) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Stopped("timeout", f"no end within {self.limits.seconds:g} s")
        # With two children one waits briefly on each: the other is blocked on its own socket meanwhile.
        for child in children:
            child.pump(min(left, 0.001) if len(children) > 1 else left)

    def _next(self, child: Child, *others: Child) -> tuple[bytes, bytes]:
        while True:
            frame = child.frame()
            if frame is not None:
                return frame
            if child.dead:
                child.drain()
                frame = child.frame()
                if frame is None:
                    raise Stopped("died")
                return frame
            self._wait(child, *others)

    def _script(self, program: Script) -> None:
        child = self.children[0]
        child.send(b"S", json.dumps({"kind": "script", "source": program.source}).encode())
        while not child.dead:
            self._wait(child)
        while "stdout" in child.fds.values() or "stderr" in child.fds.values():
            self._wait(child)

    def _load(self, child: Child, source: str, entry_point: str) -> None:
        body = {"kind": "calls", "source": source, "entry_point": entry_point}
        child.send(b"S", json.dumps(body).encode())
        kind, said = self._next(child)
        if kind == b"X":
            self.raised = _raised(said)
            raise Stopped("raised")
        if kind != b"L":
            raise Stopped("protocol", "an unknown frame")

    def _call(self, child: Child, arguments: bytes, *others: Child) -> tuple[Value | Raised, bytes]:
        child.send(b"A", arguments)
        kind, said = self._next(child, *others)
        if kind == b"E":
            return _raised(said), said
        if kind != b"V":
            raise Stopped("protocol", "an unknown frame")
        try:
            return Value(data.read(said)), said
        except data.DataError as error:
            raise Stopped("protocol", str(error)) from None

    def _calls(self, program: Calls) -> None:
        child = self.children[0]
        self._load(child, program.source, program.entry_point)
        for arguments in program.arguments:
            self.values.append(self._call(child, data.write(tuple(arguments)))[0])

    def _checked(self, program: Checked, candidate: Child, tester: Child) -> None:
        self._load(candidate, program.source, program.entry_point)
        body = {"kind": "check", "source": "", "prompt": program.prompt, "check": program.check}
        tester.send(b"S", json.dumps({**body, "entry_point": program.entry_point}).encode())
        calls, last = 0, None
        while True:
            kind, said = self._next(tester)
            if kind != b"C":
                break
            calls += 1
            answer, raw = self._call(candidate, said)
            last = answer if isinstance(answer, Raised) else None
            tester.send(
                b"V" if isinstance(answer, Value) else b"E", raw if isinstance(answer, Value) else _plain(answer)
            )
        self.passed = kind == b"P" and calls > 0
        if kind == b"F":
            said_ = _raised(said)
            self.raised = last or said_
            if last is not None:
                raise Stopped("raised")
        elif not calls:
            self.raised = Raised("AssertionError", "the check never called the candidate", None)


def _plain(raised: Raised) -> bytes:
    return json.dumps({"name": raised.name, "message": raised.message, "line": raised.line}).encode()


def _raised(said: bytes) -> Raised:
    """Read a description of an exception, whoever wrote it."""
    try:
        found = json.loads(said[:100_000])
        name, message, line = found["name"], found["message"], found["line"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Stopped("protocol", "a malformed exception") from None
    if type(name) is not str or type(message) is not str or type(line) not in (int, type(None)):
        raise Stopped("protocol", "a malformed exception")
    return Raised(name[:100], message[:2000], line)


def clean(children: list[Child]) -> set[Jail]:
    """The jails that may serve again: their child was reported, and left nothing. One that did not fork is not."""
    return {child.jail for child in children if child.report is not None and child.report["clean"]}
