"""Who looks at a step while it learns: told of everything, asked for nothing, unable to change a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workbench.engine.engine import Engine
from workbench.engine.generating import never
from workbench.parts.gates import Gate
from workbench.recipe import Recipe
from workbench.records import Judged
from workbench.train.batches import Denominators, Entry
from workbench.train.objective import Signal
from workbench.train.report import Phases


@dataclass(frozen=True)
class Opening:
    """A step before its first gradient."""

    step: int
    """The optimizer step that this will be; the first is 1."""
    recipe: Recipe
    """With numbers for schedules."""
    engine: Engine
    groups: Sequence[Sequence[Judged]]
    """Every rollout of the step, before any gate."""
    refused: Mapping[int, Gate]
    """id(judged) -> the first gate that kept it out."""
    kept: Sequence[Entry]
    counts: Denominators


class Watch(Protocol):
    """Looks at the weights that the step starts from. Must not raise."""

    def begin(self, opening: Opening) -> None:
        """A step is about to learn."""
        ...

    def look(self, signal: Signal) -> object:
        """A micro-batch was scored and has not been learnt from; what is returned becomes `Signal.looked`."""
        ...

    def end(self, signals: Sequence[Signal]) -> tuple[Any, ...]:
        """All of them: what becomes `StepReport.seen`."""
        ...


@dataclass(frozen=True)
class Course:
    """What accompanies a pass over a step: a watch to time it, somebody to stop it, somebody to look."""

    phases: Phases
    stopped: Callable[[], bool] = never
    watch: Watch | None = None

    def begin(self, opening: Opening) -> None:
        """Tell whoever looks."""
        if self.watch is not None:
            with self.phases("record"):
                self.watch.begin(opening)

    def look(self, signal: Signal) -> Signal:
        """The signal with what was found and without its hidden states."""
        if self.watch is None:
            return signal.forget()
        with self.phases("record"):
            return signal.forget(self.watch.look(signal))

    def end(self, signals: Sequence[Signal]) -> tuple[Any, ...]:
        """What was seen of the step."""
        if self.watch is None:
            return ()
        with self.phases("record"):
            return self.watch.end(signals)
