"""From a symptom to what to look at: the decision table, as data.

Every comparison states the thinking mode of the student's rollouts, of the teacher and of the EVALUATION: several
published gains are non-thinking numbers moving towards the same model's thinking mode (arXiv:2609.20512, 2608.31046,
2608.09228).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """One row: what is seen, what tells its cause, and who found it."""

    symptom: str
    look_at: str
    measures: tuple[str, ...]
    """Functions of this package that measure it; empty where other arms or settings must be looked at."""
    sources: tuple[str, ...]


DECISIONS = (
    Decision(
        "loss falls, accuracy flat",
        "train arms without reference, with another problem's, with a wrong answer, and with a constant signal",
        (),
        ("arXiv:2609.20512", "arXiv:2608.18271", "arXiv:2608.09228", "arXiv:2608.31046"),
    ),
    Decision(
        "better at a short budget, worse at a long one",
        "cut the same saved generations at several budgets; count markers",
        ("budget_sweep", "fork_threshold"),
        ("arXiv:2607.05184",),
    ),
    Decision(
        "length grows without end",
        "compare the stop tokens of both roles and the share of cut completions; look at the trend of entropy",
        ("drift",),
        ("arXiv:2609.20511", "arXiv:2606.11709"),
    ),
    Decision(
        "length collapses",
        "sign of the signal and share of tokens where it is positive",
        ("drift", "contrast_by_class", "noise_rate"),
        ("arXiv:2606.11709", "arXiv:2608.31046"),
    ),
    Decision("outputs say 'as the reference says'", "rate of leaks", ("leakage",), ("arXiv:2604.03128",)),
    Decision(
        "pass@1 up, pass@16 flat",
        "curve of pass@k from one pool; different answers and solutions",
        ("diversity",),
        ("arXiv:2606.26091",),
    ),
    Decision(
        "teacher wrong but sure",
        "verify probes of the teacher; noise on answer tokens",
        ("reliability", "noise_rate"),
        ("arXiv:2609.02998", "arXiv:2608.31046"),
    ),
    Decision(
        "signal mostly on style",
        "right against wrong hints by class of token",
        ("contrast_by_class", "divergence_by_class"),
        ("arXiv:2606.11709",),
    ),
)
