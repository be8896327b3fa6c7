"""Laws of gates, advantages, curricula, schedules and writers."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, is_dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers import Verdict
from workbench.errors import RecipeError
from workbench.overrides import choose
from workbench.parts import advantages, gates
from workbench.parts.advantages import GroupCentred, LeaveOneOut, LengthPenalised, NoBaseline, SoftOverlong
from workbench.parts.contexts import question, with_solution
from workbench.parts.curricula import Shuffled
from workbench.parts.gates import Consensus, Correct, Mixed, Shorter, TeacherReliable
from workbench.parts.schedules import Clock, Cosine, Linear, Piecewise, resolve
from workbench.parts.writers import ByTeacher, Desk, FromDataset, Mixture, OnPolicy, Together
from workbench.records import Judged, Problem, Rollout, Sampling
from workbench.train.step import by_problem

PROBLEM = Problem("p", "What is 3 + 4?", "7", "3 + 4 = 7")


def judged(answer: str | None, author: str = "teacher", index: int = 0, length: int = 1) -> Judged:
    status = "no_answer" if answer is None else "correct" if answer == "7" else "wrong"
    rollout = Rollout(PROBLEM, author, (1,) * length, answer or "", None, "stop", index=index)
    return Judged(rollout, Verdict("error" if answer == "?" else status, answer))


def grouped(written: list[tuple[str | None, int]]) -> list[Judged]:
    """As a step hands a group to its gates: a third of it by the student, in front."""
    all_of_it = [judged(x, "teacher" if i % 3 else "student", i, n) for i, (x, n) in enumerate(written)]
    return by_problem(all_of_it)[0] if all_of_it else []


answers = st.lists(st.tuples(st.sampled_from(["7", "3", "2", "1", "?", None]), st.integers(1, 5)), max_size=12)
groups = answers.map(grouped)
GATES = [
    Correct(),
    Consensus(votes=2),
    Consensus(votes=2, author="student"),
    TeacherReliable(),
    TeacherReliable(share=1.0),
    Shorter(),
    Mixed(),
]
ADVANTAGES = [
    GroupCentred(),
    GroupCentred(normalised=True),
    LeaveOneOut(),
    NoBaseline(),
    SoftOverlong(limit=5, cache=3),
    LengthPenalised(2),
]


def test_every_gate_and_advantage_stands_under_these_laws() -> None:
    for module, known in ((gates, GATES), (advantages, ADVANTAGES)):
        kinds = {k for k in vars(module).values() if is_dataclass(k) and isinstance(k, type)}
        assert {k for k in kinds if k.__module__ == module.__name__} == {type(x) for x in known}


@given(groups, st.sampled_from(GATES), st.randoms())
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


@given(groups, st.sampled_from(ADVANTAGES), st.randoms())
def test_laws_of_advantages(group, advantage, rng: random.Random) -> None:
    """Only the advantage moves; nobody judged is 0; the better is never behind; authors and order do not matter."""
    out = advantage(group)
    assert [replace(j, advantage=0.0) for j in out] == group
    assert all(j.advantage == 0.0 for j in out if j.verdict.score is None)
    for author in ("student", "teacher"):
        mine = [j for j in out if j.rollout.author == author]
        alone = advantage([j for j in group if j.rollout.author == author])
        assert [j.advantage for j in mine] == [j.advantage for j in alone], "each author has its own baseline"
        pairs = [(x, y) for x in mine for y in mine if x.verdict.correct and y.verdict.score == 0.0]
        assert all(x.advantage > y.advantage for x, y in pairs)
        if not isinstance(advantage, NoBaseline):
            assert sum(j.advantage for j in mine) == pytest.approx(0.0, abs=1e-9)
    order = list(range(len(group)))
    rng.shuffle(order)
    again = advantage([group[i] for i in order])
    assert [j.advantage for j in again] == pytest.approx([out[i].advantage for i in order])


def test_leave_one_out_known_values() -> None:
    """RLOO: four rollouts, one right: 1 - 0 and 0 - 1/3, which is 4/3 of the centred advantage."""
    group = [judged("7"), judged("3"), judged("3"), judged("2")]
    found = [j.advantage for j in LeaveOneOut()(group)]
    assert found == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3], abs=1e-12)
    assert found == pytest.approx([4 / 3 * j.advantage for j in GroupCentred()(group)], abs=1e-12)
    assert [j.advantage for j in LeaveOneOut()([judged("7"), judged("?")])] == [0.0, 0.0], "nobody to compare with"
    assert [j.advantage for j in NoBaseline()(group)] == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("form", "per_token", "over", "under", "wrong"),
    [("exact", 0.0003, 0.85, 0.85, -0.15), ("exact", 0.01, -4.0, -4.0, -5.0), ("max", 0.0003, 0.35, 0.65, 0.0)],
)
def test_length_penalties_of_the_l1_card(form, per_token, over, under, wrong) -> None:
    """L1: 500 tokens beside the target, right and wrong; the paper's slope and the 33 times steeper one of its code."""
    penalty = LengthPenalised(1000, per_token, form, normalised=False)
    group = [judged("7", length=1500), judged("7", length=500), judged("3", length=1500)]
    assert [penalty.reward(j) for j in group] == pytest.approx([over, under, wrong], abs=1e-12)
    assert penalty.reward(judged("?", length=500)) is None
    mean = (over + under + wrong) / 3
    assert [j.advantage for j in penalty(group)] == pytest.approx([over - mean, under - mean, wrong - mean], abs=1e-12)
    if form == "max":
        ends = [LengthPenalised(1000, 0.01, "max").reward(judged("7", length=n)) for n in (900, 1100)]
        assert ends == [1.0, 0.0], "clipped"


@pytest.mark.parametrize("settings", [{"target": -1}, {"target": 9, "per_token": 0.0}, {"target": 9, "form": "min"}])
def test_what_is_no_length_penalty_is_refused(settings) -> None:
    with pytest.raises(RecipeError, match="no length penalty"):
        LengthPenalised(**settings)


@pytest.mark.parametrize(("right", "expected"), [(0.3, 0.216), (0.5, 0.5), (0.8, 0.896)])
def test_how_often_a_teacher_counts_as_reliable(right: float, expected: float) -> None:
    """TGOPD: two of three verified probes open the gate."""
    student = [judged("3", "student", i) for i in range(4)]
    total = 0.0
    for outcome in itertools.product([True, False], repeat=3):
        kept = TeacherReliable()([judged("7" if good else "2") for good in outcome] + student)
        assert kept[3:] in ([], student), "right or wrong, all of the student's rollouts or none"
        total += bool(kept) * right ** sum(outcome) * (1 - right) ** (3 - sum(outcome))
    assert total == pytest.approx(expected, abs=1e-12)
    assert TeacherReliable()(student) == [], "without a probe nothing was verified"
    assert TeacherReliable()([judged("7"), judged("?"), judged("?"), *student]) == [], "not judged is not verified"
    with pytest.raises(RecipeError, match="share=0"):
        TeacherReliable(share=0.0)


def test_shorter_than_the_median_of_all_that_was_drawn() -> None:
    """Lengths 2, 4, 6, 8: the median is 5; of the two below it one is right."""
    drawn = [judged("7", "student", 0, 2), judged("3", "student", 1, 4), judged("7", "student", 2, 6)]
    drawn += [judged("3", "student", 3, 8), judged("7", "teacher", 0, 1)]
    (group,) = by_problem(drawn)
    assert [j.rollout.index for j in Shorter()(group)] == [0]
    assert [j.rollout.index for j in Shorter()(Correct()(group))] == [0], "a gate before it does not move the median"
    (alike,) = by_problem([judged("7", "student", i, 3) for i in range(4)])
    assert Shorter()(alike) == [], "none is shorter than the others"


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


def test_a_long_completion_pays_for_its_length_and_half_of_it_where_rewards_are_one_and_nothing() -> None:
    """Limit 16, cache 8: free to 8 tokens, half the price at 12, all of it from 16 on. Rewards 1, 1, 1, 0 before."""
    group = [judged(a, "student", i, n) for i, (a, n) in enumerate([("7", 8), ("7", 12), ("7", 20), ("3", 16)])]
    paid = [1.0, 0.75, 0.5, -0.5]  # (1, 1, 1, -1) - (0, 0.5, 1, 1) of the paper, halved and moved by a half
    found = [j.advantage for j in SoftOverlong(limit=16, cache=8, normalised=False)(group)]
    assert found == pytest.approx([x - 0.4375 for x in paid], abs=1e-12)
    assert found != [j.advantage for j in GroupCentred()(group)]
    unjudged = SoftOverlong()([judged("?", "student", 0, 9), *group])
    assert unjudged[0].advantage == 0.0
    with pytest.raises(RecipeError, match="cache"):
        SoftOverlong(limit=8, cache=9)


def test_mixed_keeps_groups_that_differ_in_their_verdicts() -> None:
    for answers, kept in (("73", True), ("77", False), ("33", False), ("7?", False), ("??", False), ("7?3", True)):
        group = [judged(a, "student", i) for i, a in enumerate(answers)]
        assert Mixed()(group) == (group if kept else [])


def test_dapo_takes_both_from_the_command_line() -> None:
    recipe = choose("dapo", ("gates=(Mixed(),)", "advantage=SoftOverlong(limit=512, cache=128)"))
    assert (recipe.gates, recipe.advantage) == ((Mixed(),), SoftOverlong(512, 128))
