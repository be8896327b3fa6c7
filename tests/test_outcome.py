"""Outcome rewards: GRPO and its corrections as TRL 1.16 computes them, and what mixes them with a teacher.

Known answers of one table for all: the surrogate min(rho A_t, clip(rho) A_t), through each recipe's own advantage,
plan, term and reduction.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from tests.board import S3, Written, at_start, step
from tests.test_parts import judged
from verifiers import Verdict
from workbench.errors import RecipeError
from workbench.overrides import choose
from workbench.parts.contexts import question_boxed, with_solution
from workbench.parts.refresh import FROZEN
from workbench.parts.schedules import Clock
from workbench.parts.terms import PolicyGradient
from workbench.parts.writers import OnPolicy
from workbench.recipe import Optimizer
from workbench.recipes import ALL, outcome
from workbench.records import Problem, Rollout, Sampling
from workbench.train.step import State, by_problem, train_step

NAMES = [recipe.name for recipe in outcome.RECIPES]
RATIO = (0.8472978604, -1.3862943611, 0.6931471806)
"""log p_T / p_S along S3."""


def near(value: object, to: float = 1e-9) -> object:
    return pytest.approx(value, abs=to)


def even(n: int, **more) -> Written:
    """n tokens of probability one half."""
    return Written([(0.5, 0.5)] * n, [(0.5, 0.5)] * n, **more)


def objective(recipe, *written: Written) -> float:
    """-sum_t w_t rho_t A_t, read off the gradient: the value that is usually printed for a ratio of 1."""
    found = step(recipe, *written)
    return sum(float(g[:, 0].sum()) / 0.5 for g in found.gradients)


# -- GRPO, Dr. GRPO, DAPO --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("grpo", (), 0.0),
        ("dapo", (), 1 / 3),
        ("dr_grpo", ("sampling.max_new_tokens=8",), 0.125),
        ("dr_grpo", (), 1 / 512),
    ],
)
def test_what_the_loss_is_divided_by(name: str, changes: tuple[str, ...], expected: float) -> None:
    """Lengths 2 (A = 1) and 4 (A = -1), ratio 1."""
    written = even(2, advantage=1.0), even(4, advantage=-1.0)
    assert objective(choose(name, changes), *written) == near(expected, 2e-8), "weights of a token are kept in float32"


def test_advantages_of_the_three() -> None:
    (group,) = by_problem([judged(a, "student", i) for i, a in enumerate(("7", "3", "3", "2"))])
    scaled = [1.49970006] + [-0.49990002] * 3
    for name, expected in (("grpo", scaled), ("dapo", scaled), ("dr_grpo", [0.75, -0.25, -0.25, -0.25])):
        assert [j.advantage for j in ALL[name].advantage(group)] == near(expected, 1e-8)


@pytest.mark.parametrize(("right", "expected"), [(0.05, 0.6634), (0.5, 0.0078), (0.9, 0.4305)])
def test_how_often_a_group_of_eight_says_nothing(right: float, expected: float) -> None:
    total = 0.0
    for result in itertools.product([True, False], repeat=ALL["grpo"].rollouts.per_problem):
        group = [judged("7" if good else "3", "student", i) for i, good in enumerate(result)]
        silent = all(j.advantage == 0.0 for j in ALL["grpo"].advantage(group))
        total += silent * right ** sum(result) * (1 - right) ** (8 - sum(result))
    assert total == near(expected, 5e-5)


@pytest.mark.parametrize(
    ("name", "ratio", "advantage", "passes"),
    [
        ("grpo", 1.19, 1.0, True),
        ("grpo", 1.25, 1.0, False),
        ("dapo", 1.25, 1.0, True),
        ("dapo", 1.29, 1.0, False),
        ("dapo", 0.81, -1.0, True),
        ("dapo", 0.79, -1.0, False),
        ("dapo", 5.0, -1.0, True),
        ("dr_grpo", 1.25, 1.0, False),
    ],
)
def test_clip_ranges(name: str, ratio: float, advantage: float, passes: bool) -> None:
    written = even(1, advantage=advantage, behaviour=(0.5 / ratio,))
    scale = 512 if name == "dr_grpo" else 1
    assert scale * objective(ALL[name], written) == near(-advantage * ratio * passes, 1e-6)


def test_a_ceiling_bounds_what_the_clip_leaves_open() -> None:
    """TRL's delta: at a negative advantage the clip lets any ratio above 1 through."""
    capped = replace(ALL["grpo"], terms=(PolicyGradient(correction="clipped", ceiling=4.0),))
    assert objective(capped, even(1, advantage=-1.0, behaviour=(0.1,))) == near(0.0)
    assert objective(capped, even(1, advantage=-1.0, behaviour=(0.25,))) == near(2.0, 1e-6)


def test_as_published() -> None:
    for name in ("grpo", "dr_grpo", "dapo"):
        recipe = ALL[name]
        assert recipe.rollouts == OnPolicy(per_problem=8)
        assert (recipe.sampling.max_new_tokens, recipe.sampling.temperature, recipe.optimizer.lr) == (512, 1.0, 1e-6)
        assert (recipe.teacher, recipe.gates, recipe.plans) == (None, (), ()), "neither dynamic sampling nor shaping"
    assert ALL["dapo"].terms[0].clip_above == 0.28
    assert [ALL[n].reduction for n in ("grpo", "dr_grpo", "dapo")] == ["sequence", "limit", "token"]
    external = [name for name in NAMES if ALL[name].refresh.external]
    assert external == ["kdrl", "kdrl_mask", "srpo", "hdpo", "trrd", "opd_then_rl", "tgopd"]
    assert all(ALL[name].teacher == ALL[name].student == question_boxed for name in external)
    assert ALL["rlsd"].teacher == with_solution


# -- one surrogate ---------------------------------------------------------------------------------------------------

GROUPS = (
    Written(*S3, status="correct", advantage=1.0, problem="mixed"),
    Written(*S3, status="wrong", advantage=-1.0, problem="mixed"),
    Written(*S3, status="wrong", advantage=0.0, problem="hopeless"),
    Written(*S3, status="error", advantage=0.0, problem="hopeless"),
    Written(*S3, status="error", advantage=0.0, problem="unjudged"),
)
BETA = 5e-3
TABLE = {
    # how much of the rollout's own advantage and how much of d each of the five gets
    "kdrl": ((1, 1, 1, 1, 1), (BETA, BETA, BETA, BETA, BETA)),
    "kdrl_mask": ((1, 1, 1, 1, 1), (0, BETA, BETA, 0, 0)),
    "srpo": ((1, 0, 0, 0, 0), (0, 1, 1, 0, 0)),
    "hdpo": ((1, 1, 1, 1, 1), (0, 0, BETA, BETA, 0)),
    "opd_then_rl": ((0, 0, 0, 0, 0), (1, 1, 1, 1, 1)),
    "tgopd": ((0, 0, 0, 0, 0), (1, 1, 1, 1, 1)),
}


@pytest.mark.parametrize("name", TABLE)
def test_advantages_of_the_mixed_methods(name: str) -> None:
    own, taught = TABLE[name]
    expected = [a * w.advantage + b * d for a, b, w in zip(own, taught, GROUPS, strict=True) for d in RATIO]
    assert step(ALL[name], *GROUPS).advantages() == near(expected)
    assert step(ALL[name], *GROUPS[::-1]).advantages()[:3] == near(expected[-3:]), "whatever the order"


def test_the_weights_move_as_published() -> None:
    betas = [at_start(ALL["kdrl"], 281, k).plans[0].teacher for k in (0, 140, 280)]
    assert betas == near([5e-3, 3e-3, 1e-3])
    switch = [at_start(ALL["opd_then_rl"], 200, k).plans[0] for k in (59, 60)]
    assert [(plan.reward, plan.teacher) for plan in switch] == [(0.0, 1.0), (1.0, 0.0)]


@pytest.mark.parametrize(
    ("advantage", "d", "expected"), [(1.0, 0.5, 1.2), (-1.0, 0.5, -0.8), (1.0, -0.5, 0.8), (-1.0, -0.5, -1.2)]
)
def test_the_reward_gives_the_sign_and_the_teacher_the_size(advantage: float, d: float, expected: float) -> None:
    p = 0.3 * math.exp(d)
    written = Written([(p, 1 - p)], [(0.3, 0.7)], advantage=advantage)
    assert step(choose("rlsd", ("plans.0.share=1.0",)), written).advantages() == near([expected])
    assert step(ALL["rlsd"], written).advantages() == near([(advantage + expected) / 2]), "half of it by default"


@pytest.mark.parametrize(("sign", "d", "weight"), [(1, 0.1, 1.1051709181), (-1, 0.1, 0.9048374180), (1, 0.5, 1.2)])
def test_size_of_a_small_difference(sign: float, d: float, weight: float) -> None:
    p = 0.3 * math.exp(d)
    written = Written([(p, 1 - p)], [(0.3, 0.7)], advantage=sign)
    assert step(choose("rlsd", ("plans.0.share=1.0",)), written).advantages() == near([sign * weight])


@pytest.mark.parametrize(("weight", "ratio"), [(0.0, 1.5), (0.5, 0.8660254038), (1.0, 0.5)])
def test_a_ratio_taken_against_the_teacher(weight: float, ratio: float) -> None:
    """p_S 0.3, p_old 0.2, p_T 0.6; the clip is opened so that the ratio is seen."""
    recipe = choose("trrd", (f"terms.0.teacher_weight={weight}", "terms.0.clip=9.0"))
    written = Written([(0.6, 0.4)], [(0.3, 0.7)], behaviour=(0.2,), advantage=1.0)
    gradient = step(recipe, written).gradients[0][0]
    assert gradient.tolist() == near([-ratio * 0.7, ratio * 0.7], 1e-6)  # a behaviour is kept in float32
    with pytest.raises(RecipeError, match="is a part of the ratio"):
        PolicyGradient(teacher_weight=0.5)


def test_the_teacher_pulls_where_rewards_say_nothing() -> None:
    """HDPO: after a step on a hopeless group the student is nearer to the teacher; GRPO stands still there."""
    hopeless = [Written(*S3, status="wrong", problem="h") for _ in range(2)]
    pull = step(ALL["hdpo"], *hopeless).gradients[0]
    assert pull[0, 0] < 0 < pull[1, 0], "up where the teacher finds it likelier, down where it does not"
    still = [Written(*S3, status="wrong", problem="h") for _ in range(2)]
    assert float(step(ALL["grpo"], *still).gradients[0].abs().max()) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_train(tiny, name: str) -> None:
    """Half of each group is called right; the teacher is the initial student, which needs no second model."""
    refresh = FROZEN if ALL[name].refresh.external else ALL[name].refresh
    sampling = Sampling(max_new_tokens=4, temperature=1.3)
    recipe = replace(ALL[name], refresh=refresh, sampling=sampling, optimizer=Optimizer(lr=1e-2))
    recipe = replace(recipe, rollouts=recipe.rollouts.grouped(4))
    problems = [Problem(f"p{i}", "2 + 2?", "4", "2 + 2 = 4") for i in range(2)]

    def verify(rollout: Rollout) -> Verdict:
        return Verdict("wrong" if rollout.author == "student" and rollout.index < 2 else "correct")

    state = State(tiny(), Clock(0, 2))
    reports = [train_step(recipe, state, problems, verify) for _ in range(2)]
    assert all(report.kept == 8 for report in reports)
    assert all(math.isfinite(report.grad_norm) for report in reports)
    # Where the teacher is the student, nothing but a reward can move the first step.
    moved = name not in {"opd_then_rl", "tgopd"}
    assert (reports[0].grad_norm > 1e-6) == moved
    assert reports[1].gap < 1e-6, "a behaviour is kept in float32"


def test_probes_are_judged_and_never_learnt_from(tiny) -> None:
    recipe = replace(ALL["tgopd"], teacher=with_solution, refresh=FROZEN, sampling=Sampling(max_new_tokens=4))
    problems = [Problem(f"p{i}", "2 + 2?", "4", "2 + 2 = 4") for i in range(2)]

    def verify(rollout) -> Verdict:
        return Verdict("correct" if rollout.author == "teacher" and rollout.problem.id == "p0" else "wrong")

    report = train_step(recipe, State(tiny(), Clock(0, 1)), problems, verify)
    assert report is not None
    assert len(report.judged) == 14
    taught = [j.rollout for j in report.judged if id(j.rollout) in report.entries]
    assert [(r.author, r.problem.id) for r in taught] == [("student", "p0")] * 4
