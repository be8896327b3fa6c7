"""One run in one or two jails, seen from outside: feed it, watch it, end it at its deadline, say how it ended."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

from verifiers.sandbox import data
from verifiers.sandbox.jail import Jail
from verifiers.sandbox.programs import Calls, Checked, Ended, Limits, Outcome, Program, Raised, Script, Value
from verifiers.sandbox.server import SETUP_FAILED

KEPT_ERRORS = 1 << 16
"""Bytes of standard error kept; the rest is counted."""
GRACE = 1.0
"""Seconds a killed child has to be reported before the jail counts as broken."""


class Stopped(Exception):
    """The run is over: how, and why."""

    def __init__(self, ended: Ended, reason: str = "") -> None:
        """Keep both."""
        super().__init__(reason)
        self.ended: Ended = ended
        self.reason = reason


class Child:
    """One forked process and the parent's ends of its descriptors."""

    def __init__(self, jail: Jail, limits: Limits, stdin: str = "") -> None:
        """Fork it. Raises Stopped('infra_error') where the jail is gone."""
        self.jail, self.limits = jail, limits
        self.streams = {"stdout": bytearray(), "stderr": bytearray()}
        self.counts = {"stdout": 0, "stderr": 0}
        self.dead = False
        self.report: dict[str, Any] | None = None
        self._in = bytearray()
        self._out = memoryview(b"")
        text = _sealed(stdin.encode("utf-8", "surrogatepass"))
        out, out_theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        err, err_theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for fd in (out_theirs, err_theirs):
            os.set_blocking(fd, True)
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        asked = {
            "seconds": limits.seconds,
            "memory": limits.memory_bytes,
            "file": limits.file_bytes,
            "processes": jail.processes,
        }
        self.pidfd = jail.fork([text, out_theirs, err_theirs, theirs.fileno()], asked)
        theirs.close()
        for fd in (text, out_theirs, err_theirs):
            os.close(fd)
        self.fds: dict[int, str] = {out: "stdout", err: "stderr", self.channel.fileno(): "channel"}
        self.poll = select.poll()
        for fd in self.fds:
            self.poll.register(fd, select.POLLIN)
        if self.pidfd is None:
            self.finish()
            raise Stopped("infra_error", "the worker did not fork")
        self.fds[self.pidfd] = "pidfd"
        self.poll.register(self.pidfd, select.POLLIN)

    def send(self, kind: bytes, body: bytes) -> None:
        """Queue a frame."""
        self._out = memoryview(bytes(self._out) + struct.pack("<I", len(body) + 1) + kind + body)
        self._write()

    def _write(self) -> None:
        try:
            while self._out:
                self._out = self._out[self.channel.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError:
            self._out = memoryview(b"")  # it hung up: its death or silence says the rest
        if self.channel.fileno() in self.fds:
            self.poll.modify(self.channel, select.POLLIN | (select.POLLOUT if self._out else 0))

    def pump(self, seconds: float) -> None:
        """Move what can be moved within this time."""
        for fd, events in self.poll.poll(max(0, int(seconds * 1000) + 1)):
            name = self.fds.get(fd)
            if name == "pidfd":
                self.dead = True
                self.poll.unregister(fd)
            elif name is not None:
                if name == "channel" and events & select.POLLOUT:
                    self._write()
                if events & ~select.POLLOUT:
                    self._read(fd, name)

    def _read(self, fd: int, name: str) -> None:
        try:
            part = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self.poll.unregister(fd)
            del self.fds[fd]
            if name != "channel":
                os.close(fd)
        elif name == "channel":
            self._in += part
        else:
            self.counts[name] += len(part)
            keep = self.limits.output_bytes if name == "stdout" else KEPT_ERRORS
            self.streams[name] += part[: max(0, keep - len(self.streams[name]))]
            if self.counts[name] > self.limits.output_bytes:
                raise Stopped("limit", f"more than {self.limits.output_bytes} bytes of {name}")

    def frame(self) -> tuple[bytes, bytes] | None:
        """The next whole frame, if it is there. Raises Stopped('limit') where it is too long."""
        if len(self._in) < 4:
            return None
        (length,) = struct.unpack_from("<I", self._in)
        if length > self.limits.result_bytes:
            raise Stopped("limit", f"a result of more than {self.limits.result_bytes} bytes")
        if len(self._in) < 4 + length:
            return None
        frame = bytes(self._in[4 : 4 + length])
        del self._in[: 4 + length]
        return frame[:1], frame[1:]

    def drain(self) -> None:
        """Read what a dead child left in its pipes; nobody is left to write more."""
        try:
            for _ in range(10_000):
                if not any(name in ("stdout", "stderr", "channel") for name in self.fds.values()):
                    return
                before = len(self.fds), len(self._in), self.counts.copy()
                self.pump(-0.001)
                if before == (len(self.fds), len(self._in), self.counts):
                    return
        except Stopped:
            return

    def finish(self) -> None:
        """Kill it, take the server's report, close everything. The report stays None where the jail is broken."""
        if self.pidfd is not None:
            if not self.dead:
                try:
                    signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
                except OSError:
                    pass  # it ended by itself meanwhile
            self.report = self.jail.receive(GRACE)
            self.drain()
        for fd, name in self.fds.items():
            if name != "channel":
                os.close(fd)
        self.fds.clear()
        self.channel.close()

    def text(self, name: str) -> str:
        """A stream, decoded."""
        return self.streams[name].decode("utf-8", "replace")


def _sealed(text: bytes) -> int:
    """A descriptor to read this text from, which nobody can write to."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(text)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(fd)
        raise
    return fd


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
            if isinstance(self.program, Script):
                self._script(self.program)
            elif isinstance(self.program, Calls):
                self._calls(self.program)
            else:
                self.children.append(Child(jails[1], self.limits))
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
        if ended in ("died", "returned") and SETUP_FAILED in [r["status"] for r in known] and not self._began:
            ended, reason = "infra_error", f"the child could not be confined: {first.text('stderr') if first else ''}"
        elif ended == "died" and (first is None or None in reports):
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

    @property
    def _began(self) -> bool:
        return bool(self.values or self.raised or (self.children and self.children[0].counts["stdout"]))

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


def dirty(children: list[Child]) -> Iterator[Jail]:
    """The jails that must not serve again."""
    for child in children:
        if child.report is None or not child.report["clean"]:
            yield child.jail
