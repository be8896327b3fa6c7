"""Values that move with training. A `Schedule` may stand wherever a recipe holds a number.

`resolve` walks the frozen tree of a recipe and replaces every schedule by the number it is at this step, so
everything behind it sees plain numbers. Some schedules follow the clock alone; `Adaptive` ones also follow what
training measured, and what they remember is kept beside the recipe (`Memory`), never in it.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@dataclass(frozen=True)
class Clock:
    """Where training is: `step` optimizer steps are done of `total`."""

    step: int
    total: int

    @property
    def progress(self) -> float:
        """In [0, 1]; 0 at the first step, 1 at the last."""
        return min(1.0, self.step / max(1, self.total - 1))


@runtime_checkable
class Schedule(Protocol):
    """Clock -> number. Frozen, so that a recipe that holds one can be compared and printed."""

    def __call__(self, clock: Clock) -> float:
        """The value for the step about to be taken."""
        ...


@dataclass(frozen=True)
class Linear:
    """start + (end - start) * progress."""

    start: float
    end: float
    follows_total: ClassVar[bool] = True

    def __call__(self, clock: Clock) -> float:
        """The value at `clock`."""
        return self.start + (self.end - self.start) * clock.progress


@dataclass(frozen=True)
class Cosine:
    """From start to end along half a cosine."""

    start: float
    end: float
    follows_total: ClassVar[bool] = True

    def __call__(self, clock: Clock) -> float:
        """The value at `clock`."""
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * clock.progress)) / 2


@dataclass(frozen=True)
class Piecewise:
    """values[i] from step boundaries[i - 1] on: `Piecewise((0.0, 1.0), (60,))` is 0 for 60 steps, then 1."""

    values: tuple[float, ...]
    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse a shape that does not read. Raises ValueError."""
        if len(self.values) != len(self.boundaries) + 1 or list(self.boundaries) != sorted(self.boundaries):
            raise ValueError("Piecewise needs one value more than its ascending boundaries.")

    def __call__(self, clock: Clock) -> float:
        """The value at `clock`."""
        return self.values[sum(clock.step >= b for b in self.boundaries)]


@dataclass(frozen=True)
class Switch:
    """`before` until the share `at` of the run's steps is done, then `after`."""

    at: float = 0.5
    before: float = 0.0
    after: float = 1.0
    follows_total: ClassVar[bool] = True

    def __call__(self, clock: Clock) -> float:
        """The value at `clock`."""
        return self.before if clock.step < self.at * clock.total else self.after


@dataclass(frozen=True)
class Growing:
    """min(limit, start + increase * step), a whole number: how far a prefix reaches (Fast OPD, arXiv:2602.15260)."""

    start: int
    increase: int
    limit: int

    def __call__(self, clock: Clock) -> int:
        """The value at `clock`."""
        return min(self.limit, self.start + self.increase * clock.step)


@dataclass(frozen=True)
class Seen:
    """What training measured since a schedule was last asked."""

    loss: float | None = None
    """The step's loss, its weighted sum over all terms."""
    validation: float | None = None
    """Cross-entropy of held-out solutions, nat/token, measured when an epoch begins."""
    grad_norm: float | None = None
    """Of the step, before clipping."""


Remembered = tuple[float, ...]
"""What an adaptive schedule keeps: plain numbers, so that a checkpoint is a line of JSON."""


class Adaptive(ABC):
    """A schedule with a memory. A frozen dataclass: parameters in its fields, what it remembers outside."""

    validates: bool = False
    """Whether it wants `Seen.validation`."""

    @abstractmethod
    def initial(self) -> Remembered:
        """What it remembers before the first step."""

    @abstractmethod
    def value(self, remembered: Remembered, clock: Clock) -> float:
        """The value for the step about to be taken."""

    @abstractmethod
    def observe(self, remembered: Remembered, clock: Clock, seen: Seen) -> Remembered:
        """What it remembers next; `clock.step` optimizer steps were done when the step began."""


Scalar = float | Schedule | Adaptive


class Memory:
    """What the adaptive schedules of one run remember. Equal schedules share one memory."""

    def __init__(self, state: dict[str, list[float | None]] | None = None) -> None:
        """Empty, or what `state_dict` gave."""
        self._kept = {
            name: tuple(math.nan if value is None else value for value in values)
            for name, values in (state or {}).items()
        }

    def of(self, schedule: Adaptive) -> Remembered:
        """What `schedule` remembers."""
        return self._kept.get(repr(schedule), schedule.initial())

    def observe(self, tree: Any, clock: Clock, seen: Seen) -> None:
        """Let every adaptive schedule in `tree` see what was measured: once an optimizer step."""
        for schedule in {repr(s): s for s in adaptive(tree)}.values():
            self._kept[repr(schedule)] = schedule.observe(self.of(schedule), clock, seen)

    def state_dict(self) -> dict[str, list[float | None]]:
        """For a checkpoint: JSON has no NaN."""
        return {name: [None if math.isnan(v) else v for v in values] for name, values in self._kept.items()}


def adaptive(tree: Any) -> Iterator[Adaptive]:
    """Every adaptive schedule in a frozen tree, also inside others."""
    if isinstance(tree, Adaptive):
        yield tree
    if isinstance(tree, tuple):
        for child in tree:
            yield from adaptive(child)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for field in dataclasses.fields(tree):
            yield from adaptive(getattr(tree, field.name))


_CLOCKED = (Linear, Cosine, Piecewise, Switch, Growing)
Moving = (*_CLOCKED, Adaptive)
"""Everything that `resolve` replaces by a number."""


def follows_total(tree: Any) -> bool:
    """Whether anything in a frozen tree depends on how many steps there will be."""
    if getattr(type(tree), "follows_total", False):
        return True
    if isinstance(tree, tuple):
        return any(map(follows_total, tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return any(follows_total(getattr(tree, field.name)) for field in dataclasses.fields(tree))
    return False


def resolve(tree: T, clock: Clock, memory: Memory | None = None) -> T:
    """The same frozen tree with every `Schedule` in it replaced by its value at `clock`."""
    return _resolve(tree, clock, memory or Memory())


def _resolve(node: Any, clock: Clock, memory: Memory) -> Any:
    if isinstance(node, Adaptive):
        return node.value(memory.of(node), clock)
    if isinstance(node, _CLOCKED):
        return node(clock)
    if isinstance(node, tuple):
        children = tuple(_resolve(child, clock, memory) for child in node)
        return node if all(a is b for a, b in zip(children, node, strict=True)) else children
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        new = {f.name: _resolve(getattr(node, f.name), clock, memory) for f in dataclasses.fields(node) if f.init}
        changed = {name: value for name, value in new.items() if value is not getattr(node, name)}
        return dataclasses.replace(node, **changed) if changed else node
    return node
