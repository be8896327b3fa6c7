"""Values that move with training. A `Schedule` may stand wherever a recipe holds a float.

`resolve` walks the frozen tree of a recipe and replaces every schedule by the number it is at this step, so
everything behind it sees plain floats.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

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


Scalar = float | Schedule


@dataclass(frozen=True)
class Linear:
    """start + (end - start) * progress."""

    start: float
    end: float

    def __call__(self, clock: Clock) -> float:
        """The value at `clock`."""
        return self.start + (self.end - self.start) * clock.progress


@dataclass(frozen=True)
class Cosine:
    """From start to end along half a cosine."""

    start: float
    end: float

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


def resolve(tree: T, clock: Clock) -> T:
    """The same frozen tree with every `Schedule` in it replaced by its value at `clock`."""
    return _resolve(tree, clock)


def _resolve(node: Any, clock: Clock) -> Any:
    if isinstance(node, (Linear, Cosine, Piecewise)):
        return node(clock)
    if isinstance(node, tuple):
        children = tuple(_resolve(child, clock) for child in node)
        return node if all(a is b for a, b in zip(children, node, strict=True)) else children
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        new = {f.name: _resolve(getattr(node, f.name), clock) for f in dataclasses.fields(node) if f.init}
        changed = {name: value for name, value in new.items() if value is not getattr(node, name)}
        return dataclasses.replace(node, **changed) if changed else node
    return node
