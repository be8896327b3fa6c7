"""Shorter reasoning from one's own concise mode: OPSDC / CRISP and its instructions."""

from __future__ import annotations

from dataclasses import replace

from workbench.divergence import ReverseKL
from workbench.parts.contexts import concise, concise_percent, concise_v2, concise_words, question_answer_line
from workbench.parts.refresh import every
from workbench.parts.terms import Distill
from workbench.parts.writers import OnPolicy
from workbench.recipe import Optimizer, Recipe
from workbench.records import Sampling

OPSDC = Recipe(
    name="opsdc",
    paper="arXiv:2603.05433",
    student=question_answer_line,
    teacher=concise,
    prompt_only=concise,
    refresh=every(50),  # the paper's M: 1 collapses, 100 is nearly frozen
    rollouts=OnPolicy(),
    terms=(Distill(ReverseKL()),),
    sampling=Sampling(max_new_tokens=8192, temperature=1.0),
    optimizer=Optimizer(lr=1e-6, weight_decay=0.01, max_grad_norm=1.0),
    batch=32,
)


def _instructed(name: str, instruction: object) -> Recipe:
    return replace(OPSDC, name=name, teacher=instruction, prompt_only=instruction)  # type: ignore[arg-type]


OPSDC_V2 = _instructed("opsdc_v2", concise_v2)
OPSDC_PERCENT = _instructed("opsdc_percent", concise_percent(50))
OPSDC_WORDS = _instructed("opsdc_words", concise_words(100))

RECIPES = (OPSDC, OPSDC_V2, OPSDC_PERCENT, OPSDC_WORDS)
