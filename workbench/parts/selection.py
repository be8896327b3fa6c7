"""Which tokens of a step count, where one token does not suffice to tell: plans that set weights and temperatures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from workbench.divergence.tempering import token_temperatures
from workbench.errors import RecipeError
from workbench.parts.measures import Hellinger, Measure, Overlap, RankOfFavourite
from workbench.parts.plans import Asked, PlanBase, Reading, Sets
from workbench.parts.schedules import Scalar

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.records import Judged


@dataclass(frozen=True)
class EarlyDisagreement(PlanBase):
    """w_t = 1 + strength (1 - sum_{s<t} |A_s| / sum |A|): early disagreement counts more. IW-OPD, as in TRL 1.16."""

    strength: float = 0.5

    def one(self, reading: Reading) -> Reading:
        """From the rollout's advantages; all zero leaves the weights alone."""
        size = reading.advantage.abs()
        total = size.sum()
        if float(total) == 0.0:
            return reading
        before = size.cumsum(0) - size
        return replace(reading, weight=reading.weight * (1.0 + self.strength * (1.0 - before / total)))


@dataclass(frozen=True)
class HighestEntropy(PlanBase):
    """Keep the `share` of a rollout's tokens with the highest entropy, at least one; ties keep the earlier token.

    An option of revisiting_opd (arXiv:2603.25562, `entropy_top_ratio`), not of the paper's method.
    """

    share: Scalar = 0.2
    of: Literal["student", "teacher"] = "student"
    asks: ClassVar[frozenset[Asked]] = frozenset({"entropies"})

    def one(self, reading: Reading) -> Reading:
        """0 or the weight."""
        entropy = reading.student_entropy if self.of == "student" else reading.teacher_entropy
        assert entropy is not None
        return replace(reading, weight=reading.weight * _top(entropy, self.share))


@dataclass(frozen=True)
class WithoutOutliers(PlanBase):
    """Drop the `share` of the step's tokens whose |log p_T - log p_S| is largest; ties keep the earlier token."""

    share: float = 0.05

    def __call__(self, step: Sequence[Reading]) -> list[Reading]:
        """Among all tokens of the step that still count."""
        return _selected(step, [-reading.log_ratio.abs() for reading in step], 1.0 - self.share, least=0)


@dataclass(frozen=True)
class WithoutFirst(PlanBase):
    """Drop the first token of each rollout that reads as one of `texts`. Fu et al. (arXiv:2603.25562), section 4.3.

    Templates split "<think>" differently, so what the roles disagree on there is not the task.
    """

    texts: tuple[str, ...] = ("<", "think", "<|im_end|>")
    asks: ClassVar[frozenset[Asked]] = frozenset({"texts"})

    def one(self, reading: Reading) -> Reading:
        """0 or the weight."""
        weight = reading.weight.clone()
        for text in self.texts:
            if text in reading.texts:
                weight[reading.texts.index(text)] = 0.0
        return replace(reading, weight=weight)


@dataclass(frozen=True)
class TeacherAgrees(PlanBase):
    """SelecTKD (arXiv:2510.24021): full weight where the teacher accepts what the student would write, else `rejected`.

    `by` "top_k": the student's likeliest entry is among the teacher's `k` likeliest. `by` "speculation": one of `k`
    draws from the student is accepted, each with probability min(1, p_T / p_S); drawn as one event of probability
    1 - (1 - overlap)^k from numbers that belong to the rollout. Rejected tokens stay in the denominator, as published.
    """

    by: Literal["top_k", "speculation"] = "top_k"
    k: int = 5
    rejected: float = 0.01

    def __post_init__(self) -> None:
        """Refuse what selects nothing. Raises RecipeError."""
        if self.k < 1 or not 0.0 <= self.rejected <= 1.0:
            raise RecipeError(
                f"TeacherAgrees(k={self.k}, rejected={self.rejected}) selects nothing. Use k >= 1, rejected in [0, 1]."
            )

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The rank, or the overlap."""
        return (RankOfFavourite(),) if self.by == "top_k" else (Overlap(),)

    def one(self, reading: Reading) -> Reading:
        """The weight, or `rejected` of it."""
        (measure,) = self.measures
        found = reading.measured[measure]
        chance = 1.0 - (1.0 - found) ** self.k
        accepted = found < self.k if self.by == "top_k" else _uniforms(reading.judged) < chance
        return replace(reading, weight=torch.where(accepted, reading.weight, reading.weight * self.rejected))


@dataclass(frozen=True)
class Hardest(PlanBase):
    """Keep the `share` of the step's tokens with the largest Hellinger distance, at least one.

    AdaKD (arXiv:2510.11615), here among the whole step: the released code selects in each micro-batch of each process.
    """

    share: Scalar = 1.0

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The distance."""
        return (Hellinger(),)

    def __call__(self, step: Sequence[Reading]) -> list[Reading]:
        """Weights sum to the number of tokens the step had, so the loss is the mean over those that stay."""
        kept = _selected(step, [reading.measured[Hellinger()] for reading in step], self.share, least=1)
        before, after = _mass(step), _mass(kept)
        return [replace(r, weight=r.weight * (before / after)) for r in kept] if after > 0 else kept


@dataclass(frozen=True)
class TemperatureByDifficulty(PlanBase):
    """Temperature base * exp(-strength tanh(log(s / median s))) a token: hard tokens get a lower one. AdaKD (same).

    s is the Hellinger distance at the sampling temperature, the median the lower one among tokens that count. Detached
    (the released code lets the gradient leak through s), and the loss is multiplied by the temperature's square.
    """

    base: float = 1.0
    strength: Scalar = 0.5
    sets: ClassVar[frozenset[Sets]] = frozenset({"temperature", "weight"})

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The distance."""
        return (Hellinger(),)

    def __call__(self, step: Sequence[Reading]) -> list[Reading]:
        """A temperature for every token."""
        assert isinstance(self.strength, (int, float)), "Recipe.at has replaced schedules by numbers"
        counts = torch.cat([reading.weight > 0 for reading in step])
        if not bool(counts.any()):
            return list(step)
        difficulty = torch.cat([reading.measured[Hellinger()] for reading in step])
        temperatures = token_temperatures(difficulty, self.base, self.strength, counts)
        out = []
        for reading, temperature in zip(step, torch.split(temperatures, [len(r.weight) for r in step]), strict=True):
            out.append(replace(reading, temperature=temperature, weight=reading.weight * temperature**2))
        return out


def _top(values: Tensor, share: Scalar) -> Tensor:
    """1 for the floor(share n) largest (at least one), else 0."""
    assert isinstance(share, (int, float)), "Recipe.at has replaced schedules by numbers"
    k = max(1, math.floor(share * len(values) + 1e-9))
    chosen = torch.zeros_like(values)
    chosen[values.argsort(descending=True, stable=True)[:k]] = 1.0
    return chosen


def _selected(step: Sequence[Reading], values: Sequence[Tensor], share: Scalar, least: int) -> list[Reading]:
    """Zero weight for all but the floor(share N) tokens of largest value, among those that count."""
    assert isinstance(share, (int, float)), "Recipe.at has replaced schedules by numbers"
    if not step:
        return []
    alive = torch.cat([reading.weight for reading in step]) > 0
    joined = torch.cat(list(values)).masked_fill(~alive, -math.inf)
    k = max(least, math.floor(share * int(alive.sum()) + 1e-9))
    mask = torch.zeros_like(joined)
    mask[joined.argsort(descending=True, stable=True)[:k]] = 1.0
    pieces = torch.split(mask, [len(v) for v in values])
    return [replace(r, weight=r.weight * piece) for r, piece in zip(step, pieces, strict=True)]


def _mass(step: Sequence[Reading]) -> float:
    return float(sum(float(reading.weight.sum()) for reading in step))


def _uniforms(judged: Judged) -> Tensor:
    """(n,) numbers in [0, 1) that belong to the rollout, so that nothing else changes them."""
    rollout = judged.rollout
    key = f"{rollout.problem.id}/{rollout.author}/{rollout.index}/{rollout.weights_version}/{rollout.tokens}"
    seed = int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:7], "big")
    return torch.rand(len(rollout.tokens), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
