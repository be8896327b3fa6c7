"""Learning from text alone: what distillation has to beat."""

from __future__ import annotations

from workbench.parts.contexts import question_boxed
from workbench.parts.gates import Correct
from workbench.parts.terms import CrossEntropy
from workbench.parts.writers import FromDataset, OnPolicy
from workbench.recipe import Optimizer, Recipe
from workbench.records import Sampling

SFT = Recipe(
    name="sft",
    paper="baseline of arXiv:2601.18734",
    student=question_boxed,
    rollouts=FromDataset(),
    terms=(CrossEntropy(),),
    sampling=Sampling(max_new_tokens=16384),
    optimizer=Optimizer(lr=2e-5),
    batch=64,
)

REJECTION_SFT = Recipe(
    name="rejection_sft",
    paper="arXiv:2203.14465 (STaR), without rationalisation",
    student=question_boxed,
    rollouts=OnPolicy(per_problem=4),
    gates=(Correct(),),
    terms=(CrossEntropy(),),
    sampling=Sampling(max_new_tokens=1024, temperature=1.0),
    optimizer=Optimizer(lr=1e-5),
    batch=32,
)

RECIPES = (SFT, REJECTION_SFT)
