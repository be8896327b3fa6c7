"""What a step did, as numbers with units: the source of the step line, of metrics.jsonl and of the alarms."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from workbench.engine.meter import Meter
from workbench.recipe import Recipe
from workbench.records import Judged
from workbench.train.agreement import Agreement
from workbench.train.spending import Spent, Stopwatch

if TYPE_CHECKING:
    from workbench.train.objective import Signal


BESIDE = "beside"
"""What is done between phases: evaluations, writing files."""


class Phases:
    """Wall seconds by phase, and remarks; `take()` empties it once a step. `spent` goes on until somebody takes it."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []
        self.meter: Meter | None = None
        """What models compute; None: nobody asks."""
        self.spent = Spent()
        self._clock = Stopwatch()

    def begin(self, meter: Meter) -> None:
        """Read `meter` off after each phase, from now on."""
        self.meter, self._clock = meter, Stopwatch()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the block to phase `name`."""
        self.settle()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.settle(name)

    def settle(self, name: str = BESIDE) -> None:
        """Put down what was spent since the last time under `name`."""
        if self.meter is not None:
            self.spent.add(name, self._clock.lap(), self.meter.take())

    def note(self, text: str) -> None:
        """A remark for the step line."""
        self.notes.append(text)

    def take(self) -> tuple[dict[str, float], list[str]]:
        """Everything since the last call."""
        out = (self.seconds, self.notes)
        self.seconds, self.notes = {}, []
        return out


@dataclass(frozen=True)
class StepReport:
    """One step. Divergences are means over the tokens their term applies to, nat/token."""

    step: int
    judged: tuple[Judged, ...]
    kept: int
    divergence: tuple[float, ...]
    """Per object of `terms`; NaN where a term applied to nothing."""
    terms: tuple[str, ...]
    loss: float
    grad_norm: float
    refreshed: bool
    tokens: int
    surprise: float
    """Mean of -log p_S over the kept tokens: an estimate of the student's entropy on its own text, nat/token."""
    gap: float
    """Mean of |log p_sampler - log p_learner| over tokens we sampled, nats: 0 but for rounding."""
    turned: float | None
    """Share of tokens whose gradient entry-wise clipping turned around."""
    entries: dict[int, tuple[float, ...]]
    """id(rollout) -> the first term's value at each token, for the rollouts that are shown."""
    agreement: Agreement = field(default_factory=Agreement)
    """Of who writes with who learns."""
    seen: tuple[Any, ...] = ()
    """What whoever watched the step saw of its rollouts."""

    @classmethod
    def of(
        cls,
        step: int,
        recipe: Recipe,
        judged: Sequence[Judged],
        signals: Sequence[Signal],
        grad_norm: float,
        refreshed: bool,
    ) -> StepReport:
        """Fold the micro-batches of a step."""
        names = term_names(recipe)
        kept = sum(len(s.batch) for s in signals)
        if not signals:
            nan = float("nan")
            return cls(
                step,
                tuple(judged),
                0,
                (nan,) * len(names),
                names,
                0.0,
                grad_norm,
                refreshed,
                0,
                nan,
                nan,
                None,
                {},
            )
        values = torch.cat([s.values for s in signals], dim=1).double()
        weights = torch.cat([s.weights for s in signals], dim=1).double()
        logp = torch.cat([s.stats.student_logp for s in signals]).double().cpu()
        behaviour = torch.cat([s.stats.behaviour for s in signals]).double().cpu()
        counted = weights != 0
        means = tuple(
            float(v[c].mean()) if bool(c.any()) else float("nan") for v, c in zip(values, counted, strict=True)
        )
        # At another temperature than it was sampled at a token's log-prob is another number, and no gap.
        sampled = torch.isfinite(behaviour - logp) & (recipe.temperature == recipe.sampling.temperature)
        turned = [s.turned for s in signals if s.turned is not None]
        return cls(
            step=step,
            judged=tuple(judged),
            kept=kept,
            divergence=means,
            terms=names,
            loss=total_loss(signals) or 0.0,
            grad_norm=grad_norm,
            refreshed=refreshed,
            tokens=values.shape[1],
            surprise=float(-logp.nanmean()),
            gap=float((behaviour - logp)[sampled].abs().mean()) if bool(sampled.any()) else float("nan"),
            turned=float(torch.cat(turned).double().mean()) if turned else None,
            entries=_per_entry(signals),
            agreement=Agreement.of(recipe, signals),
        )

    @property
    def statuses(self) -> dict[str, int]:
        """Verdicts by status."""
        return dict(Counter(j.verdict.status for j in self.judged))

    def metrics(self) -> dict[str, Any]:
        """The row of metrics.jsonl; names are API."""
        n = len(self.judged)
        lengths = [len(j.rollout.tokens) for j in self.judged]
        scores = [j.verdict.score for j in self.judged if j.verdict.score is not None]
        return {
            "step": self.step,
            "loss": self.loss,
            **{f"term.{name}": value for name, value in zip(self.terms, self.divergence, strict=True)},
            "kept": self.kept,
            "rollouts": n,
            "correct": sum(s == 1.0 for s in scores),
            "judged": len(scores),
            "statuses": self.statuses,
            "tokens_mean": sum(lengths) / n if n else math.nan,
            "tokens_trained": self.tokens,
            "truncated_share": sum(j.rollout.stop == "length" for j in self.judged) / n if n else math.nan,
            "grad_norm": self.grad_norm,
            "surprise": self.surprise,
            "sampler_gap": self.gap,
            **self.agreement.metrics(),
            "turned_share": self.turned,
            "teacher_refreshed": self.refreshed,
        }


def total_loss(signals: Sequence[Signal]) -> float | None:
    """The step's loss; None where nothing was learnt from."""
    return sum(float((s.values.double() * s.weights.double()).sum()) for s in signals) if signals else None


def term_names(recipe: Recipe) -> tuple[str, ...]:
    """What metrics.jsonl calls the terms."""
    return _distinct([term_name(term) for term in recipe.terms])


def term_name(term: Any) -> str:
    """`ForwardKL`, `CrossEntropy` ...: what the step line calls a term."""
    inner = getattr(term, "divergence", None)
    inner = getattr(inner, "unclipped", inner)
    return type(term if inner is None else inner).__name__


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Two terms of one kind get a number, so that neither hides the other."""
    return tuple(n if names.count(n) == 1 else f"{n}.{names[: i + 1].count(n)}" for i, n in enumerate(names))


def words(term: str) -> str:
    """`ForwardKL` -> `forward KL`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", term).replace("Forward", "forward").replace("Reverse", "reverse")


def _per_entry(signals: Sequence[Signal]) -> dict[int, tuple[float, ...]]:
    out = {}
    for signal in signals:
        start = 0
        for entry in signal.batch:
            end = start + len(entry.tokens)
            out[id(entry.judged.rollout)] = tuple(signal.values[0, start:end].tolist())
            start = end
    return out
