"""One forked child, seen from outside: its descriptors, its frames, its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
from typing import Any

from verifiers.sandbox.jail import Jail
from verifiers.sandbox.programs import Ended, Limits

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
                with contextlib.suppress(OSError):  # it may end by itself meanwhile
                    signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
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
    import fcntl  # here: the package imports on every system

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
