"""The parent's side of the worker: one process, one question at a time, a deadline by the monotonic clock.

What is promised: `ask` returns or raises `Undecided` within its deadline (plus one start of the process), from any
thread, whatever the worker does; a worker that is late, dead or talks nonsense is killed and reaped and the next
question starts another; a fork of this process never talks to its parent's worker. What never happens: text written
by a model reaching the worker, descriptors or environment variables of this process reaching it.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from verifiers.answers.statements.agreement import Question, Undecided
from verifiers.answers.worker import encode

DEADLINE_S = 2.0
"""Wall-clock seconds for all questions of one verdict."""

START_S = 30.0
"""Seconds a worker may take to start: an import on a busy machine, once."""

RETRY_AFTER_S = 5.0
"""After a failed start the next question does not try again at once."""

LONGEST_REQUEST = 60_000
"""Bytes of a question; below a pipe's capacity, so that writing one never blocks."""

_BOOT = "import json,sys;sys.path[:]=json.loads(sys.argv[1]);from verifiers.answers.worker import main;main()"


class _Gone(Exception):
    """The worker ended or broke the protocol."""


class Link:
    """A lazily started worker process; safe to use from any thread and after a fork."""

    def __init__(self) -> None:
        """Nothing starts yet."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self.walls: tuple[str, ...] = ()
        """What confines the worker beside its limits; see `confinement`."""
        self._owner = os.getpid()
        self._kept = b""
        self._queue: SimpleQueue[bytes] | None = None
        self._number = 0
        self._failed_at = float("-inf")
        self._failure = ""
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    @property
    def pid(self) -> int | None:
        """The worker's process id, if one is running."""
        return self._process.pid if self._process else None

    def ask(self, question: Question, deadline: float) -> bool:
        """Put one question to the worker.

        Args:
            question: what to settle.
            deadline: `time.monotonic()` at which the answer is no longer wanted; a start does not count.

        Returns:
            Whether the two sides agree.

        Raises:
            Undecided: `timeout` when the worker was too slow (it is killed), `error` when it could not be started or
                died twice, `unparsed` when it found no decision or the question is too large.
        """
        started_waiting = time.monotonic()
        with self._lock:
            # Waiting for another thread's question is not this question's time.
            deadline += time.monotonic() - started_waiting
            for attempt in (1, 2):
                try:
                    return self._exchange(question, deadline)
                except _Gone as reason:  # killed from outside, out of memory: one more try on a fresh worker
                    self._kill()
                    if attempt == 2:
                        raise Undecided("error", f"the worker died: {reason}") from None
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End the worker, if one runs; a later question starts another."""
        with self._lock:
            self._kill()

    def _exchange(self, question: Question, deadline: float) -> bool:
        deadline += self._start()
        self._number += 1
        request = json.dumps(
            {
                "id": self._number,
                "kind": question.kind,
                "a": encode(question.a),
                "b": encode(question.b),
                "bound": str(question.bound),
            }
        ).encode()
        if len(request) > LONGEST_REQUEST:
            raise Undecided("unparsed", "too long to compare")
        self._send(request + b"\n")
        reply = self._reply(deadline)
        if reply.get("id") != self._number:
            raise _Gone("a reply to another question")
        if "error" in reply:
            raise Undecided("unparsed", f"the worker could not evaluate it: {reply['error']}")
        if reply.get("found") not in ("agree", "different"):
            raise Undecided("unparsed", "no value to compare: undefined, or beyond all bounds")
        return reply["found"] == "agree"

    def _start(self) -> float:
        """Have a worker; returns the seconds that starting one took."""
        if self._process is not None and self._process.poll() is None:
            return 0.0
        self._kill()
        began = time.monotonic()
        if began - self._failed_at < RETRY_AFTER_S:
            raise Undecided("error", self._failure)
        try:
            self._process = _spawn(command(), needed_environment())
            self._kept = b""
            self._queue = _reader_thread(self._process) if os.name == "nt" else None
            said = self._reply(began + START_S)
            if said.get("ready") is not True:
                raise _Gone("it did not say that it is ready")
            walls = said.get("walls")
            self.walls = tuple(str(wall) for wall in walls) if isinstance(walls, list) else ()
        except (OSError, ValueError, _Gone, Undecided) as reason:
            self._kill()
            self._failed_at = time.monotonic()
            why = f"the worker for expressions could not be started: {reason}"
            self._failure = f"{why}. It needs mpmath, which comes with sympy, in {sys.executable}."
            raise Undecided("error", self._failure) from None
        return time.monotonic() - began

    def _send(self, data: bytes) -> None:
        stdin = self._process.stdin if self._process else None
        try:
            if stdin is not None:
                stdin.write(data)
                stdin.flush()
        except OSError as reason:
            raise _Gone(str(reason)) from None

    def _reply(self, deadline: float) -> dict[str, object]:
        while b"\n" not in self._kept:
            piece = self._piece(deadline - time.monotonic())
            if piece is None:
                self._kill()
                raise Undecided("timeout", f"no decision within {DEADLINE_S:g} s")
            if not piece:
                raise _Gone("it closed its output")
            self._kept += piece
        line, _, self._kept = self._kept.partition(b"\n")
        try:
            reply = json.loads(line)
        except ValueError:
            raise _Gone("it wrote something else than a reply") from None
        if not isinstance(reply, dict):
            raise _Gone("it wrote something else than a reply")
        return reply

    def _piece(self, seconds: float) -> bytes | None:
        """Some bytes of the worker's output, none at its end, None when the time is over."""
        if self._queue is not None:
            try:
                return self._queue.get(timeout=max(seconds, 0.0))
            except Empty:
                return None
        if self._process is None or self._process.stdout is None:
            return b""
        output = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            return os.read(output, 1 << 16) if selector.select(max(seconds, 0.0)) else None

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if self._owner == os.getpid():
            with suppress(OSError):
                process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _forget(self) -> None:
        """In a forked child: the lock may be held by a thread that is not here, the worker is the parent's."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        self._owner = os.getpid()
        if process is not None:
            process.returncode = 0  # not our child: neither wait for it nor warn about it
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError, ValueError):
                        pipe.close()


def command() -> list[str]:
    """The worker's command line: an interpreter that sees our import path and nothing else of this process."""
    here = str(Path(__file__).resolve().parents[2])
    path = [here, *(entry for entry in sys.path if entry and entry != here)]
    return [sys.executable, "-I", "-S", "-B", "-c", _BOOT, json.dumps(path)]


def needed_environment() -> dict[str, str]:
    """The variables without which some interpreters do not start."""
    needed = ("SYSTEMROOT", "WINDIR", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in needed if name in os.environ}


def _spawn(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the worker as a process of its own session, with pipes to its standard input and output."""
    return subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        close_fds=True,
        cwd=os.path.abspath(os.sep),
        env=dict(environment),
        # Ctrl-C in the terminal is the parent's to handle.
        start_new_session=os.name == "posix",
    )


def _reader_thread(process: subprocess.Popen[bytes]) -> SimpleQueue[bytes]:
    """For Windows, where pipes cannot be waited on: a thread that hands over what the worker writes."""
    queue: SimpleQueue[bytes] = SimpleQueue()

    def pump() -> None:
        output = process.stdout
        with suppress(OSError, ValueError):
            while output is not None and (piece := os.read(output.fileno(), 1 << 16)):
                queue.put(piece)
        queue.put(b"")

    threading.Thread(target=pump, daemon=True, name="verifier-worker-output").start()
    return queue
