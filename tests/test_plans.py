"""Plans: advantages along a completion, and which tokens of a step count."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers import STATUSES, Verdict
from workbench.errors import RecipeError
from workbench.parts.measures import Hellinger, Overlap, RankOfFavourite
from workbench.parts.plans import LogRatio, Reading, ReverseKLToGo, ScaledLogRatio, whitened
from workbench.parts.rewards import RewardAndTeacher, SizedByTeacher
from workbench.parts.selection import (
    EarlyDisagreement,
    Hardest,
    HighestEntropy,
    TeacherAgrees,
    TemperatureByDifficulty,
    WithoutFirst,
    WithoutOutliers,
)
from workbench.records import Judged, Problem, Rollout, Tokens, TokenStats

ALL = (
    LogRatio(),
    LogRatio(future=0.9, clip=1.0),
    ReverseKLToGo(),
    ReverseKLToGo(scale=0.5, discount=0.95, own=True),
    ScaledLogRatio(1.25),
    EarlyDisagreement(),
    HighestEntropy(0.3),
    WithoutOutliers(0.2),
    WithoutFirst(),
    TeacherAgrees(),
    TeacherAgrees(by="speculation", k=2),
    Hardest(0.5),
    TemperatureByDifficulty(),
    RewardAndTeacher(),
    RewardAndTeacher(0.5, 0.1, reward_on="right", teacher_on="wrong"),
    RewardAndTeacher(teacher_on="hopeless"),
    SizedByTeacher(),
)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def reading(student, teacher, *, index: int = 0, behaviour=None, texts=(), **more) -> Reading:
    n = len(student)
    logprobs = tuple(float(x) for x in (student if behaviour is None else behaviour))
    rollout = Rollout(Problem(f"p{index}", "?"), "student", tuple(range(n)), "", logprobs, "stop", index=index)
    generator = torch.Generator().manual_seed(index)
    return Reading(
        judged=Judged(rollout, Verdict(STATUSES[index % len(STATUSES)]), advantage=0.5),
        student_logp=torch.as_tensor(student, dtype=torch.float64),
        teacher_logp=torch.as_tensor(teacher, dtype=torch.float64),
        advantage=torch.full((n,), 0.5, dtype=torch.float64),
        weight=torch.ones(n, dtype=torch.float64),
        texts=texts or tuple("<think>abcdefg"[k % 14] for k in range(n)),
        **{
            "reference_logp": -3 * torch.rand(n, generator=generator, dtype=torch.float64),
            "student_entropy": torch.rand(n, generator=generator, dtype=torch.float64),
            "teacher_entropy": torch.rand(n, generator=generator, dtype=torch.float64),
            "measured": {
                Hellinger(): torch.rand(n, generator=generator, dtype=torch.float64),
                Overlap(): torch.rand(n, generator=generator, dtype=torch.float64),
                RankOfFavourite(): torch.randint(0, 9, (n,), generator=generator).double(),
            },
            **more,
        },
    )


def a_step(lengths, seed: int) -> list[Reading]:
    generator = torch.Generator().manual_seed(seed)
    draws = [-4 * torch.rand(2, n, generator=generator, dtype=torch.float64) for n in lengths]
    return [reading(s, t, index=i) for i, (s, t) in enumerate(draws)]


@pytest.mark.parametrize("plan", ALL, ids=repr)
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_laws_of_plans(plan, lengths, seed: int) -> None:
    """Same rollouts, same lengths, finite; weights >= 0; pure; the order of the step's rollouts does not matter."""
    step = a_step(lengths, seed)
    before = [(r.weight.clone(), r.advantage.clone()) for r in step]
    out = plan(step)
    assert [r.judged for r in out] == [r.judged for r in step]
    for r, (weight, advantage) in zip(step, before, strict=True):
        assert torch.equal(r.weight, weight)
        assert torch.equal(r.advantage, advantage)
    backwards = plan(step[::-1])[::-1]
    for one, other, old in zip(out, backwards, step, strict=True):
        for name in ("advantage", "weight", "temperature"):
            x, y = getattr(one, name), getattr(other, name)
            if name not in plan.sets:
                assert x is getattr(old, name)
            elif x is not None:
                assert x.shape == old.weight.shape
                assert bool(x.isfinite().all())
                assert torch.allclose(x, y, atol=1e-12)
        assert bool((one.weight >= 0).all())


# -- known answers ---------------------------------------------------------------------------------------------------

S3 = reading(row(0.3, 0.4, 0.25).log(), row(0.7, 0.1, 0.5).log())


@pytest.mark.parametrize(
    ("plan", "returns", "white"),
    [
        (ReverseKLToGo(scale=0.5, own=True), (0.1027671199, -0.6931471806, 1.3862943611),
         (-0.1897312403, -1.1188071207, 1.3085383610)),
        (ReverseKLToGo(scale=0.5, own=True, discount=0.95), (0.1039223652, -0.7278045396, 1.3862943611),
         (-0.1727426039, -1.1292026262, 1.3019452301)),
        (ReverseKLToGo(), (-0.3465735903, 0.6931471806, 0.0), None),
    ],
    ids=("released, undiscounted", "released", "paper"),
)  # fmt: skip
def test_minillm_returns(plan, returns, white) -> None:
    assert plan.returns(S3.log_ratio).tolist() == pytest.approx(returns, abs=1e-9)
    if white is not None:
        assert plan([S3])[0].advantage.tolist() == pytest.approx(white, abs=1e-9)


def test_whitening_is_over_tokens_and_not_over_padding() -> None:
    """Two rollouts of different lengths: mean 0 and variance 1 over their tokens together."""
    out = torch.cat(whitened([row(1.0, 2.0, 4.0), row(8.0)]))
    assert float(out.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(out.var(unbiased=False)) == pytest.approx(1.0, abs=1e-6)


def test_a_step_is_whitened_together() -> None:
    """A rollout that is better than the others keeps its advantage: whitened alone every rollout would have mean 0."""
    good, bad = reading([-3.0, -3.0, -3.0], [-1.0, -1.0, -1.0]), reading([-1.0, -1.0], [-3.0, -3.0], index=1)
    first, second = ReverseKLToGo(own=True)([good, bad])
    assert float(first.advantage.min()) > 0 > float(second.advantage.max())


def test_no_token_is_favoured_where_all_are_alike() -> None:
    """Equal ratios: a return that is 0 by construction at the end must not stand out against the others' mean."""
    for n in (1, 2, 30):
        alike = reading([-1.0] * n, [-3.0] * n)
        assert float(ReverseKLToGo()([alike])[0].advantage.abs().max()) == pytest.approx(0.0, abs=1e-9)


def test_minillm_gradient_on_a_sequence_small_enough_to_enumerate() -> None:
    """Two binary tokens: exact sequence KL's gradient at the first logits needs the future; the second does not."""
    p0, p1 = row(0.7, 0.3), {0: row(0.6, 0.4), 1: row(0.1, 0.9)}
    q0, q1 = row(0.4, 0.6), row(0.5, 0.5)
    whole, own = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    kl = 0.0
    for a in (0, 1):
        for b in (0, 1):
            chance = float(q0[a] * q1[b])
            one = reading(row(float(q0[a]), float(q1[b])).log(), row(float(p0[a]), float(p1[a][b])).log())
            score = torch.nn.functional.one_hot(torch.tensor(a), 2).double() - q0  # grad log q_0(a) in its logits
            whole -= chance * LogRatio(future=1.0)([one])[0].advantage[0] * score
            own -= chance * LogRatio()([one])[0].advantage[0] * score
            kl -= chance * float(one.log_ratio.sum())
    assert kl == pytest.approx(0.5067017663, abs=1e-9)
    assert whole.tolist() == pytest.approx((-0.4183626228, 0.4183626228), abs=1e-9)
    assert own.tolist() == pytest.approx((-0.3006631124, 0.3006631124), abs=1e-9)


def test_scaled_log_ratio() -> None:
    three = reading(row(0.3, 0.4, 0.3).log(), row(0.7, 0.2, 0.1).log(), reference_logp=row(0.2, 0.5, 0.3).log())
    beyond = ScaledLogRatio(1.25)([three])[0].advantage
    assert beyond.tolist() == pytest.approx((1.1604886025, -0.9222198635, -1.3732653608), abs=1e-9)
    plain = ScaledLogRatio(1.0)([three])[0].advantage
    assert plain.tolist() == pytest.approx((0.8472978604, -0.6931471806, -1.0986122887), abs=1e-9)
    # Averaged over the student the plain one is minus the reverse KL (Thinking Machines' per-token reward).
    assert float((row(0.3, 0.4, 0.3) * LogRatio()([three])[0].advantage).sum()) == pytest.approx(
        -0.3526532007, abs=1e-9
    )


def test_what_the_optimum_of_the_scaled_ratio_is() -> None:
    p, ref = row(0.7, 0.2, 0.1), row(0.2, 0.5, 0.3)
    for scale, expected in ((1.25, (0.8029009701, 0.1333803722, 0.0637186577)), (0.0, ref.tolist())):
        best = torch.softmax(scale * p.log() + (1 - scale) * ref.log(), 0)
        assert best.tolist() == pytest.approx(expected, abs=1e-9)
        # there the advantage is the same for every token: nothing pulls
        there = reading(best.log(), p.log(), reference_logp=ref.log())
        advantage = ScaledLogRatio(scale)([there])[0].advantage
        assert float(advantage.max() - advantage.min()) == pytest.approx(0.0, abs=1e-9)


def test_importance_of_early_disagreement() -> None:
    one = replace(S3, advantage=row(1.0, -2.0, 1.0))
    assert EarlyDisagreement(0.5)([one])[0].weight.tolist() == pytest.approx((1.5, 1.375, 1.125))
    flat = replace(S3, advantage=torch.zeros(3, dtype=torch.float64))
    assert EarlyDisagreement(0.5)([flat])[0].weight.tolist() == [1.0, 1.0, 1.0]


def test_who_wrote_it_counts_where_it_is_on_record() -> None:
    mixed = reading(row(0.3).log(), row(0.7).log(), behaviour=row(0.38).log())
    assert float(LogRatio()([mixed])[0].advantage) == pytest.approx(math.log(0.7 / 0.38))
    assert float(LogRatio(clip=0.1)([mixed])[0].advantage) == pytest.approx(0.1)


def test_selection_by_agreement() -> None:
    """F3: the student's favourite is the teacher's second; one draw of its is accepted with chance 0.6."""
    p, q = row(0.7, 0.2, 0.1).log()[None], row(0.3, 0.4, 0.3).log()[None]
    stats = TokenStats(torch.zeros(1).long(), torch.zeros(1), q[:, 0], p[:, 0], q[:, 0], q[:, 0])
    rank, overlap = RankOfFavourite()(Tokens(stats, q, p)), Overlap()(Tokens(stats, q, p))
    assert rank.tolist() == [1.0]
    assert overlap.tolist() == pytest.approx([0.6])
    assert Hellinger()(Tokens(stats, q, p)).tolist() == pytest.approx([0.2927364639], abs=1e-9)
    one = reading(q[0, :1], p[0, :1], measured={RankOfFavourite(): rank, Overlap(): overlap})
    assert TeacherAgrees(k=1)([one])[0].weight.tolist() == [0.01]
    assert TeacherAgrees(k=2)([one])[0].weight.tolist() == [1.0]
    assert TeacherAgrees(k=1, rejected=1.0)([one])[0].weight.tolist() == [1.0]
    n = 20_000
    many = reading([0.0] * n, [0.0] * n, measured={Overlap(): torch.full((n,), 0.6, dtype=torch.float64)})
    mean = float(TeacherAgrees(by="speculation", k=5, rejected=0.01)([many])[0].weight.mean())
    assert mean == pytest.approx(0.9898624, abs=5 * math.sqrt(0.9898 * 0.0102 / n))
    with pytest.raises(RecipeError, match="k >= 1"):
        TeacherAgrees(k=0)


def test_temperature_by_difficulty() -> None:
    one = reading([0.0] * 3, [0.0] * 3, measured={Hellinger(): row(0.1, 0.2, 0.4)})
    hot = TemperatureByDifficulty(strength=0.5)([one])[0]
    assert hot.temperature.tolist() == pytest.approx((1.3498588076, 1.0, 0.7408182207), abs=1e-9)
    assert torch.allclose(hot.weight, hot.temperature**2)
    mild = TemperatureByDifficulty(strength=0.3)([one])[0]
    assert mild.temperature.tolist() == pytest.approx((1.1972173631, 1.0, 0.8352702114), abs=1e-9)
    assert TemperatureByDifficulty(strength=0.0)([one])[0].temperature.tolist() == [1.0] * 3


def test_the_median_is_of_what_was_selected() -> None:
    one = reading([0.0] * 4, [0.0] * 4, measured={Hellinger(): row(0.1, 0.2, 0.3, 0.4)})
    kept = Hardest(0.5)([one])
    assert kept[0].weight.tolist() == [0.0, 0.0, 2.0, 2.0]  # the mean over those that stay, over all as denominator
    assert TemperatureByDifficulty()(kept)[0].temperature[2] == 1.0  # 0.3, the lower median of two
    assert Hardest(0.01)([one])[0].weight.tolist() == [0.0, 0.0, 0.0, 4.0], "at least one"


def test_selections_count_the_whole_step() -> None:
    step = [
        reading([0.0] * 2, [0.0] * 2, index=0, measured={Hellinger(): row(0.9, 0.8)}),
        reading([0.0] * 2, [0.0] * 2, index=1, measured={Hellinger(): row(0.1, 0.2)}),
    ]
    assert [r.weight.tolist() for r in Hardest(0.5)(step)] == [[2.0, 2.0], [0.0, 0.0]]
    apart = [reading([0.0, 0.0], [0.1, -5.0]), reading([0.0, 0.0], [0.2, 0.3], index=1)]
    assert [r.weight.tolist() for r in WithoutOutliers(0.25)(apart)] == [[1.0, 0.0], [1.0, 1.0]]


def test_entropy_share_and_first_texts() -> None:
    one = reading([0.0] * 4, [0.0] * 4, student_entropy=row(0.1, 0.9, 0.9, 0.2), texts=("<", "think", "<", "a"))
    assert HighestEntropy(0.25)([one])[0].weight.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert HighestEntropy(0.01)([one])[0].weight.tolist() == [0.0, 1.0, 0.0, 0.0]
    assert WithoutFirst()([one])[0].weight.tolist() == [0.0, 0.0, 1.0, 1.0], "the first of each text, not the second"
