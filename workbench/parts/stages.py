"""When one stage of a staged run gives way to the next: after its steps, or before, when a measurement says so.

What a trigger counts lives in `Memory`, as for every schedule that follows training, so a checkpoint holds it.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import ClassVar

from workbench.errors import RecipeError
from workbench.parts.schedules import Adaptive, Clock, Memory, Remembered, Seen


@dataclass(frozen=True)
class Until:
    """The end of a stage: `steps` optimizer steps after it began."""

    steps: int
    validates: ClassVar[bool] = False
    """Whether it wants `Seen.validation`."""

    def __post_init__(self) -> None:
        """Refuse a stage without steps. Raises RecipeError."""
        if self.steps < 1:
            raise RecipeError(f"{self!r}: a stage has 1 step or more.")

    def initial(self) -> Remembered:
        """What it has counted when the stage begins."""
        return ()

    def observe(self, counted: Remembered, seen: Seen) -> Remembered:
        """What it has counted next."""
        return counted

    def reached(self, counted: Remembered) -> bool:
        """Whether the stage ends before its steps are done."""
        return False


@dataclass(frozen=True)
class Plateau(Until):
    """The same, or when the held-out cross-entropy has not fallen for `patience` measurements in a row.

    Measured on the solutions of held-out problems whenever an epoch begins; a fall is one of more than `gain`
    nat/token below the lowest so far. Counts (lowest, measurements since).
    """

    patience: int = 3
    gain: float = 0.01
    validates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what is reached at once. Raises RecipeError."""
        super().__post_init__()
        if self.patience < 1 or self.gain < 0:
            raise RecipeError(f"{self!r}: patience is 1 or more, gain 0 or more.")

    def initial(self) -> Remembered:
        """Nothing measured."""
        return math.nan, 0.0

    def observe(self, counted: Remembered, seen: Seen) -> Remembered:
        """Compare a measurement with the lowest."""
        if seen.validation is None or not math.isfinite(seen.validation):
            return counted
        lowest, since = counted
        if math.isnan(lowest) or seen.validation < lowest - self.gain:
            return seen.validation, 0.0
        return lowest, since + 1

    def reached(self, counted: Remembered) -> bool:
        """Often enough without a fall."""
        return counted[1] >= self.patience


@dataclass(frozen=True)
class GradientBelow(Until):
    """The same, or when the gradient's norm, before clipping, has averaged below `limit` over `window` steps.

    A step that nothing was learnt from, or whose norm was not finite, is not counted.
    """

    limit: float = 0.1
    window: int = 5

    def __post_init__(self) -> None:
        """Refuse what no norm falls below. Raises RecipeError."""
        super().__post_init__()
        if not self.limit > 0 or self.window < 1:
            raise RecipeError(f"{self!r}: limit is above 0, window 1 or more.")

    def observe(self, counted: Remembered, seen: Seen) -> Remembered:
        """The last norms."""
        if seen.loss is None or seen.grad_norm is None or not math.isfinite(seen.grad_norm):
            return counted
        return (*counted, seen.grad_norm)[-self.window :]

    def reached(self, counted: Remembered) -> bool:
        """A full window of small norms."""
        return len(counted) == self.window and statistics.fmean(counted) < self.limit


@dataclass(frozen=True)
class Progress(Adaptive):
    """Which stage a run is in. Remembers (stage, the step it began after, what its trigger has counted...)."""

    until: tuple[Until, ...]

    @property
    def validates(self) -> bool:  # type: ignore[override]
        """Whether some trigger wants the held-out loss."""
        return any(until.validates for until in self.until)

    def initial(self) -> Remembered:
        """The first stage."""
        return 0.0, 0.0, *self.until[0].initial()

    def value(self, remembered: Remembered, clock: Clock) -> float:
        """The stage, from 0."""
        return remembered[0]

    def observe(self, remembered: Remembered, clock: Clock, seen: Seen) -> Remembered:
        """After a step, or where an epoch begins: perhaps the next stage."""
        stage, begun, *counted = remembered
        until, done = self.until[int(stage)], clock.step + (seen.validation is None)
        now = until.observe(tuple(counted), seen)
        if int(stage) + 1 < len(self.until) and (done - begun >= until.steps or until.reached(now)):
            return stage + 1, float(done), *self.until[int(stage) + 1].initial()
        return stage, begun, *now

    def place(self, memory: Memory) -> tuple[int, int]:
        """(the stage, from 0; the step it began after)."""
        stage, begun, *_ = memory.of(self)
        return int(stage), int(begun)

    def over(self, clock: Clock, memory: Memory) -> bool:
        """Whether the last stage has ended."""
        stage, begun, *counted = memory.of(self)
        until = self.until[int(stage)]
        last = int(stage) + 1 == len(self.until)
        return last and (clock.step - begun >= until.steps or until.reached(tuple(counted)))
