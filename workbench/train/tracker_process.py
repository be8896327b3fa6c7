"""The process in which a tracker's library runs: `tracking` sends it one JSON list a line, and hears one answer each.

Imports nothing that costs time but the library asked for. What the library prints goes to the log that stderr is.
A run that is resumed goes on with the tracker's run: `RUN/tracker.json` keeps its name, and the last step sent, so
that steps which come again after a resume are not sent twice. When the run's process is gone, so is this one.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

PROJECT = "opsd"
LAST_BREATH = 60.0
"""Seconds after the end of the run's process until this one ends, whatever its library still does."""


class Tracker(Protocol):
    """Where numbers go."""

    def start(self, name: str, config: Mapping[str, Any]) -> str:
        """Open a run; where to look at it, for a person."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""
        ...

    def finish(self) -> None:
        """Close it."""
        ...


class Memory:
    """What `RUN/tracker.json` knows of one kind of tracker."""

    def __init__(self, folder: Path, kind: str) -> None:
        """A file that cannot be read counts as none."""
        self._path, self._kind = folder / "tracker.json", kind
        try:
            self._all = json.loads(self._path.read_text(encoding="ascii"))
            known = self._all[kind]
            self.id, self.step, self.resumed = str(known["id"]), int(known["step"]), True
        except (OSError, ValueError, KeyError, TypeError):
            self._all = {}
            self.id, self.step, self.resumed = uuid.uuid4().hex[:12], -1, False

    def keep(self, step: int) -> None:
        """Remember the last step sent."""
        self.step = step
        text = json.dumps(self._all | {self._kind: {"id": self.id, "step": step}})
        fresh = self._path.with_name(".tracker.json.tmp")
        fresh.write_text(text + "\n", encoding="ascii")
        fresh.replace(self._path)


class Trackio:
    """Local by itself; a run is found again by its name, which carries the id of the run directory."""

    def __init__(self, folder: Path, memory: Memory) -> None:
        """Nothing is imported yet."""
        self._memory = memory
        self._module: Any = None

    def start(self, name: str, config: Mapping[str, Any]) -> str:
        """See `Tracker`."""
        self._module = importlib.import_module("trackio")
        shown = f"{name}-{self._memory.id[:4]}"
        resume = "allow" if self._memory.resumed else "never"
        # No meters of the machine: nobody asked for them, and their thread outlives a run that is killed.
        self._module.init(
            project=PROJECT, name=shown, config=dict(config), resume=resume, embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip
        return f"run {shown}. Look: trackio show --project {PROJECT}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._module.log(dict(values), step=step)

    def finish(self) -> None:
        """See `Tracker`."""
        self._module.finish()


class Wandb:
    """Its files go into the run directory; without an account `WANDB_MODE=offline` keeps them there."""

    def __init__(self, folder: Path, memory: Memory) -> None:
        """Nothing is imported yet."""
        self._folder, self._memory = folder, memory
        self._module: Any = None

    def start(self, name: str, config: Mapping[str, Any]) -> str:
        """See `Tracker`."""
        self._module = importlib.import_module("wandb")
        run = self._module.init(
            project=PROJECT, name=name, id=self._memory.id, resume="allow", dir=str(self._folder), config=dict(config)
        )
        return str(getattr(run, "url", None) or f"offline. Send: wandb sync {self._folder / 'wandb'}/offline-run-*")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._module.log(dict(values), step=step)

    def finish(self) -> None:
        """See `Tracker`."""
        self._module.finish()


class TensorBoard:
    """Event files below the run."""

    def __init__(self, folder: Path, memory: Memory) -> None:
        """Nothing is imported yet."""
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    def start(self, name: str, config: Mapping[str, Any]) -> str:
        """See `Tracker`."""
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(self._folder))
        text = "\n".join(f"    {line}" for line in json.dumps({"name": name, **config}, indent=1).splitlines())
        self._writer.add_text("config", text)  # indented: rendered as code
        return f"{self._folder}. Look: tensorboard --logdir {self._folder}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        """See `Tracker`."""
        self._writer.close()


KINDS: Mapping[str, Callable[[Path, Memory], Tracker]] = {
    "trackio": Trackio,
    "wandb": Wandb,
    "tensorboard": TensorBoard,
}


def serve(tracker: Tracker, memory: Memory, calls: Iterable[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Do what is asked, line by line; a call that raises is answered with why, and the next is tried.

    Calls that end without a `finish` are those of a run that died: what it sent is closed all the same.
    """
    works = False
    for line in itertools.chain(calls, ['["finish"]']):
        what, *arguments = json.loads(line)
        try:
            said = _do(tracker, memory, what, arguments) if works or what == "start" else None
        except BaseException as error:  # a library that calls sys.exit ends nothing
            missing = isinstance(error, ImportError)
            answer({"call": what, "error": f"{type(error).__name__}: {error}"[:500], "missing": missing})
        else:
            works = works or what == "start"
            answer({"call": what, "said": said} if works else {"call": what, "error": "it never started"})
        if what == "finish":
            return


def _do(tracker: Tracker, memory: Memory, what: str, arguments: Sequence[Any]) -> str | None:
    if what == "start":
        said = tracker.start(*arguments)
        memory.keep(memory.step)
        return said
    if what == "scalars":
        step: int = arguments[0]
        if step > memory.step:  # others were sent before the run was killed and resumed
            tracker.scalars(*arguments)
            memory.keep(step)
        return None
    getattr(tracker, what)(*arguments)
    return None


def heard(stream: IO[str]) -> Iterator[str]:
    """The lines of a stream, read beside whatever the library is doing; its end starts the last breath."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)
        time.sleep(LAST_BREATH)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while (line := lines.get()) is not None:
        yield line


def main() -> None:
    """`python -m workbench.train.tracker_process KIND RUN`: calls on stdin, answers on what stdout was."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # whatever the library prints is the log's

    def answer(said: dict[str, Any]) -> None:
        try:
            answers.write(json.dumps(said) + "\n")
            answers.flush()
        except OSError:
            pass  # the run is gone; what waits is still sent

    kind, folder = sys.argv[1], Path(sys.argv[2])
    memory = Memory(folder, kind)
    serve(KINDS[kind](folder, memory), memory, heard(sys.stdin), answer)


if __name__ == "__main__":
    main()
