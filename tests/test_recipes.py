"""Every recipe: constructs, prints, is listed, and cannot be put together wrongly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from workbench.divergence import JSD, EntryClipped, ForwardKL, ReverseKL
from workbench.errors import RecipeError
from workbench.parts.contexts import question, with_solution
from workbench.parts.gates import Consensus
from workbench.parts.refresh import FROZEN, LIVE, ema, every
from workbench.parts.schedules import Clock, Linear, Moving
from workbench.parts.terms import CrossEntropy, Distill, SampledReverseKL, by_student, by_teacher
from workbench.parts.writers import ByTeacher, FromDataset, OnPolicy
from workbench.recipe import Optimizer, Recipe
from workbench.recipes import ALL
from workbench.records import Refresh, Sampling

names = pytest.mark.parametrize("name", sorted(ALL))


@names
def test_recipe_answers_the_five_questions(name: str) -> None:
    recipe = ALL[name]
    assert recipe.name == name
    text = recipe.describe()
    for question_ in ("who sees what", "whose weights teach", "who writes", "what is compared", "where it counts"):
        assert question_ in text
    assert " at 0x" not in text, "a description must be the same tomorrow"
    steady = replace(recipe, optimizer=replace(recipe.optimizer, warmup_steps=0))
    assert steady.at(Clock(0, 10)) == steady.at(Clock(9, 10)) or any(kind.__name__ in text for kind in Moving)


@names
def test_recipe_is_a_value(name: str) -> None:
    assert replace(ALL[name]) == ALL[name]
    assert isinstance(hash(ALL[name]), int)


def test_defaults_are_the_papers() -> None:
    """arXiv:2601.18734 v3 and v1, 2603.05433, 2602.20574."""
    opsd, opsdc, gates = ALL["opsd"], ALL["opsdc"], ALL["gates"]
    assert opsd.terms == (Distill(EntryClipped(ForwardKL(), ceiling=0.05)),)
    assert opsd.sampling == Sampling(1024, temperature=1.1, top_p=0.95, top_k=20)
    assert (opsd.optimizer.lr, opsd.optimizer.max_grad_norm, opsd.batch, opsd.adapter) == (
        5e-6,
        0.1,
        32,
        "lora:r=64,alpha=128",
    )
    assert opsd.refresh == FROZEN
    assert ALL["opsd_v1"].terms == (Distill(JSD(teacher_weight=0.5)),)
    assert ALL["opsd_sampled"].terms == (SampledReverseKL(),)
    assert opsdc.terms == (Distill(ReverseKL()),)
    assert opsdc.refresh == Refresh(every=50, rate=1.0)
    assert (opsdc.optimizer.lr, opsdc.optimizer.weight_decay, opsdc.sampling.max_new_tokens) == (1e-6, 0.01, 8192)
    assert opsdc.gates == (), "no labels anywhere"
    assert gates.gates == (Consensus(votes=4),)
    assert gates.refresh == LIVE
    assert gates.terms == (CrossEntropy(where=by_teacher), SampledReverseKL(coef=0.1, where=by_student, clip=5.0))
    assert ALL["gates_ungated"] == replace(gates, name="gates_ungated", gates=())


def test_controls_differ_from_opsd_in_what_the_teacher_sees_alone() -> None:
    for name in ("opsd_no_reference", "opsd_other_problem", "opsd_wrong_answer"):
        control = ALL[name]
        assert replace(control, name="opsd", paper=ALL["opsd"].paper, teacher=with_solution) == ALL["opsd"]
        assert "solution" not in control.teacher.needs


def test_refresh_moves_after_every_mth_step_only() -> None:
    """OPSDC: with M = 3 the teacher equals the student right after updates 3, 6 and 9."""
    assert [s for s in range(10) if every(3).due(s)] == [3, 6, 9]
    assert not any(FROZEN.due(s) for s in range(100))
    assert (ema(0.999).every, ema(0.999).rate) == (1, pytest.approx(0.001))
    with pytest.raises(ValueError, match="rate"):
        Refresh(1, 1.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": ()}, "has no terms"),
        ({"teacher": None}, "Distill compares with a teacher, but `teacher` is None"),
        ({"rollouts": ByTeacher(), "terms": (CrossEntropy(),), "teacher": None}, "the teacher writes"),
        ({"terms": (Distill(ReverseKL(), where=by_teacher),)}, "counts rollouts by_teacher, but only student write"),
        ({"rollouts": FromDataset(), "terms": (Distill(ReverseKL(), where=by_student),)}, "only dataset write"),
        ({"sampling": Sampling(temperature=0.0)}, "temperature 0"),
    ],
)
def test_a_recipe_that_cannot_run_does_not_construct(changes: dict, message: str) -> None:
    sound = {"name": "oops", "paper": "-", "teacher": with_solution, "terms": (Distill(ReverseKL()),)}
    Recipe(**sound)
    with pytest.raises(RecipeError, match=message):
        Recipe(**{**sound, **changes})


def test_needs_follow_contexts_and_writers() -> None:
    assert "solution" in ALL["opsd"].requires
    assert "solution" not in ALL["opsdc"].requires
    assert "document" in ALL["gates"].requires
    assert "solution" in ALL["sft"].requires


def test_schedules_are_resolved_in_nested_parts() -> None:
    recipe = Recipe(
        name="kd_then_rl",
        paper="-",
        teacher=with_solution,
        student=question,
        rollouts=OnPolicy(4),
        terms=(Distill(ReverseKL(), coef=Linear(1.0, 0.0)),),
        optimizer=Optimizer(lr=Linear(0.0, 1e-4)),
    )
    assert recipe.at(Clock(0, 3)).terms[0].coef == 1.0
    assert recipe.at(Clock(2, 3)).terms[0].coef == 0.0
    assert recipe.at(Clock(1, 3)).optimizer.lr == pytest.approx(5e-5)


def test_optimizer_refuses_what_cannot_train() -> None:
    with pytest.raises(RecipeError, match="learning rate lies"):
        Optimizer(lr=3.0)
    with pytest.raises(RecipeError, match="must be positive"):
        Optimizer(max_grad_norm=0.0)
