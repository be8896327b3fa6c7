"""Does the signal teach? Pure functions over recorded tokens and verdicts; nothing here runs a model.

Numbers are averaged inside a problem first and problems are resampled: tokens of one completion, and completions of
one problem, are no independent evidence.
"""

from __future__ import annotations

from workbench.inspector.diagnostics.alignment import (
    MARKERS,
    correctness_alignment,
    heads,
    marker_pressure,
    marker_pressure_split,
    markers,
)
from workbench.inspector.diagnostics.answers import auroc, gate_open, noise_rate, open_probability, reliability
from workbench.inspector.diagnostics.budgets import (
    Generation,
    budget_sweep,
    fork_threshold,
    relative_change,
)
from workbench.inspector.diagnostics.classes import CLASSES, TokenClass, classify, divergence_by_class
from workbench.inspector.diagnostics.contrast import Reshaping, contrast, contrast_by_class
from workbench.inspector.diagnostics.decisions import DECISIONS, Decision
from workbench.inspector.diagnostics.diversity import distinct_answers, distinct_solutions, diversity
from workbench.inspector.diagnostics.gain import accuracy_gap, gain_line
from workbench.inspector.diagnostics.leakage import best_without_context, leakage, mentions, overlap
from workbench.inspector.diagnostics.record import TokenRecord
from workbench.inspector.diagnostics.steps import score_steps, true_thinking_score
from workbench.inspector.diagnostics.where import around_first_error, concentration, concentration_of, drift

__all__ = [
    "CLASSES", "DECISIONS", "MARKERS", "Decision", "Generation", "Reshaping", "TokenClass", "TokenRecord",
    "accuracy_gap", "around_first_error", "auroc", "best_without_context", "budget_sweep", "classify", "concentration",
    "concentration_of", "contrast", "contrast_by_class", "correctness_alignment", "distinct_answers",
    "distinct_solutions", "divergence_by_class", "diversity", "drift", "fork_threshold", "gain_line", "gate_open",
    "heads",
    "leakage", "marker_pressure", "marker_pressure_split", "markers", "mentions", "noise_rate",
    "open_probability", "overlap",
    "relative_change", "reliability", "score_steps", "true_thinking_score",
]  # fmt: skip
