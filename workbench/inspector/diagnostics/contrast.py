"""Does the teacher know the answer, or only another style? A right hint against wrong ones (RLCSD, arXiv:2606.11709).

What a wrong hint moves as much as a right one carries no information about the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError, UsageError
from workbench.inspector.diagnostics.classes import CLASSES, TokenClass
from workbench.inspector.diagnostics.record import Floats, TokenRecord, by_problem
from workbench.train.intervals import Estimate, bootstrap_mean


def contrast(right_logp: Floats, wrong_logp: Floats) -> Floats:
    """e_t = log p_T(y_t | right hint) - [logsumexp_k log p_T(y_t | wrong hint k) - log K], nats.

    The wrong hints are a mixture of probabilities: the mean of their logs is another, larger number.

    Args:
        right_logp: log-probs of the written tokens under the right hint, nats, [n].
        wrong_logp: the same under K wrong hints, [K, n].

    Returns:
        [n].

    Raises:
        InputError: without a wrong hint, or where the shapes do not fit.

    Source: arXiv:2606.11709, the contrastive signal.
    """
    right, wrong = np.asarray(right_logp, dtype=np.float64), np.asarray(wrong_logp, dtype=np.float64)
    if wrong.ndim != 2 or not len(wrong) or wrong.shape[1:] != right.shape:
        raise InputError(
            f"wrong hints of shape {wrong.shape} beside {right.shape} tokens. A contrast needs a row of log-probs "
            "for every wrong hint. Give an array [hints, tokens]."
        )
    return right - (np.logaddexp.reduce(wrong, axis=0) - np.log(len(wrong)))


@dataclass(frozen=True)
class Reshaping:
    """How the source turns e_t into a change of advantage: r = clip(strength * tanh(e / width), -most, most).

    A token with |r| > least is selected. The shipped width saturates: any |e| above 8e-4 nats is selected with
    |r| near strength, and the method only looks at signs. `selected` shows how much of a signal is taken that way.
    Raises UsageError for settings that are not positive, or a `least` that nothing can exceed.
    Source: arXiv:2606.11709, its published configuration.
    """

    width: float = 0.02
    """Nats."""
    strength: float = 0.5
    least: float = 0.02
    most: float = 2.0
    selected_weight: float = 1.0
    """Of the mean over selected tokens, beside the mean over the others."""

    def __post_init__(self) -> None:
        """Check the settings."""
        positive = (self.width, self.strength, self.least, self.most, self.selected_weight)
        if min(positive) <= 0 or self.least >= min(self.strength, self.most):
            raise UsageError(
                f"{self} selects nothing. Its numbers are positive and least is the smallest. Lower least."
            )

    def signal(self, e: Floats) -> Floats:
        """The change of advantage r, [n]."""
        return np.clip(self.strength * np.tanh(np.asarray(e) / self.width), -self.most, self.most)

    def reshaped(self, advantage: Floats | float, e: Floats) -> Floats:
        """A' = A + r(e), held on A's side of zero: the contrast may weaken a verdict, never turn it; [n]."""
        a = np.asarray(advantage, dtype=np.float64)
        moved = a + self.signal(e)
        return np.where(a > 0, np.maximum(moved, 0.0), np.where(a < 0, np.minimum(moved, 0.0), 0.0))

    @property
    def threshold(self) -> float:
        """Smallest |e| that is selected: width * atanh(least / strength), nats."""
        return self.width * math.atanh(self.least / self.strength)

    def takes(self, e: Floats) -> NDArray[np.bool_]:
        """Which tokens are selected, [n]."""
        return np.abs(self.signal(e)) > self.least

    def selected(self, e: Floats) -> float:
        """Share of tokens that are selected, 0 to 1; NaN of none."""
        taken = self.takes(e)
        return float(taken.mean()) if taken.size else math.nan

    def weights(self, e: Floats) -> Floats:
        """Each token's weight in `loss`, [n]: 1 over the number of its kind, times selected_weight if selected.

        Two means, not one: a lone token that is not selected weighs as much as all selected ones together.
        """
        taken = self.takes(e)
        return np.where(taken, self.selected_weight / max(taken.sum(), 1), 1 / max((~taken).sum(), 1))

    def weight_of_others(self, e: Floats) -> float:
        """What a token that is not selected weighs beside one that is; NaN where there is but one kind."""
        taken, weights = self.takes(e), self.weights(e)
        return float(weights[~taken][0] / weights[taken][0]) if 0 < taken.sum() < taken.size else math.nan

    def loss(self, advantage: Floats | float, e: Floats, ratio: Floats | float = 1.0, clip: float = 0.2) -> float:
        """-[mean over the others of P(A) + selected_weight * mean over the selected of P(A')], no mean of no token.

        P(a) = min(ratio * a, clip(ratio, 1 - clip, 1 + clip) * a) is PPO's; `ratio` is of probabilities, new over
        old, one or [n]. Source: arXiv:2606.11709, its published code.
        """
        a = np.where(self.takes(e), self.reshaped(advantage, e), advantage)
        surrogate = np.minimum(ratio * a, np.clip(ratio, 1 - clip, 1 + clip) * a)
        return -float((self.weights(e) * surrogate).sum())

    def saturated(self, e: Floats) -> float:
        """Share of tokens whose |r| is within 1 % of its bound, 0 to 1: of e only the sign is left; NaN of none."""
        size = np.abs(self.signal(e))
        return float((size > 0.99 * min(self.strength, self.most)).mean()) if size.size else math.nan


@dataclass(frozen=True)
class ClassContrast:
    """One class of tokens under right and wrong hints; nats a token, averaged by problem."""

    name: TokenClass
    tokens: int
    right: Estimate
    """Mean |log p_T(right hint) - log p_S|: how far the right hint moves the class."""
    contrast: Estimate
    """Mean |e_t|: how far it moves it beyond what wrong hints do."""


def contrast_by_class(
    records: Sequence[TokenRecord],
    wrong_logp: Sequence[Floats],
    classes: Sequence[Sequence[TokenClass]],
    *,
    seed: int = 0,
) -> tuple[ClassContrast, ...]:
    """Mean size of the signal by class of token, with and without the wrong-hint control; counted tokens only.

    Args:
        records: completions whose teacher was shown the right hint.
        wrong_logp: for each, log-probs under K wrong hints, nats, [K, n].
        classes: for each, the classes of its tokens, [n].
        seed: of the resampling of problems.

    Returns:
        A row a class. Style whose `right` is large and whose `contrast` is near 0 is signal about nothing.

    Raises:
        InputError: as `contrast`.

    Source: arXiv:2606.11709: .263 nats on style tokens, .083 on others, before the contrast.
    """
    signals = [contrast(r.teacher_logp, wrong) for r, wrong in zip(records, wrong_logp, strict=True)]
    rows = []
    for name in CLASSES:
        pairs = zip(records, classes, strict=True)
        masks = [np.array([c == name for c in kinds], dtype=np.bool_) & r.counted for r, kinds in pairs]
        moved = [mean_of(np.abs(r.difference[mask])) for r, mask in zip(records, masks, strict=True)]
        beyond = [mean_of(np.abs(e[mask])) for e, mask in zip(signals, masks, strict=True)]
        estimates = [
            bootstrap_mean(by_problem(records, values), seed=seed, unit="nat/token") for values in (moved, beyond)
        ]
        rows.append(ClassContrast(name, int(sum(mask.sum() for mask in masks)), *estimates))
    return tuple(rows)


def mean_of(values: Floats) -> float | None:
    """None of nothing, which leaves the denominator."""
    return float(values.mean()) if values.size else None
