"""What a run says: the line of a step, alarms, trackers; and how anybody reads a run's state from its files."""

from __future__ import annotations

import html
import importlib
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from workbench.text import printable
from workbench.train.interrupts import alive, amount, read_json

State = Literal["running", "stalled", "interrupted", "finished", "failed", "dead"]
"""`stalled`: the process exists and is silent; `dead`: it is gone without saying why."""
ENDINGS = ("finished", "failed", "interrupted")
STALE = 30.0
"""Seconds without a heartbeat after which a run no longer counts as running."""
CELL = 4096
"""Characters of a tracker's table cell: their servers refuse or hang on more."""


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


class Tracker(Protocol):
    """Where numbers go beside the run directory."""

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """Open a run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with the same keys."""

    def finish(self) -> None:
        """Close it."""


class Tracking:
    """A tracker that cannot fail a run: the first failure is said, all are counted, training goes on."""

    def __init__(self, kind: str, folder: Path, warn: Callable[[str], None]) -> None:
        """`kind` is none, trackio, wandb or tensorboard; the library is imported by `start`."""
        makers: dict[str, Callable[[], Tracker]] = {
            "trackio": lambda: _Hosted("trackio"),
            "wandb": lambda: _Hosted("wandb"),
            "tensorboard": lambda: _TensorBoard(folder / "tensorboard"),
        }
        self.failures = 0
        self._kind, self._warn = kind, warn
        self._tracker = makers[kind]() if kind != "none" else None

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        """Open a run."""
        self._call("start", name, config)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """The finite numbers among `values`."""
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        self._call("scalars", step, numbers)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows as text: one type a column, cells capped, nothing in them obeyed."""
        safe = printable if self._kind == "wandb" else _markdown
        cells = [{printable(k): safe(v, lines=True)[:CELL] for k, v in row.items()} for row in rows]
        self._call("table", step, name, cells)

    def finish(self) -> None:
        """Close it."""
        self._call("finish")

    def _call(self, what: str, *arguments: object) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, what)(*arguments)
        except Exception as error:  # whatever a tracker does, the run goes on
            self.failures += 1
            if self.failures == 1:
                missing = isinstance(error, ImportError)
                do = 'pip install ".[track]".' if missing else "The run goes on; its files are complete."
                self._warn(plain(f"tracker {self._kind} failed in {what}: {type(error).__name__}: {error}. {do}"))


def _markdown(text: object, *, lines: bool = False) -> str:
    """For trackers that render cells: an image in a model's text must not be fetched."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~&<>])", r"\\\1", html.escape(printable(text, lines=lines)))


class _Hosted:
    """Trackio and W&B share their calls."""

    def __init__(self, library: str) -> None:
        self._library = library
        self._module: Any = None

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        module = importlib.import_module(self._library)
        module.init(project="opsd", name=name, config=dict(config))
        self._module = module

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=step)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(rows[0]) if rows else []
        made = self._module.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])
        # The step is part of the key: under a fixed one only the last table is shown.
        self._module.log({f"{name}/{step:08d}": made}, step=step)

    def finish(self) -> None:
        if self._module is not None:
            self._module.finish()


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def start(self, name: str, config: Mapping[str, Any]) -> None:
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(self._folder))
        self._writer.add_text("config", _markdown(f"{name}: {dict(config)}"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for i, row in enumerate(rows):
            text = "\n\n".join(f"{_markdown(k)}: {v}" for k, v in row.items())
            self._writer.add_text(f"{name}/{step:08d}/{i}", text, step)

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()


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
    return shlex.join(["python", "-m", "workbench.opsd", "--resume", "--name", path.name, *where, *extra])


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
