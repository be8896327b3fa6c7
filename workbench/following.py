"""What every process of a run but the first holds in place of files and a screen: it takes part, and writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.recording import Recorder
from workbench.train.checkpoint import Checkpoint
from workbench.train.report import StepReport
from workbench.train.run_directory import JsonLines, RunDirectory


class _Nowhere(JsonLines):
    def __init__(self) -> None:
        """No file."""

    def append(self, record: Mapping[str, Any]) -> None:
        """Nothing."""


class Elsewhere(RunDirectory):
    """A run directory that another process writes. On every host its path must lead to the same files."""

    def __init__(self, path: Path) -> None:
        """No lock, no log, no heartbeat."""
        self.path = path
        self.metrics = self.rollouts = _Nowhere()

    def write_run_json(self, facts: Mapping[str, Any]) -> None:
        """Nothing."""

    def status(self, phase: str, step: int, error: str | None = None, **more: object) -> None:
        """Nothing."""

    def offsets(self) -> dict[str, int]:
        """None."""
        return {}

    def truncate_to(self, offsets: Mapping[str, int]) -> list[str]:
        """Nothing."""
        return []

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Nothing is held."""


class Follower(Recorder):
    """The loop's observer there: looks at its own rollouts for the first, and saves when that saves."""

    def step(self, report: StepReport, seconds: dict[str, float], notes: list[str]) -> None:
        """The first process tells of it; what decides whether the run goes on is decided here too."""
        self.accounts.step(self._method.name, report.tokens)
        self._method = self.recipe.method(self.state.memory)

    def resumed(self, saved: Checkpoint) -> None:
        """Nothing was said here."""

    def afresh(self) -> None:
        """Nothing was written here."""
