"""Paired repetitions: every way in its own process, one at a time, forwards and backwards; ratios within a repetition.

A ratio compares two measurements taken next to each other, so what else the machine does hits both. The order turns
round every repetition, so a drift cancels in the median.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FLOOR = "floor"


@dataclass(frozen=True)
class Way:
    """Where to find a way of doing the work: `module:name(**arguments)`, in our environment or in the peers'."""

    target: str
    arguments: dict[str, Any]
    python: str = sys.executable
    bytes: int = 0
    """Memory it is known to want; above the half of what is free it is not tried."""


class Process:
    """A worker that waits."""

    def __init__(self, way: Way) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"PYTHONWARNINGS": "ignore", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "WANDB_DISABLED": "true"}
        command = [way.python, str(HERE / "worker.py"), way.target, json.dumps(way.arguments)]
        self.log = open(os.devnull, "w") if "BENCH_VERBOSE" not in os.environ else None  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        try:
            self.retained = self._read()["retained"]
        except RuntimeError:
            self.stop()
            raise

    def ask(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with {self.process.wait()}; BENCH_VERBOSE=1 shows what it said")
        return json.loads(line)

    def stop(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        self.process.wait()
        if self.log is not None:
            self.log.close()


@dataclass
class Measured:
    """What the ways of a row came to."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    warm: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    retained: bool = False

    def ratios(self, over: str, under: str) -> list[float]:
        """seconds[over] / seconds[under], repetition by repetition; [] where one was not measured."""
        a, b = self.seconds.get(over, []), self.seconds.get(under, [])
        return [x / y for x, y in zip(a, b, strict=True)] if a and b else []


@contextlib.contextmanager
def running(ways: dict[str, Way], found: Measured) -> Iterator[dict[str, Process]]:
    """The processes of all ways that can be had, warmed up; why not for the rest."""
    from memory import available

    processes: dict[str, Process] = {}
    try:
        for name, way in ways.items():
            free = available()
            if free and way.bytes > free // 2:
                found.skipped[name] = f"wants about {way.bytes / 1e9:.0f} GB, and {free / 1e9:.0f} GB were free"
                continue
            try:
                process = Process(way)
                processes[name] = process
                found.warm[name] = process.ask("warm")
                found.retained = process.retained
            except RuntimeError as error:
                found.skipped[name] = str(error)
                if name in processes:
                    processes.pop(name).stop()
        yield processes
    finally:
        for process in processes.values():
            process.stop()


def paired(ways: dict[str, Way], repeat: int) -> Measured:
    """Run every way `repeat` times, interleaved. The floor stands next to the first way, on both of its sides."""
    found = Measured()
    with running(ways, found) as processes:
        names = list(processes)
        found.seconds = {name: [] for name in names}
        for turn in range(repeat):
            order = names if turn % 2 == 0 else names[::-1]
            taken: dict[str, list[float]] = {name: [] for name in names}
            for name in order:
                taken[name].append(processes[name].ask("time")["seconds"])
            if FLOOR in processes and len(names) > 1:  # the other side of the way it is compared with
                taken[names[1]].append(processes[names[1]].ask("time")["seconds"])
                taken[FLOOR].append(processes[FLOOR].ask("time")["seconds"])
            for name, several in taken.items():
                found.seconds[name].append(statistics.fmean(several))
    return found
