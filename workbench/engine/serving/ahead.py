"""A generator some of whose work is begun early: the next step's rollouts are written while this one trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event

from torch import Tensor

from workbench.engine.generating import ignore, never
from workbench.errors import TrainingError
from workbench.records import Generator, Sample, Sampling, Wanted

STALE = 1
"""Versions by which a sample may be older than the weights that learn from it."""


@dataclass(frozen=True)
class Flight:
    """Work that was begun."""

    places: dict[Wanted, int]
    settings: tuple[Sampling, frozenset[int]]
    samples: Future[list[Sample]]

    def covers(self, wanted: Wanted, settings: tuple[Sampling, frozenset[int]]) -> bool:
        """Whether this very completion was begun."""
        return wanted in self.places and settings == self.settings


class AheadGenerator:
    """`inner`, and what `begin` asked it for: `generate` takes that where it is the same, and asks for the rest."""

    def __init__(self, inner: Generator, stopped: Callable[[], bool] = never) -> None:
        """`stopped` cuts off what was begun."""
        self.inner, self._stopped = inner, stopped
        self._flights = deque[Flight](maxlen=2)
        self._pool, self._closed = ThreadPoolExecutor(1), Event()

    @property
    def version(self) -> int:
        """The inner one's."""
        return self.inner.version

    @version.setter
    def version(self, value: int) -> None:
        """The inner one's."""
        self.inner.version = value

    @property
    def mark(self) -> str:
        """The inner one's."""
        return self.inner.mark

    @mark.setter
    def mark(self, value: str) -> None:
        """The inner one's."""
        self.inner.mark = value

    @property
    def gap(self) -> float:
        """The inner one's."""
        return self.inner.gap

    def begin(self, wanted: Sequence[Wanted], sampling: Sampling, ends: frozenset[int]) -> None:
        """Start to write these with the weights of now. What fails is told when they are asked for."""
        places = {w: place for place, w in enumerate(wanted)}
        samples = self._pool.submit(self.inner.generate, wanted, sampling, ends, self._cut)
        self._flights.append(Flight(places, (sampling, ends), samples))

    def generate(
        self,
        wanted: Sequence[Wanted],
        sampling: Sampling,
        ends: frozenset[int],
        stopped: Callable[[], bool] = never,
        wrote: Callable[[int, Sample], None] = ignore,
    ) -> list[Sample]:
        """One sample for each wanted, in order: those that were begun, at most `STALE` versions old, then the rest."""
        found = dict[int, Sample]()
        for flight in tuple(self._flights):
            mine = [place for place, w in enumerate(wanted) if flight.covers(w, (sampling, ends))]
            if mine:
                self._flights.remove(flight)
                samples = flight.samples.result()  # a stop of the run cuts it off
                found |= {place: self._young(samples[flight.places[wanted[place]]]) for place in mine}
        rest = [place for place in range(len(wanted)) if place not in found]
        for place, sample in found.items() if rest else ():
            wrote(place, sample)

        def told(place: int, sample: Sample) -> None:
            wrote(rest[place], sample)

        fresh = self.inner.generate([wanted[place] for place in rest], sampling, ends, stopped, told) if rest else []
        found |= dict(zip(rest, fresh, strict=True))
        return [found[place] for place in range(len(wanted))]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """After what was begun is written: every completion has one author."""
        wait([flight.samples for flight in self._flights])
        self.inner.sync(weights, version)

    def follow(self, version: int, mark: str) -> None:
        """As the inner one does."""
        self.inner.follow(version, mark)

    def close(self) -> None:
        """Cut off and drop what nobody asked for."""
        self._closed.set()
        self._pool.shutdown(cancel_futures=True)
        self.inner.close()

    def _cut(self) -> bool:
        return self._closed.is_set() or self._stopped()

    def _young(self, sample: Sample) -> Sample:
        if self.version - sample.versions[0] > STALE:
            raise TrainingError(
                f"a rollout by weights {sample.versions[0]} met weights {self.version}. More than {STALE} step between "
                "them is not what --ahead promises. Report it with run.log; "
                "a new run can start from this one's weights: --fork."
            )
        return sample
