"""Do the sampler and the learner agree? Importance weights of the tokens a step learns from, and when to stop.

With r_t = log p_sampler(y_t) - log p_learner(y_t) and w_t = exp(-r_t): 0 and 1 where one model does both, rounding
where a server samples, drift where rollouts are a step old. More than that is a bug, and its gradient off-policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import ServerError
from workbench.recipe import Recipe

if TYPE_CHECKING:
    from workbench.train.batches import Entry
    from workbench.train.objective import Signal

FAR = 0.2
"""Nats: a bfloat16 server differs by more on one token in a hundred."""
WORST_RATIO, LEAST_SIZE, MOST_FAR = 0.3, 0.5, 0.5
"""Mean |r| in nats, effective sample size as a share, share of tokens beyond `FAR`: past these nothing is learnt."""


@dataclass(frozen=True)
class Agreement:
    """Of the student's own tokens in one step, written by the newest weights or those one step before."""

    log_ratio: float = math.nan
    """Mean of r, nats: above 0 the sampler was surer than the learner."""
    distance: float = math.nan
    """Mean of |r|, nats."""
    effective: float = math.nan
    """(sum w)^2 / (n sum w^2): 1 where all weights are equal."""
    far: float = math.nan
    """Share of tokens with |r| above `FAR`."""

    @classmethod
    def of(cls, recipe: Recipe, signals: Sequence[Signal]) -> Agreement:
        """From the micro-batches of a step; NaN where the student wrote nothing at the temperature it is scored at."""
        if recipe.rollouts.mixes or recipe.temperature != recipe.sampling.temperature or not signals:
            return cls()
        newest = max((e.judged.rollout.weights_version for s in signals for e in s.batch if _own(e)), default=0)
        ratios = torch.cat([_ratios(s, newest - 1) for s in signals])
        if not len(ratios):
            return cls()
        weights = (-ratios).clamp(-50, 50).exp()
        return cls(
            float(ratios.mean()),
            float(ratios.abs().mean()),
            float(weights.sum() ** 2 / (len(weights) * (weights**2).sum())),
            float((ratios.abs() > FAR).double().mean()),
        )

    def metrics(self) -> dict[str, float]:
        """Columns of metrics.jsonl; names are API."""
        return {
            "sampler_log_ratio": self.log_ratio,
            "sampler_effective_share": self.effective,
            "sampler_far_share": self.far,
        }

    def refuse(self) -> None:
        """Raises ServerError, on all ranks alike, where the gradient would be another policy's."""
        if self.distance > WORST_RATIO or self.effective < LEAST_SIZE or self.far > MOST_FAR:
            error = ServerError(
                f"whoever writes is not who learns: {self.distance:.3f} nats a token apart, effective sample size "
                f"{self.effective:.2f}, {self.far:.2f} of the tokens more than {FAR} apart. The gradient would be "
                "another policy's, and nothing was learnt from this step. Look at the probes in run.log; start again "
                "with --engine hf, without --ahead or with a smaller --lr."
            )
            error.shared = True
            raise error


def _ratios(signal: Signal, oldest: int) -> Tensor:
    """(n,) float64: r of the tokens that count."""
    counts = [_own(e) and e.judged.rollout.weights_version >= oldest for e in signal.batch for _ in e.tokens]
    ratios = (signal.stats.behaviour.double() - signal.stats.student_logp.double()).cpu()
    return ratios[torch.tensor(counts, dtype=torch.bool) & ratios.isfinite()]


def _own(entry: Entry) -> bool:
    """Whether the student wrote it, and it is scored at the temperature it was written at."""
    apart = entry.reading is not None and entry.reading.temperature is not None
    return entry.judged.rollout.author == "student" and entry.judged.rollout.logprobs is not None and not apart
