"""Does the student speak of a text it was never shown? And how much of the loss it can never reach.

A teacher that reads c knows things about the next token that no student without c can know: I(y_t; c | s) nats of a
forward divergence stay whatever is trained, and what is left to learn is to talk like somebody who reads c
(RLSD, arXiv:2604.03128).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from workbench.errors import UsageError
from workbench.inspector.diagnostics.classes import runs
from workbench.inspector.diagnostics.record import Floats, same_problems
from workbench.train.intervals import Estimate, bootstrap_mean, bootstrap_share

_SHOWN = r"(?:reference|given|provided|official|sample|model|above|worked)"
_TEXT = r"(?:solution|answer|reasoning|proof|derivation|explanation)"
PHRASES = (
    rf"\b(?:the|this|that|your)\s+{_SHOWN}\s+{_TEXT}\b",
    rf"\b(?:as|like)\s+(?:the|in\s+the)\s+(?:{_SHOWN}\s+)?(?:{_TEXT}|reference)\s+(?:states?|says?|shows?|does|suggests?|indicates?|notes?)\b",
    rf"\b(?:according\s+to|based\s+on|following|matches|consistent\s+with)\s+the\s+(?:{_SHOWN}\s+)?(?:{_TEXT}|reference)\b",
    r"\bthe\s+reference\s+(?:states?|says?|shows?|uses?|gives?)\b",
)
"""Ways to speak of a text one was shown. A reconstruction: the source does not publish its detector."""
_SPEAKS = re.compile("|".join(PHRASES), re.IGNORECASE)


def mentions(text: str, question: str = "") -> tuple[str, ...]:
    """What in an output speaks of an unseen text, as written; phrases that stand in the question are no leak."""
    asked = " ".join(question.lower().split())
    found = (m[0] for m in _SPEAKS.finditer(text))
    return tuple(phrase for phrase in found if " ".join(phrase.lower().split()) not in asked)


@dataclass(frozen=True)
class Leakage:
    """How much of the privileged text shows in outputs whose prompt did not hold it."""

    phrases: Estimate
    """Outputs that speak of an unseen text, per 1,000 outputs."""
    overlap: Estimate | None
    """Share of an output's runs of words that stand in its own privileged text minus the share that stand in an
    unrelated one: -1 to 1, 0 without a leak. None without privileged texts."""


def leakage(
    outputs: Mapping[str, Sequence[str]],
    privileged: Mapping[str, str] | None = None,
    unrelated: Mapping[str, str] | None = None,
    *,
    questions: Mapping[str, str] | None = None,
    words: int = 4,
    seed: int = 0,
) -> Leakage:
    """Rate of phrases that speak of a reference, and overlap with it beyond what any solution has.

    Args:
        outputs: problem -> completions written WITHOUT the privileged text in the prompt.
        privileged: problem -> what the teacher was shown.
        unrelated: problem -> the privileged text of another problem, the control. Needed with `privileged`.
        questions: problem -> what was asked: its own words are no leak, in phrases and in runs.
        words: length of a run.
        seed: of the resampling of problems.

    Returns:
        Both measures with intervals from resampling problems.

    Raises:
        UsageError: for privileged texts without a control.
        InputError: where the texts are not about the same problems.

    Source: RLSD (arXiv:2604.03128) reports the symptom; this detector is a reconstruction.
    """
    asked = questions or {}
    rate = bootstrap_share(mentioning(outputs, asked), seed=seed)
    phrases = Estimate(1000 * rate.value, 1000 * rate.low, 1000 * rate.high, rate.n, "per 1,000 outputs")
    if privileged is None:
        return Leakage(phrases, None)
    if unrelated is None:
        raise UsageError(
            "overlap with the privileged text has no control. Any two solutions share words. Give `unrelated` too."
        )
    same_problems(outputs, privileged)
    same_problems(outputs, unrelated)
    excess = {
        key: [
            overlap(text, privileged[key], asked.get(key, ""), words)
            - overlap(text, unrelated[key], asked.get(key, ""), words)
            for text in texts
        ]
        for key, texts in outputs.items()
    }
    return Leakage(phrases, bootstrap_mean(excess, seed=seed))


def mentioning(outputs: Mapping[str, Sequence[str]], questions: Mapping[str, str]) -> dict[str, list[float]]:
    """Problem -> 1 for an output that speaks of an unseen text, else 0."""
    return {k: [float(bool(mentions(t, questions.get(k, "")))) for t in texts] for k, texts in outputs.items()}


def overlap(text: str, context: str, question: str = "", words: int = 4) -> float:
    """Share of the distinct runs of `words` words of a text, the question's left out, that the context has; 0 to 1."""
    own = runs(text, words) - runs(question, words)
    return len(own & runs(context, words)) / len(own) if own else 0.0


@dataclass(frozen=True)
class Best:
    """What a student without the context can reach at best at one position."""

    distribution: Floats
    """[v], sums to 1."""
    floor: float
    """The divergence that stays, nats."""


def best_without_context(
    rows: Floats, weights: Sequence[float] | None = None, *, direction: Literal["forward", "reverse"] = "forward"
) -> Best:
    """The one distribution that minimises the mean divergence to teachers under several contexts.

    Forward KL(teacher || student): the mixture sum_c w_c p(.|c), floor I(y; c). Reverse KL(student || teacher): the
    normalised geometric mean exp(sum_c w_c log p(y|c)) / Z, floor -log Z.

    Args:
        rows: p(y | c), [contexts, v].
        weights: of the contexts; equal if None; need not sum to 1.
        direction: of the divergence.

    Raises:
        UsageError: for rows or weights that are no probabilities.

    Source: RLSD (arXiv:2604.03128); for several right demonstrations arXiv:2606.26091 (a reconstruction).
    """
    p = np.asarray(rows, dtype=np.float64)
    w = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64)
    if p.ndim != 2 or w.shape != p.shape[:1] or (p < 0).any() or (w < 0).any() or not w.sum() > 0:
        raise UsageError(
            "rows and weights do not fit. A row is a distribution of one context. Give [contexts, v] and [contexts]."
        )
    if not np.allclose(p.sum(-1), 1, atol=1e-6):
        raise UsageError("a row does not sum to 1. It is no distribution. Normalise it first.")
    w = w / w.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(p)
        if direction == "forward":
            mixture = w @ p
            gain = np.where(p > 0, p * (logs - np.log(mixture)), 0.0)
            return Best(mixture, float(w @ gain.sum(-1)))
        unnormalised = np.exp(np.where(w[:, None] > 0, w[:, None] * logs, 0.0).sum(0))
        z = unnormalised.sum()
        return Best(unnormalised / z, float(-np.log(z)))
