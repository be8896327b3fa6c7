"""Schedules that follow what training measured. Each counts optimizer steps, however a step is split."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from workbench.parts.schedules import Adaptive, Clock, Remembered, Seen


@dataclass(frozen=True)
class ShareByProgress(Adaptive):
    """How far the target lies towards the teacher, t in [start, end]. TAID (arXiv:2501.16937, algorithm 1).

    With rel = (L_prev - L) / L_prev the relative fall of the loss and m = decay m + (1 - decay) rel its moving average,
    t grows by rate * sigmoid(m) * (1 - t); a straight line from start to end is a floor. Since sigmoid(m) is near 1/2
    the growth is nearly fixed. Remembers (t, m, L_prev); the first loss is only noted. In the released code every
    micro-batch of an accumulation moves t, and L is the cross-entropy with p_t; here a step moves it once and L is the
    divergence that is shown. It lacks the entropy of p_t, so its relative changes are larger and t grows slower.
    """

    start: float = 0.4
    end: float = 1.0
    rate: float = 5e-4
    decay: float = 0.99
    follows_total: ClassVar[bool] = True

    def initial(self) -> Remembered:
        """(start, 0, unknown)."""
        return self.start, 0.0, math.nan

    def value(self, remembered: Remembered, clock: Clock) -> float:
        """The t reached."""
        return remembered[0]

    def observe(self, remembered: Remembered, clock: Clock, seen: Seen) -> Remembered:
        """Move after a step; an epoch's validation says nothing here."""
        if seen.loss is None or not math.isfinite(seen.loss):
            return remembered
        t, momentum, previous = remembered
        if math.isnan(previous):
            return t, momentum, seen.loss
        fall = (previous - seen.loss) / (previous + 1e-15)
        momentum = self.decay * momentum + (1.0 - self.decay) * fall
        grown = t + self.rate * _sigmoid(momentum) * (1.0 - t)
        floor = self.start + (self.end - self.start) * clock.step / max(1, clock.total)
        return min(self.end, max(floor, grown)), momentum, seen.loss


@dataclass(frozen=True)
class ThresholdByValidation(Adaptive):
    """Probability that the student writes, raised when validation gets worse. DistiLLM (arXiv:2402.03898, section 3.2).

    At the beginning of an epoch, where the validation loss exceeds the one of the last rise (at first the untrained
    student's) by `tolerance`, the threshold goes up by `increase`, at most to 1. Remembers (threshold, loss then).
    """

    start: float = 0.0
    increase: float = 0.1
    tolerance: float = 0.1
    validates = True

    def initial(self) -> Remembered:
        """(start, unknown)."""
        return self.start, math.nan

    def value(self, remembered: Remembered, clock: Clock) -> float:
        """The threshold."""
        return remembered[0]

    def observe(self, remembered: Remembered, clock: Clock, seen: Seen) -> Remembered:
        """Compare where an epoch was validated."""
        if seen.validation is None:
            return remembered
        threshold, before = remembered
        if math.isnan(before):
            return threshold, seen.validation
        if seen.validation < before + self.tolerance:
            return remembered
        return min(1.0, threshold + self.increase), seen.validation


@dataclass(frozen=True)
class ShareByLoss(Adaptive):
    """Share of tokens that are learnt from. AdaKD's loss-driven focusing (arXiv:2510.11615, section 3.1).

    The loss's moving average (decay) is compared with its value at the last change: fallen by more than `tolerance`,
    the share shrinks by `change`, not below `least`; risen by more, it grows, not above 1. Until `warmup` of the run is
    over the share stays 1 and the reference follows. Remembers (share, average, reference).
    """

    tolerance: float = 0.05
    change: float = 0.05
    least: float = 0.1
    decay: float = 0.99
    warmup: float = 0.05
    follows_total: ClassVar[bool] = True

    def initial(self) -> Remembered:
        """(1, unknown, unknown)."""
        return 1.0, math.nan, math.nan

    def value(self, remembered: Remembered, clock: Clock) -> float:
        """The share."""
        return remembered[0]

    def observe(self, remembered: Remembered, clock: Clock, seen: Seen) -> Remembered:
        """Move after a step."""
        if seen.loss is None or not math.isfinite(seen.loss):
            return remembered
        share, average, reference = remembered
        average = seen.loss if math.isnan(average) else self.decay * average + (1.0 - self.decay) * seen.loss
        if clock.step < self.warmup * clock.total or math.isnan(reference):
            return share, average, average
        fall = reference - average
        if fall > self.tolerance * reference:
            return max(share * (1.0 - self.change), self.least), average, average
        if -fall > self.tolerance * reference:
            return min(share * (1.0 + self.change), 1.0), average, average
        return share, average, reference


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
