"""What a run remembers beside its weights: adaptive schedules, replayed rollouts, surveyed pass rates."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import Verdict
from workbench.divergence import ForwardKL, TowardsTeacher
from workbench.errors import RecipeError
from workbench.parts.adaptive import ShareByLoss, ShareByProgress, ThresholdByValidation
from workbench.parts.contexts import question
from workbench.parts.curricula import BetaKernel, Shuffled
from workbench.parts.replay import Replay
from workbench.parts.schedules import Clock, Growing, Linear, Memory, Seen, Switch, adaptive
from workbench.parts.terms import Distill
from workbench.parts.writers import AdaptiveOffPolicy, Desk, FromDataset, Mixture, OnPolicy, Staged
from workbench.recipe import Recipe
from workbench.records import Judged, Problem, Request, Rollout, Sampling

SCHEDULES = (ShareByProgress(), ThresholdByValidation(), ShareByLoss())
PROBLEMS = [Problem(f"p{i}", f"{i}?", str(i), solution=f"{i}") for i in range(6)]


def run(schedule, losses, total: int, **seen: float) -> list[float]:
    remembered, values = schedule.initial(), []
    for step, loss in enumerate(losses):
        remembered = schedule.observe(remembered, Clock(step, total), Seen(loss=loss, **seen))
        values.append(schedule.value(remembered, Clock(step, total)))
    return values


def test_progress_of_the_target() -> None:
    """TAID: the first loss is only noted; then 5e-4 sigmoid(m) (1 - t) a step, above the straight line."""
    values = run(ShareByProgress(), (2.0, 1.8, 1.9, 1.5), 10_000)
    assert values == pytest.approx((0.4, 0.4001500750, 0.4003000701, 0.4004501851), abs=1e-9)
    assert run(ShareByProgress(), [1.0] * 12, 10)[-1] == 1.0, "the straight line is a floor"


@given(st.lists(st.floats(0.0, 50.0), min_size=1, max_size=40))
def test_progress_never_goes_back_and_stays_inside(losses) -> None:
    values = run(ShareByProgress(), losses, 30)
    assert values == sorted(values)
    assert min(values) >= 0.4
    assert max(values) <= 1.0


def test_share_by_loss() -> None:
    values = run(ShareByLoss(decay=0.0, warmup=0.0), (2.0, 1.8, 1.75, 1.9, 2.2, 1.0), 100)
    assert values == pytest.approx((1.0, 0.95, 0.95, 0.9975, 1.0, 0.95))
    assert run(ShareByLoss(warmup=0.5, decay=0.0), (4.0, 2.0, 1.0), 100) == [1.0] * 3, "warm-up: the share stays"
    assert min(run(ShareByLoss(decay=0.0, warmup=0.0), [2.0 * 0.8**k for k in range(90)], 90)) == pytest.approx(0.1)


def test_threshold_rises_only_when_validation_got_worse_than_at_the_last_rise() -> None:
    schedule, remembered, values = ThresholdByValidation(), ThresholdByValidation().initial(), []
    for loss in (2.0, 1.0, 2.05, 2.11, 2.2, 2.3):
        remembered = schedule.observe(remembered, Clock(0, 1), Seen(validation=loss))
        values.append(remembered[0])
    # compared with 2.0 until it fires at 2.11, then with 2.11; never with the epoch before
    assert values == pytest.approx((0.0, 0.0, 0.0, 0.1, 0.1, 0.2))
    assert schedule.observe(remembered, Clock(0, 1), Seen(loss=9.0)) == remembered


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_memory_survives_json_at_any_moment(schedule) -> None:
    """Through the text a checkpoint is: the unknown is null, and the run goes on as if nothing had happened."""
    seen = [Seen(loss=2.0 - 0.1 * k, validation=None if k % 2 else 1.0 + k) for k in range(6)]
    whole = Memory()
    for k, what in enumerate(seen):
        again = Memory(json.loads(json.dumps(whole.state_dict(), allow_nan=False)))
        for memory in (whole, again):
            memory.observe(schedule, Clock(k, 6), what)
        assert json.dumps(again.state_dict()) == json.dumps(whole.state_dict())


def test_a_recipe_sees_numbers_and_equal_schedules_share_a_memory() -> None:
    share = ShareByProgress()
    term = Distill(ForwardKL(), transforms=(TowardsTeacher(share),))
    recipe = Recipe(name="x", paper="-", teacher=question, terms=(term, replace(term, coef=0.5)))
    assert list(adaptive(recipe)) == [share, share]
    memory = Memory()
    for loss in (2.0, 1.8):
        memory.observe(recipe, Clock(0, 10_000), Seen(loss=loss))
    now = recipe.at(Clock(0, 10_000), memory)
    assert [t.transforms[0].share for t in now.terms] == pytest.approx([0.4001500750] * 2, abs=1e-9)
    assert "ShareByProgress" in recipe.describe()


def test_schedules_by_the_clock() -> None:
    assert [Switch(0.5)(Clock(k, 5)) for k in range(5)] == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert [Growing(256, 256, 600)(Clock(k, 9)) for k in range(3)] == [256, 512, 600]


# -- who writes --------------------------------------------------------------------------------------------------------


class Scribe:
    """A generator that says who was asked."""

    def __init__(self) -> None:
        self.rooms: list[int] = []

    def generate(self, requests, sampling, stopped=lambda: False):
        self.rooms.append(sampling.max_new_tokens)
        return [self._one(r, r.author) for r in requests]

    def transcribe(self, requests, sampling):
        return [self._one(r, "dataset") for r in requests]

    @staticmethod
    def _one(request: Request, author) -> Rollout:
        logprobs = None if author == "dataset" else (-1.0,)
        return Rollout(request.problem, author, (1,), "x", logprobs, "stop", weights_version=request.seed[1])


def desk(step: int, replay: Replay | None = None, seed: int = 0) -> Desk:
    return Desk(Scribe(), question, question, Sampling(64), (seed, step), lambda: False, replay or Replay())


def test_a_mixture_by_batch_has_one_author_and_the_right_share() -> None:
    mixture = Mixture(student=0.25, dataset=0.75, per="batch")
    authors = [{r.author for r in mixture.draw(desk(step), PROBLEMS)} for step in range(400)]
    assert all(len(a) == 1 for a in authors)
    share = sum(a == {"student"} for a in authors) / 400
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 400))
    some = Mixture(student=0.5, dataset=0.5).draw(desk(0), PROBLEMS)
    assert len({r.author for r in some}) == 2


def test_off_policy_draws_fresh_replayed_or_written_text_with_the_published_chances() -> None:
    """u < s * fresh: fresh; u < s with a full memory: replay; else the data set."""
    writer = AdaptiveOffPolicy(student=0.6, fresh=0.5, remembers=4)
    kept = Replay([replace(Scribe._one(desk(99).request(PROBLEMS[0], "student", 0), "student"), index=7)] * 4)
    kinds = []
    for step in range(600):
        rollouts = writer.draw(desk(step, kept), PROBLEMS)
        assert len(rollouts) == len(PROBLEMS)
        first = rollouts[0]
        kinds.append("dataset" if first.author == "dataset" else "replay" if first.index == 7 else "fresh")
    for kind, share in (("fresh", 0.3), ("replay", 0.3), ("dataset", 0.4)):
        assert kinds.count(kind) / 600 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 600))
    empty = [writer.draw(desk(step), PROBLEMS)[0] for step in range(100)]
    assert all(r.index == 0 for r in empty), "a memory that is not full is not drawn from"


def test_replay_keeps_the_newest_and_survives_a_checkpoint() -> None:
    replay = Replay()
    written = [Rollout(p, "student", (1, 2), "é\ud800", (-0.5, -1.5), "stop", i, i) for i, p in enumerate(PROBLEMS)]
    replay.admit([*written, replace(written[0], tokens=())], 4)
    assert [replay[k].problem.id for k in range(len(replay))] == ["p2", "p3", "p4", "p5"]
    again = Replay.of(json.loads(json.dumps(replay.state_dict())), PROBLEMS)
    assert [again[k] for k in range(4)] == written[2:]
    assert len(Replay.of(replay.state_dict(), PROBLEMS[:3])) == 1, "a problem that is gone takes its rollout along"
    replay.admit(written, 0)
    assert len(replay) == 0


def test_stages_and_horizons() -> None:
    staged = Staged((FromDataset(), OnPolicy()), second=Switch(0.5))
    recipe = Recipe(name="x", paper="-", teacher=question, rollouts=staged, terms=(Distill(ForwardKL()),))
    authors = [recipe.at(Clock(k, 4)).rollouts.draw(desk(k), PROBLEMS)[0].author for k in range(4)]
    assert authors == ["dataset", "dataset", "student", "student"]
    assert recipe.requires == {"question", "solution"} or "solution" in recipe.requires
    where = desk(0)
    OnPolicy(horizon=8).draw(where, PROBLEMS)
    OnPolicy(horizon=10_000).draw(where, PROBLEMS)
    OnPolicy().draw(where, PROBLEMS)
    assert where.generator.rooms == [8, 64, 64]


# -- which problems ----------------------------------------------------------------------------------------------------


def test_beta_kernel() -> None:
    kernel, rates = BetaKernel(), dict(zip("abcdef", (0, 0.125, 0.25, 0.5, 0.75, 1), strict=True))
    assert [kernel.kernel(r) for r in rates.values()] == pytest.approx((0, 0.109375, 0.1875, 0.25, 0.1875, 0))
    expected = (0, 0.8936170213, 1.5319148936, 2.0425531915, 1.5319148936, 0)
    assert list(kernel.weights(rates).values()) == pytest.approx(expected, abs=1e-9)
    assert set(BetaKernel(success=0, failure=0).weights(rates).values()) == {1.0}
    problems = [Problem(name, "?") for name in rates]
    assert [p.id for p in kernel.teaching(problems, rates)] == list("bcde")
    # What is not drawn would have counted 0: the drawn ones' mean makes up for their share.
    mean = sum(
        kernel.weigh([Judged(Rollout(p, "student", (1,), "", None, "stop"), Verdict("wrong"))], rates)[0].weight
        for p in kernel.teaching(problems, rates)
    ) / len(problems)
    assert mean == pytest.approx(4 / 6)
    with pytest.raises(RecipeError, match="stages begin at"):
        BetaKernel(stages=(0.5,))


def test_when_curricula_survey() -> None:
    assert [k for k in range(9) if BetaKernel().surveys(Clock(k, 9))] == [0, 5]
    assert not any(Shuffled().surveys(Clock(k, 9)) for k in range(9))
    group = [Judged(Rollout(PROBLEMS[0], "student", (1,), "", None, "stop"), Verdict("wrong"))]
    assert Shuffled().weigh(group, {"p0": 0.0}) == group
    assert BetaKernel().weigh(group, {}) == group, "nothing surveyed yet"
    assert Linear(0.0, 1.0)(Clock(0, 3)) == 0.0
