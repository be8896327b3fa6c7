"""Numbers go to a tracker beside the run directory, and nothing it does can stop the run.

The tracker's library lives in a process of its own (`tracker_process`): what it raises, prints, waits for or dies of
stays there. The run puts calls into a queue and never waits for it, but for `FINISH` seconds at the end.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from workbench.train.reporting import plain

TRACKER_LOG = "tracker.log"
"""In the run's logs/: what the library printed."""
WAITING = 1000
"""Calls that may wait for a slow tracker; more are dropped and counted."""
SILENT = 60.0
"""Seconds without an answer after which a person is told, once."""
FINISH = 30.0
"""Seconds a tracker has to send what waits when the run is over."""


class Tracking:
    """A tracker that cannot fail a run: the first failure is said, all are counted, training goes on."""

    def __init__(self, kind: str, folder: Path, warn: Callable[[str], None]) -> None:
        """`kind` is none, trackio, wandb or tensorboard; `folder` the run's. `warn` is called from the run's thread."""
        self.failures = 0
        self.dropped = 0
        self._kind, self._folder, self._warn = kind, folder, warn
        self._process: subprocess.Popen[bytes] | None = None
        self._calls: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._answers: deque[dict[str, Any]] = deque()
        self._threads: list[threading.Thread] = []
        self._open: deque[float] = deque()
        """When each call that has no answer yet was made."""
        self._told: set[str] = set()

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """Open a run, or go on with the one that this run directory opened before."""
        if self._kind == "none" or self._process is not None:
            return
        (self._folder / "logs").mkdir(exist_ok=True)
        command = [sys.executable, "-P", "-m", "workbench.train.tracker_process", self._kind, str(self._folder)]
        found = os.pathsep.join(p for p in sys.path if p)
        try:
            with (self._folder / "logs" / TRACKER_LOG).open("ab") as log:
                # A session of its own: Ctrl-C means the run, and the tracker must still send what it has.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                    env={**os.environ, "PYTHONPATH": found},
                )  # fmt: skip
        except OSError as error:
            self._failed("start", f"{type(error).__name__}: {error}")
            self._kind = "none"
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for work, pipe in ((self._send, self._process.stdin), (self._hear, self._process.stdout)):
            self._threads.append(threading.Thread(target=work, args=(pipe,), name=f"tracker {self._kind}", daemon=True))
            self._threads[-1].start()
        self._call("start", name, dict(config))

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """The finite numbers among `values`, but for the step itself, which trackers reserve."""
        found = {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and k != "step"}
        numbers = {k: v for k, v in found.items() if math.isfinite(v)}
        self._call("scalars", step, numbers)

    def finish(self) -> None:
        """Close it; one that has not sent everything after `FINISH` seconds is ended, and that is said."""
        process = self._process
        if process is None:
            return
        self._call("finish")
        with contextlib.suppress(queue.Full):
            self._calls.put(None, timeout=1.0)
        try:
            process.wait(FINISH)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._failed("finish", f"not done after {FINISH:.0f} s, so it was ended")
            self._told.add("finish")
        for thread in self._threads:
            thread.join(1.0)
        self._listen()
        self._process, self._kind = None, "none"
        if self.failures + self.dropped > 1:
            self._warn(f"tracker: {self.failures} calls failed and {self.dropped} were dropped; the files are complete")

    def _call(self, what: str, *arguments: object) -> None:
        if self._process is None:
            return
        self._listen()
        line = json.dumps([what, *arguments], default=str).encode("ascii") + b"\n"
        try:
            self._calls.put_nowait(line)
            self._open.append(time.monotonic())
        except queue.Full:
            self.dropped += 1
        if self._open and time.monotonic() - self._open[0] > SILENT:
            self._say("silent", f"has not answered for {SILENT:.0f} s")

    def _send(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError), pipe:  # its end is told by whoever hears
            while (line := self._calls.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _hear(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError), pipe:
            for line in pipe:
                with contextlib.suppress(ValueError):
                    self._answers.append(json.loads(line))
        self._answers.append({"ended": True})

    def _listen(self) -> None:
        """Take up what the other process said since the last call."""
        while self._answers:
            answer = self._answers.popleft()
            if answer.get("ended"):
                self._over()
                continue
            if self._open:
                self._open.popleft()
            if "error" in answer:
                self._failed(str(answer.get("call")), str(answer["error"]), bool(answer.get("missing")))
            if answer.get("said"):
                self._say("said", f"writes {answer['said']}", failed=False)

    def _over(self) -> None:
        """The other process has closed its end: by itself, or it was ended."""
        assert self._process is not None
        self._open.clear()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if (code := self._process.wait(1.0)) and "finish" not in self._told:
                self._failed("running", f"its process ended with code {code}")

    def _failed(self, call: str, why: str, missing: bool = False) -> None:
        self.failures += 1
        do = 'pip install ".[track]".' if missing else "The run goes on; its files are complete."
        self._say("failed", f"failed in {call}: {why}. {do}")

    def _say(self, about: str, text: str, failed: bool = True) -> None:
        if about not in self._told:
            self._told.add(about)
            where = f" What it printed: logs/{TRACKER_LOG}" if failed and "pip install" not in text else ""
            self._warn(plain(f"tracker {self._kind} {text}")[:2000] + where)
