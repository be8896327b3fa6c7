"""The recipes as set for the model that comes in a package: 135M parameters on two CPU cores in minutes.

The papers trained models from 1.7B on. What differs here was found by experiment on sums of two numbers (docs/log.md,
2026-11-24): with every published teacher wording this model takes over the teacher's *style* long before its answers,
and its accuracy falls. With the solution in a system message before the student's own prompt the style stays and
the answers come over. Rollouts near the mode (`top_p` 0.6) keep the answer among the tokens that are scored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from workbench.divergence import ForwardKL
from workbench.parts.contexts import (
    concise_of,
    question,
    question_v1,
    told_solution,
    told_solution_of_another,
    told_wrong_answer,
)
from workbench.parts.curricula import BetaKernel
from workbench.parts.schedules import Growing
from workbench.parts.terms import Distill
from workbench.parts.writers import OnPolicy
from workbench.recipe import Optimizer, Recipe
from workbench.recipes import compression, controls, on_policy, outcome, self_distillation, white_box
from workbench.records import Context, Sampling


@dataclass(frozen=True)
class Setting:
    """A recipe for one model, and the job it was set for."""

    recipe: Recipe
    problems: str = "sums"
    steps: int = 20
    eval_tokens: int | None = None
    """Tokens an evaluated completion may have; None: as many as a rollout."""


_OPTIMIZER = Optimizer(lr=3e-5, warmup_steps=2, max_grad_norm=1.0)
_OPSD = replace(
    self_distillation.OPSD,
    student=question_v1,
    teacher=told_solution,
    prompt_only=question_v1,  # without the solution nothing is left of the teacher's context but the student's
    terms=(Distill(ForwardKL()),),
    sampling=Sampling(max_new_tokens=16, temperature=1.0, top_p=0.6),
    optimizer=_OPTIMIZER,
    batch=16,
    adapter=None,
)


def _as_opsd(recipe: Recipe, teacher: Context = told_solution) -> Setting:
    same = {"student", "prompt_only", "sampling", "optimizer", "batch", "adapter"}
    return Setting(replace(recipe, teacher=teacher, **{name: getattr(_OPSD, name) for name in same}), eval_tokens=32)


def _brief(recipe: Recipe) -> Setting:
    """Sums worked out step by step, where the student is verbose; the instruction stands before the question."""
    assert recipe.teacher is not None
    concise = concise_of(question, recipe.teacher)  # type: ignore[arg-type]
    small = replace(
        recipe,
        student=question,
        teacher=concise,
        prompt_only=concise,
        sampling=Sampling(max_new_tokens=80, temperature=1.0),
        optimizer=_OPTIMIZER,
        batch=16,
    )
    return Setting(small, problems="sums:terms=2,maximum=30,wording=verbose", steps=10)


def _small(recipe: Recipe, tokens: int, batch: int) -> Setting:
    sampling = replace(recipe.sampling, max_new_tokens=tokens, top_p=0.9)
    return Setting(
        replace(recipe, student=question, sampling=sampling, optimizer=_OPTIMIZER, batch=batch, adapter=None)
    )


def _taught(recipe: Recipe, **changes: object) -> Setting:
    """Another model teaches the same sums, both asked plainly. Steps, batch and lengths as OPSD's, to be compared."""
    small = replace(
        recipe,
        student=question_v1,
        teacher=question_v1,
        sampling=Sampling(max_new_tokens=16, temperature=1.0, top_p=0.6),
        optimizer=_OPTIMIZER,
        batch=16,
        adapter=None,
        **changes,  # type: ignore[arg-type]
    )
    return Setting(small, eval_tokens=32)


_CHANGED: dict[str, dict[str, object]] = {
    "opd": {"rollouts": OnPolicy(), "reduction": "token"},
    "fast_opd": {"rollouts": OnPolicy(horizon=Growing(start=4, increase=1, limit=16))},
    "paced": {"curriculum": BetaKernel(rollouts=2)},
}
"""Groups of four and sums over 4,096 tokens are for larger machines."""


def _rewarded(recipe: Recipe) -> Setting:
    """The same sums in groups: four problems a step, and no nucleus, since a group needs variety to say anything."""
    small = replace(
        recipe,
        student=question_v1,
        teacher=recipe.teacher and (question_v1 if recipe.refresh.external else told_solution),
        sampling=Sampling(max_new_tokens=16, temperature=1.0),
        optimizer=_OPTIMIZER,
        batch=4,
    )
    return Setting(small, eval_tokens=32)


SMOLLM2 = {
    # Evaluated with more room than rollouts have: a gain must not come from learning where the cut is.
    "opsd": Setting(_OPSD, eval_tokens=32),
    "opsd_v1": _as_opsd(self_distillation.OPSD_V1),
    "opsd_sampled": _as_opsd(self_distillation.OPSD_SAMPLED),
    "opsd_no_reference": _as_opsd(replace(self_distillation.OPSD_NO_REFERENCE, terms=_OPSD.terms), question_v1),
    "opsd_other_problem": _as_opsd(
        replace(self_distillation.OPSD_OTHER_PROBLEM, terms=_OPSD.terms), told_solution_of_another
    ),
    "opsd_wrong_answer": _as_opsd(replace(self_distillation.OPSD_WRONG_ANSWER, terms=_OPSD.terms), told_wrong_answer),
    **{recipe.name: _brief(recipe) for recipe in compression.RECIPES},
    "gates": _small(self_distillation.GATES, 32, 2),
    "gates_ungated": _small(self_distillation.GATES_UNGATED, 32, 2),
    "sft": _small(controls.SFT, 64, 16),
    "rejection_sft": _small(controls.REJECTION_SFT, 24, 8),
    **{
        recipe.name: _taught(recipe, **_CHANGED.get(recipe.name, {}))
        for recipe in (*white_box.RECIPES, *on_policy.RECIPES)
    },
    **{recipe.name: _rewarded(recipe) for recipe in outcome.RECIPES},
}
