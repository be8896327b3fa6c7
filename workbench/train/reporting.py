"""What a run says: the line of a step, alarms; and how anybody reads a run's state from its files."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from workbench.launch import launched
from workbench.text import printable
from workbench.train.interrupts import alive, amount, read_json

State = Literal["running", "stalled", "interrupted", "finished", "failed", "dead"]
"""`stalled`: the process exists and is silent; `dead`: it is gone without saying why."""
ENDINGS = ("finished", "failed", "interrupted")
STALE = 30.0
"""Seconds without a heartbeat after which a run no longer counts as running."""


@dataclass(frozen=True, kw_only=True)
class StepLine:
    """One step for a person. Counts stand beside what they are counted from; NaN or None is left out."""

    step: int
    total: int
    seconds: Mapping[str, float]
    """By phase."""
    divergence: str
    """Spelt out: `reverse KL`."""
    value: float
    kept: int
    rollouts: int
    correct: int
    judged: int
    tokens: float
    """Mean tokens a rollout."""
    truncated: int
    unit: str = "nat/token"
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    peak_bytes: int | None = None
    note: str = ""
    """Why there was no signal: `all 8 rollouts rejected by Correct`."""
    more: Mapping[str, float] = field(default_factory=dict)
    """Further figures by name."""

    def text(self) -> str:
        """The line, in ASCII and without anything a terminal would obey."""
        phases = " ".join(f"{name} {seconds:.{0 if seconds >= 9.5 else 1}f}s" for name, seconds in self.seconds.items())
        parts = [f"step {self.step}/{self.total}  {phases}".rstrip()]
        if math.isfinite(self.value):
            parts.append(f"{self.divergence} {_number(self.value)} {self.unit}")
        parts += [f"kept {self.kept}/{self.rollouts}", f"correct {self.correct}/{self.judged}"]
        if math.isfinite(self.tokens):
            parts.append(f"tokens {self.tokens:.0f}")
        parts.append(f"truncated {self.truncated}/{self.rollouts}")
        parts += [f"{name} {_number(value)}" for name, value in self.more.items() if math.isfinite(value)]
        if self.grad_norm is not None:
            parts.append(f"grad {_number(self.grad_norm)}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.0f} tok/s")
        if self.peak_bytes is not None:
            parts.append(f"peak {amount(self.peak_bytes)}")
        if self.seconds_left is not None and math.isfinite(self.seconds_left):
            parts.append(f"about {duration(self.seconds_left)} left")
        parts += [f"no signal: {self.note}"] if self.note else []
        return plain(" | ".join(parts))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def plain(text: str) -> str:
    """One line of ASCII."""
    return printable(text).encode("ascii", "backslashreplace").decode("ascii")


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `2.1 h`."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _number(value: float) -> str:
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 10_000 else f"{value:.2e}"


class Alarms:
    """What should make a person look, said once each. Fed with the rows of metrics.jsonl."""

    WINDOW = 3
    """Steps averaged before entropy and length are compared with the start: one step of few rollouts is noise."""
    LIMITS: Mapping[str, tuple[float, str]] = {
        "truncated_share": (0.5, "more than half of the rollouts were cut ({0:.2f}): raise --max-new-tokens"),
        "equal_context_kl": (1e-3, "KL of equal contexts is {0:.4f} nat/token, not 0: the two roles are misaligned"),
        "sampler_gap": (0.05, "sampler and trainer differ by {0:.3f} nat/token: the gradient is off-policy"),
        "sampler_far_share": (0.1, "{0:.2f} of the tokens are 0.2 nats apart for sampler and trainer"),
        "verifier_error_share": (0.02, "the verifier failed on {0:.2f} of the rollouts: they count nowhere"),
    }
    RATIOS: Mapping[str, tuple[float, float, str]] = {
        "surprise": (0.5, math.inf, "entropy is {0:.2f} of the start's: the student is losing its variety"),
        "tokens_mean": (0.5, 2.0, "rollouts are {0:.2f} times as long as at the start: look at some"),
    }

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """With the `state_dict` of a checkpoint nothing is said twice."""
        state = state or {}
        self._said: list[str] = list(state.get("said", []))
        self._start: dict[str, list[float]] = {k: list(v) for k, v in state.get("start", {}).items()}
        self._recent: dict[str, list[float]] = {k: list(v) for k, v in state.get("recent", {}).items()}

    def observe(self, figures: Mapping[str, Any]) -> list[str]:
        """Take one step's figures; returns the alarms it sets off."""
        figures = {**figures, "verifier_error_share": _error_share(figures)}
        return [
            text
            for name in (*self.LIMITS, *self.RATIOS)
            if isinstance(value := figures.get(name), (int, float)) and math.isfinite(value)
            for text in (self._limit(name, value) if name in self.LIMITS else self._ratio(name, value))
        ]

    def state_dict(self) -> dict[str, Any]:
        """JSON for the checkpoint."""
        return {"said": self._said, "start": self._start, "recent": self._recent}

    def _limit(self, name: str, value: float) -> list[str]:
        limit, text = self.LIMITS[name]
        return self._say(name, text.format(value)) if value > limit else []

    def _ratio(self, name: str, value: float) -> list[str]:
        start, recent = self._start.setdefault(name, []), self._recent.setdefault(name, [])
        recent[:] = [*recent, value][-self.WINDOW :]
        if len(start) < self.WINDOW:
            start.append(value)
            return []
        below, above, text = self.RATIOS[name]
        ratio = sum(recent) / sum(start) if sum(start) > 0 else 1.0
        return self._say(name, text.format(ratio)) if ratio <= below or ratio >= above else []

    def _say(self, name: str, text: str) -> list[str]:
        if name in self._said:
            return []
        self._said.append(name)
        return [text]


def _error_share(figures: Mapping[str, Any]) -> float:
    if "verifier_error_share" in figures:
        return float(figures["verifier_error_share"])
    counts = figures.get("statuses") or {}
    return counts.get("error", 0) / max(1, sum(counts.values()))


@dataclass(frozen=True)
class RunView:
    """A run as a reader sees it; a dead one looks exactly like a live one."""

    path: Path
    state: State
    phase: str
    step: int
    heartbeat: str | None
    error: str | None
    status: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name


def view(path: Path) -> RunView | None:
    """What `path` says about itself; None where it is no run."""
    status, run = read_json(path / "status.json"), read_json(path / "run.json")
    if not status and not run:
        return None
    step = status.get("step")
    return RunView(
        path=path,
        state=_state(status),
        phase=str(status.get("phase", "")),
        step=step if isinstance(step, int) else 0,
        heartbeat=status.get("heartbeat"),
        error=status.get("error"),
        status=status,
        run=run,
    )


def list_runs(output: Path) -> list[RunView]:
    """All runs below `output`, the one heard of last first."""
    try:
        found = [run for path in output.iterdir() if (run := view(path))]
    except OSError:
        return []
    return sorted(found, key=lambda r: (str(r.heartbeat or r.run.get("created", "")), r.name), reverse=True)


def newest_run(output: Path) -> RunView | None:
    """The run heard of last."""
    return next(iter(list_runs(output)), None)


def resume_command(path: Path, extra: Sequence[str] = ()) -> str:
    """A line to paste."""
    where = [] if path.parent == Path("runs") else ["--output", str(path.parent)]
    return shlex.join([*launched().command, "workbench.opsd", "--resume", "--name", path.name, *where, *extra])


def _state(status: Mapping[str, Any]) -> State:
    phase, living = status.get("phase"), alive(status)
    for ending in ENDINGS:
        if phase == ending:
            return ending  # type: ignore[return-value]
    if living is False:
        return "dead"
    try:
        age = (datetime.now(UTC) - datetime.fromisoformat(status["heartbeat"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return "dead"
    return "running" if age <= STALE else "stalled" if living else "dead"
