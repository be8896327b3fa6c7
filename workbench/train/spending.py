"""What a phase of a step spent: wall seconds, the device's seconds, and what its models computed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from workbench.engine.meter import Count, Key


class Lap(NamedTuple):
    """From one look at a stopwatch to the next."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds of processor time, all threads of this process."""
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None
    """Where a GPU is in use: between them lie the seconds on its own clock."""

    @property
    def device(self) -> float:
        """Seconds of the device that computes: the GPU's where one is in use, else processor time."""
        if self.events is None:
            return self.processor
        self.events[1].synchronize()
        return float(self.events[0].elapsed_time(self.events[1])) / 1000


class Stopwatch:
    """Runs from the moment it is made."""

    def __init__(self) -> None:
        """Start."""
        self._last = self._look()

    def lap(self) -> Lap:
        """Since the last lap."""
        before, self._last = self._last, self._look()
        first, last = before[2], self._last[2]
        events = None if first is None or last is None else (first, last)
        return Lap(self._last[0] - before[0], self._last[1] - before[1], events)

    @staticmethod
    def _look() -> tuple[float, float, torch.cuda.Event | None]:
        event = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
        return time.perf_counter(), time.process_time(), event


@dataclass
class Spent:
    """By phase, as it came; turned into numbers by whoever takes it, so that no device is waited for before."""

    laps: dict[str, list[Lap]] = field(default_factory=dict)
    counts: list[tuple[str, Key, Count]] = field(default_factory=list)
    """(phase, who and how, what)."""

    def add(self, phase: str, lap: Lap, counts: Mapping[Key, Count]) -> None:
        """One more lap of a phase."""
        self.laps.setdefault(phase, []).append(lap)
        self.counts += [(phase, key, count) for key, count in counts.items()]
