"""A generator some of whose work is begun early: the next step's rollouts are written while this one trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from threading import Event
from typing import Any

from torch import Tensor

from workbench.engine.generating import ignore, never
from workbench.errors import TrainingError
from workbench.records import Generator, Sample, Sampling, Wanted

STALE = 1
"""Versions by which a sample may be older than the weights that learn from it."""


@dataclass(frozen=True)
class Flight:
    """Work that was begun."""

    step: int
    """Optimizer steps before the one it is for."""
    places: dict[Wanted, int]
    settings: tuple[Sampling, frozenset[int]]
    samples: Future[list[Sample]]

    def covers(self, wanted: Wanted, settings: tuple[Sampling, frozenset[int]]) -> bool:
        """Whether this very completion was begun."""
        return wanted in self.places and settings == self.settings

    def record(self) -> dict[str, Any] | None:
        """Plain JSON, once it is written; None where it failed. What was cut off is left out."""
        if self.samples.exception() is not None:
            return None
        pairs = [(w, s) for w, s in zip(self.places, self.samples.result(), strict=True) if s.stop != "cancelled"]
        return {
            "sampling": asdict(self.settings[0]),
            "ends": sorted(self.settings[1]),
            "wanted": [{"prompt": w.prompt, "key": w.key.hex()} for w, _ in pairs],
            "samples": [asdict(s) for _, s in pairs],
        }

    @classmethod
    def of(cls, step: int, record: Mapping[str, Any]) -> Flight:
        """The inverse of `record`."""
        wanted = [Wanted(tuple(w["prompt"]), bytes.fromhex(w["key"])) for w in record["wanted"]]
        samples = Future[list[Sample]]()
        lists = ("tokens", "logprobs", "versions")
        samples.set_result([Sample(**s | {name: tuple(s[name]) for name in lists}) for s in record["samples"]])
        places = {w: place for place, w in enumerate(wanted)}
        return cls(step, places, (Sampling(**record["sampling"]), frozenset(record["ends"])), samples)


class AheadGenerator:
    """`inner`, and what `begin` asked it for: `generate` takes that where it is the same, and asks for the rest."""

    def __init__(self, inner: Generator, stopped: Callable[[], bool] = never) -> None:
        """`stopped` cuts off what was begun."""
        self.inner, self._stopped = inner, stopped
        self._flights = deque[Flight](maxlen=2)
        self._taken = list[Flight]()
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

    def begin(self, wanted: Sequence[Wanted], sampling: Sampling, ends: frozenset[int], step: int) -> None:
        """Start to write these with the weights of now, for a step. What fails is told when they are asked for."""
        places = {w: place for place, w in enumerate(wanted)}
        samples = self._pool.submit(self.inner.generate, wanted, sampling, ends, self._cut)
        self._flights.append(Flight(step, places, (sampling, ends), samples))

    def remembered(self, step: int) -> list[dict[str, Any]]:
        """What was begun for a step that is still to be done, once it is written: plain JSON.

        What was begun for later steps had the weights of `step`, and can be begun again.
        """
        found = [flight.record() for flight in (*self._taken, *self._flights) if flight.step == step]
        return [record for record in found if record is not None]

    def recall(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Have at hand what `remembered` gave."""
        self._flights.extend(Flight.of(step, record) for record in records)

    def forget(self) -> None:
        """What the step at hand has taken is of no use to another attempt."""
        self._taken.clear()

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
                self._taken = [*(other for other in self._taken if other.step == flight.step), flight]
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
