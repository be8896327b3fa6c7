"""Which steps of a chain does the answer rest on? The True-Thinking Score (arXiv:2510.24941)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import InputError
from workbench.inspector.diagnostics.record import Floats

TRUE, DECORATIVE = 0.7, 0.005
"""The source's bands: from .7 a step is truly thought, up to .005 it is decoration."""


def true_thinking_score(intact: Sequence[float], perturbed: Sequence[float]) -> float:
    """TTS = (|S1(1) - S0(1)| + |S1(0) - S0(0)|) / 2 of one step.

    S_x(c) = P(final answer | earlier steps intact c = 1 or perturbed c = 0, this step intact x = 1 or perturbed x = 0).

    Args:
        intact: (S1(1), S0(1)): with earlier steps intact, the step intact and perturbed.
        perturbed: (S1(0), S0(0)): the same with earlier steps perturbed.

    Returns:
        0 to 1; 0: nothing about the answer changes with the step.

    Raises:
        InputError: for numbers that are no probabilities.

    Source: arXiv:2510.24941, definition of TTS.
    """
    values = np.array([*intact, *perturbed], dtype=np.float64)
    if values.shape != (4,) or not ((values >= 0) & (values <= 1)).all():
        raise InputError(
            f"a step has the answer's probabilities {values.tolist()[:6]}. Four numbers from 0 to 1 are needed. "
            "Give (step intact, step perturbed) for both contexts."
        )
    return float((abs(values[0] - values[1]) + abs(values[2] - values[3])) / 2)


@dataclass(frozen=True)
class Steps:
    """The scores of a chain's steps."""

    scores: Floats
    """[steps]."""
    mean: float
    """NaN without steps. A compressed model should raise it: decoration goes first."""
    true: float
    """Share of steps with a score of .7 or more."""
    decorative: float
    """Share of steps with a score of .005 or less."""


def score_steps(probabilities: Floats) -> Steps:
    """Scores and bands of a chain from its answer probabilities, [steps, 4] in the order S1(1), S0(1), S1(0), S0(0).

    A wrong chain scores near 0 by construction (the gold answer has no probability): judge right chains apart.
    Raises InputError as `true_thinking_score`. Source: arXiv:2510.24941.
    """
    rows = np.asarray(probabilities, dtype=np.float64).reshape(-1, 4)
    scores = np.array([true_thinking_score(row[:2], row[2:]) for row in rows.tolist()])
    if not scores.size:
        return Steps(scores, float("nan"), float("nan"), float("nan"))
    return Steps(scores, float(scores.mean()), float((scores >= TRUE).mean()), float((scores <= DECORATIVE).mean()))
