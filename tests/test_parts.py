"""Laws of gates, advantages, curricula, schedules and writers."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import Verdict
from workbench.errors import RecipeError
from workbench.parts.advantages import GroupCentred
from workbench.parts.contexts import question, with_solution
from workbench.parts.curricula import Shuffled
from workbench.parts.gates import Consensus, Correct
from workbench.parts.schedules import Clock, Cosine, Linear, Piecewise, resolve
from workbench.parts.writers import ByTeacher, Desk, FromDataset, Mixture, OnPolicy, Together
from workbench.records import Judged, Problem, Rollout, Sampling

PROBLEM = Problem("p", "What is 3 + 4?", "7", "3 + 4 = 7")


def judged(answer: str | None, author: str = "teacher", index: int = 0) -> Judged:
    status = "no_answer" if answer is None else "correct" if answer == "7" else "wrong"
    rollout = Rollout(PROBLEM, author, (1,), answer or "", None, "stop", index=index)
    return Judged(rollout, Verdict(status, answer))


answers = st.lists(st.sampled_from(["7", "3", "2", "1", None]), max_size=12)
groups = answers.map(lambda a: [judged(x, "teacher" if i % 3 else "student", i) for i, x in enumerate(a)])


@given(groups, st.sampled_from([Correct(), Consensus(votes=2), Consensus(votes=2, author="student")]), st.randoms())
def test_gates_select_once_whatever_the_order(group, gate, rng: random.Random) -> None:
    kept = gate(group)
    assert all(any(k is j for j in group) for k in kept), "a gate only selects"
    assert gate(kept) == kept, "applying it twice is applying it once"
    shuffled = list(group)
    rng.shuffle(shuffled)
    assert {id(j) for j in gate(shuffled)} == {id(j) for j in kept}, "order does not matter"


def test_consensus_of_gates_card() -> None:
    """GATES: four of eight for the most frequent answer, ties rejected."""
    group = [judged(a) for a in ["7", "7", "7", "7", "3", "3", "2", None]]
    assert [j.verdict.extracted for j in Consensus(votes=4)(group)] == ["7"] * 4
    students = [judged("3", "student", i) for i in range(3)]
    assert Consensus(votes=4)(group + students)[4:] == students, "the other leg passes with the item"
    assert Consensus(votes=4)([judged(a) for a in ["7", "7", "7", "3", "3", "3", "2", "1"]]) == []
    assert Consensus(votes=4)([judged(a) for a in ["7"] * 4 + ["3"] * 4]) == [], "a tie is no majority"


@pytest.mark.parametrize(("right", "expected"), [(0.6, 0.8263296), (0.2, 0.0562816)])
def test_how_often_the_consensus_gate_opens(right: float, expected: float) -> None:
    """GATES: four of eight, wrong answers all distinct: the gate itself, over all 256 outcomes."""
    total = 0.0
    for outcome in itertools.product([True, False], repeat=8):
        group = [judged("7" if good else str(100 + i)) for i, good in enumerate(outcome)]
        kept = Consensus(votes=4)(group)
        assert len(kept) in (0, sum(outcome))
        total += bool(kept) * right ** sum(outcome) * (1 - right) ** (8 - sum(outcome))
    assert total == pytest.approx(expected, abs=1e-8)


def test_advantage_known_values_of_grpo() -> None:
    """GRPO: TRL's unbiased standard deviation, and none at all."""
    group = [judged("7"), judged("3"), judged("3"), judged("2")]
    assert [round(j.advantage, 8) for j in GroupCentred(normalised=True)(group)] == [1.49970006] + [-0.49990002] * 3
    assert [j.advantage for j in GroupCentred()(group)] == [0.75, -0.25, -0.25, -0.25]


@given(groups, st.booleans())
def test_advantages_sum_to_zero_per_author_and_skip_the_unjudged(group, normalised: bool) -> None:
    group = [*group, Judged(group[0].rollout, Verdict("error"))] if group else group
    out = GroupCentred(normalised)(group)
    assert [j.rollout for j in out] == [j.rollout for j in group]
    for author in ("student", "teacher"):
        mine = [j for j in out if j.rollout.author == author]
        assert sum(j.advantage for j in mine) == pytest.approx(0.0, abs=1e-9)
    assert all(j.advantage == 0.0 for j in out if j.verdict.score is None)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 200), st.integers(0, 5))
def test_curriculum_is_a_function_of_the_cursor(n: int, batch: int, cursor: int, seed: int) -> None:
    problems = [Problem(str(i), str(i)) for i in range(n)]
    drawn = Shuffled().batch(problems, batch, cursor, seed)
    assert drawn == Shuffled().batch(problems, batch, cursor, seed)
    assert len(drawn) == batch
    if batch <= n:
        assert len({p.id for p in drawn}) == batch, "no problem twice in a batch"
    epoch = [p.id for i in range(n) for p in Shuffled().batch(problems, 1, i, seed)]
    assert sorted(epoch, key=int) == [p.id for p in problems], "an epoch meets every problem once"


def test_schedules_are_values() -> None:
    @dataclass(frozen=True)
    class Inner:
        coef: object

    tree = (Inner(Linear(1.0, 0.0)), Inner(Cosine(1.0, 0.0)), Inner(Piecewise((0.0, 2.0), (3,))), Inner(0.5))
    first, last = resolve(tree, Clock(0, 5)), resolve(tree, Clock(4, 5))
    assert [x.coef for x in first] == [1.0, 1.0, 0.0, 0.5]
    assert [x.coef for x in last] == pytest.approx([0.0, 0.0, 2.0, 0.5])
    assert resolve(last, Clock(0, 5)) is last, "nothing to replace, nothing copied"
    with pytest.raises(ValueError, match="ascending"):
        Piecewise((1.0,), (3,))


class Scribe:
    """A generator that writes down what it was asked."""

    def __init__(self) -> None:
        self.requests = []

    def generate(self, requests, sampling, stopped=lambda: False):
        self.requests += requests
        return [Rollout(r.problem, r.author, (1,), "", (0.0,), "stop", index=r.index) for r in requests]

    def transcribe(self, requests, sampling):
        return [Rollout(r.problem, "dataset", (1,), "", None, "stop") for r in requests]


@pytest.mark.parametrize(
    "writer",
    [
        OnPolicy(3),
        ByTeacher(2),
        FromDataset(),
        Together((ByTeacher(2), OnPolicy(2))),
        Mixture(student=0.5, teacher=0.25, dataset=0.25),
    ],
)
def test_writers_name_their_authors_and_show_each_its_context(writer) -> None:
    problems = [replace(PROBLEM, id=str(i)) for i in range(20)]
    scribe = Scribe()
    rollouts = writer.draw(Desk(scribe, question, with_solution, Sampling(), (0, 1), lambda: False), problems)
    assert {r.author for r in rollouts} == writer.authors
    assert [r.problem.id for r in rollouts] == sorted((r.problem.id for r in rollouts), key=int), "grouped by problem"
    assert all(r.context is (with_solution if r.author == "teacher" else question) for r in scribe.requests)


def test_writers_refuse_what_has_no_meaning() -> None:
    with pytest.raises(RecipeError, match=r"pi_mix must sum to 1: student=0.5 \+ teacher=0.0 \+ dataset=0.0 = 0.5\."):
        Mixture(student=0.5)
    with pytest.raises(RecipeError, match="at least 1"):
        OnPolicy(0)
    assert FromDataset().grouped(1) == FromDataset()
    with pytest.raises(RecipeError, match="one text a problem"):
        FromDataset().grouped(2)
    assert Together((ByTeacher(8), OnPolicy(8))).grouped(2) == Together((ByTeacher(2), OnPolicy(2)))
