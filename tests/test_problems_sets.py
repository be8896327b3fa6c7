"""Laws of generating, splitting and pairing problems."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from workbench import problems as room
from workbench.errors import InputError, UsageError
from workbench.problems import Sums, load, pair_with_others, split_train_held_out
from workbench.problems.wording import normalised, reordering_key
from workbench.records import Problem


def refused(source, *, exit_code=3, **options) -> str:
    with pytest.raises((InputError, UsageError)) as caught:
        load(source, **options)
    assert caught.value.exit_code == exit_code
    return str(caught.value)


# Sums

SMALL = st.builds(Sums, terms=st.integers(2, 4), maximum=st.integers(3, 12), minimum=st.integers(0, 2))


@settings(max_examples=40)
@given(SMALL, st.integers(0, 30), st.integers(0, 8), st.integers(0, 5))
def test_sums_are_true_distinct_disjoint_and_repeatable(sums, n_train, n_held_out, seed):
    assume(n_held_out <= sums.n_sets and n_train <= sums.n_questions - n_held_out * math.factorial(sums.terms))
    train, held_out = sums.problems(n_train, n_held_out, seed)
    assert (len(train), len(held_out)) == (n_train, n_held_out)
    assert sums.problems(n_train, n_held_out, seed) == (train, held_out)
    everything = (*train, *held_out)
    assert len({normalised(p.question) for p in everything}) == len({p.id for p in everything}) == len(everything)
    assert not {reordering_key(p.question) for p in train} & {reordering_key(p.question) for p in held_out}
    assert len({reordering_key(p.question) for p in held_out}) == n_held_out
    for problem in everything:
        numbers = [int(part) for part in problem.id.split("-")[1:]]
        assert len(numbers) == sums.terms
        assert all(sums.minimum <= number <= sums.maximum for number in numbers)
        assert problem.question == f"What is {' + '.join(map(str, numbers))}? Put the final answer in \\boxed{{}}."
        assert problem.answer == str(sum(numbers))
        assert problem.answer in problem.document
        steps = problem.solution.splitlines()
        assert len(steps) == sums.terms - 1
        for step in steps:
            left, _, total = step.removesuffix(".").partition(" = ")
            assert sum(map(int, left.split(" + "))) == int(total)
        assert steps[-1].endswith(f"= {problem.answer}.")


@settings(max_examples=30)
@given(SMALL, st.integers(0, 20), st.integers(0, 20), st.integers(0, 3))
def test_more_training_problems_change_neither_the_held_out_nor_the_earlier_ones(sums, n, more, seed):
    assume(n + more <= sums.n_questions - 2 * math.factorial(sums.terms))
    train, held_out = sums.problems(n, 2, seed)
    longer, same = sums.problems(n + more, 2, seed)
    assert same == held_out
    assert longer[:n] == train


def test_a_worked_sum():
    problem = Sums(terms=3, maximum=9)._problem((3, 4, 5))
    assert problem.solution == "3 + 4 = 7.\n7 + 5 = 12."
    assert problem.document == "From a table of sums: 3 and 4 together make 7. 7 and 5 together make 12."
    verbose = Sums(terms=3, maximum=9, wording=room.STEP_BY_STEP)._problem((3, 4, 5))
    assert verbose.question == "What is 3 + 4 + 5? Think step by step and put the final answer in \\boxed{}."
    assert verbose.solution == problem.solution


@pytest.mark.parametrize("sums", [Sums(maximum=3), Sums(3, 2, 0), Sums(2, 4, 4)])
def test_all_of_a_small_space_can_be_had_and_no_more(sums):
    train, _ = sums.problems(sums.n_questions, 0)
    assert len({p.question for p in train}) == sums.n_questions
    with pytest.raises(UsageError, match=f"but only {sums.n_questions} distinct questions exist") as caught:
        sums.problems(sums.n_questions + 1, 0)
    assert caught.value.exit_code == 2
    _, held_out = sums.problems(0, sums.n_sets)
    assert len(held_out) == sums.n_sets
    with pytest.raises(UsageError, match=f"but only {sums.n_sets} exist that are no reordering"):
        sums.problems(0, sums.n_sets + 1)


def test_large_spaces_are_drawn_not_listed():
    train, held_out = Sums(terms=6, maximum=999).problems(200, 50, seed=1)
    assert len({p.question for p in (*train, *held_out)}) == 250


def test_different_seeds_differ():
    assert Sums().problems(50, 10, seed=0) != Sums().problems(50, 10, seed=1)


def test_sums_by_name():
    found = load("sums")
    assert (len(found.train), len(found.held_out)) == (512, 48)
    assert found.train[0] == Sums().problems(1, 48)[0][0]
    assert load("sums:terms=2,max=30").train == found.train
    three = load("sums:terms=3,max=9,wording=verbose,held_out=20", limit=64, seed=5)
    assert (three.train, three.held_out) == Sums(3, 9, wording=room.STEP_BY_STEP).problems(64, 20, 5)
    tiny = load("sums:max=4")
    # 16 questions, 10 without reorderings: a quarter of those is held out, with both orders of each.
    assert len(tiny.held_out) == 2
    assert 12 <= len(tiny.train) <= 14
    assert "Sums(terms=2, maximum=30" in found.mapping


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("sums:term=2", "sums has no option 'term=2'"),
        ("sums:terms", "sums has no option 'terms'"),
        ("sums:terms=two", "whole numbers"),
        ("sums:terms=1", "is no sum"),
        ("sums:max=0", "is no sum"),
        ("sums:min=-1", "is no sum"),
        ("sums:wording=long", "sums has no wording 'long'"),
        ("sums:max=3,held_out=99", "but only 6 exist"),
    ],
)
def test_wrong_options_of_sums(source, says):
    assert says in refused(source, exit_code=2)


def test_generated_problems_take_no_file_options():
    assert "has no splits or columns" in refused("sums", split="train", exit_code=2)
    assert "has no splits or columns" in refused("sums", columns={"answer": "x"}, exit_code=2)
    with pytest.raises(UsageError, match="does not show the sum"):
        Sums(wording="What?")


# Splitting and pairing

WORDS = st.sampled_from(["one", "two", "Two ", "three", "4", "5 ", "six\n", "seven  eight"])
QUESTIONS = st.lists(st.lists(WORDS, min_size=1, max_size=3).map(" ".join), max_size=30)


def problems_of(questions, answers=None, solutions=None) -> list[Problem]:
    n = len(questions)
    answers = answers or [None] * n
    solutions = solutions or [None] * n
    return [Problem(id=f"p{at}", question=questions[at], answer=answers[at], solution=solutions[at]) for at in range(n)]


@given(QUESTIONS, st.floats(0, 0.99), st.integers(0, 3))
def test_a_fraction_splits_disjointly_and_moves_nobody_when_one_is_added(questions, fraction, seed):
    problems = problems_of(questions)
    train, held_out = split_train_held_out(problems, fraction, seed)
    assert sorted((*train, *held_out), key=lambda p: int(p.id[1:])) == problems
    assert not {normalised(p.question) for p in train} & {normalised(p.question) for p in held_out}
    assert not {reordering_key(p.question) for p in train} & {reordering_key(p.question) for p in held_out}
    for at in range(len(problems)):
        fewer = problems[:at] + problems[at + 1 :]
        again = split_train_held_out(fewer, fraction, seed)
        assert again == tuple(tuple(p for p in side if p is not problems[at]) for side in (train, held_out))


@given(st.integers(2, 40), st.data())
def test_a_count_is_met_whatever_the_order(n, data):
    problems = problems_of([f"question {at}" for at in range(n)])
    wanted = data.draw(st.integers(0, n - 1))
    train, held_out = split_train_held_out(problems, wanted, 1)
    assert (len(train), len(held_out)) == (n - wanted, wanted)
    shuffled = data.draw(st.permutations(problems))
    assert {p.id for p in split_train_held_out(shuffled, wanted, 1)[1]} == {p.id for p in held_out}
    # One more problem displaces at most one.
    more = split_train_held_out([*problems, Problem(id="new", question="another")], wanted, 1)[1]
    assert len({p.id for p in held_out} - {p.id for p in more}) <= 1


@pytest.mark.parametrize("held_out", [5, 6, -1, 1.0, -0.1, math.nan])
def test_impossible_splits_are_refused(held_out):
    with pytest.raises(UsageError) as caught:
        split_train_held_out(problems_of([f"q{n}" for n in range(5)]), held_out)
    assert caught.value.exit_code == 2


def test_reorderings_stay_together():
    problems = problems_of(["What is 17 + 8?", "What is 8 + 17?", "What is 1 + 2?"])
    for seed in range(20):
        train, held_out = split_train_held_out(problems, 2, seed)
        assert {"p0", "p1"} in ({p.id for p in train}, {p.id for p in held_out})
        assert [p.id for p in split_train_held_out(problems, 1, seed)[0]] == ["p0", "p1"]


def test_a_set_holds_out_its_own_first():
    found = load("sums", limit=100)
    assert found.with_held_out(10).held_out == found.held_out[:10]
    more = found.with_held_out(60, seed=2)
    assert more.held_out[:48] == found.held_out
    assert (len(more.train), len(more.held_out)) == (88, 60)
    assert not {reordering_key(p.question) for p in more.train} & {reordering_key(p.question) for p in more.held_out}


def test_a_held_out_set_from_elsewhere_is_not_trained_on():
    train = load("sums", limit=30)
    elsewhere = [replace(train.train[3], question=train.train[3].question.upper()), Problem(id="z", question="new?")]
    apart = train.apart_from(elsewhere)
    assert len(apart.train) == 29
    assert apart.held_out == tuple(elsewhere)
    assert apart.dropped[-1] == ("asked in the held-out set", 1)


PAIRABLE = st.lists(
    st.tuples(st.lists(WORDS, min_size=1, max_size=2).map(" ".join), st.sampled_from([None, "1", "1.0", "2", "3", "x"]),
              st.integers(0, 9)), min_size=2, max_size=25
)  # fmt: skip


@settings(max_examples=300)
@given(PAIRABLE, st.integers(0, 3), st.randoms())
def test_others_are_different_used_once_and_always_the_same(rows, seed, chooser):
    problems = problems_of([r[0] for r in rows], [r[1] for r in rows], ["s" * r[2] for r in rows])
    most = max(Counter(normalised(p.question) for p in problems).values())
    if 2 * most > len(problems):
        with pytest.raises(InputError) as caught:
            pair_with_others(problems, seed)
        assert caught.value.exit_code == 3
        return
    paired = pair_with_others(problems, seed)
    assert [replace(p, other=None) for p in paired] == problems
    assert all(normalised(p.question) != normalised(p.other.question) for p in paired)
    assert sorted(p.other.id for p in paired) == sorted(p.id for p in problems)
    assert all(p.other.other is None for p in paired)
    assert pair_with_others(problems, seed) == paired
    shuffled = list(problems)
    chooser.shuffle(shuffled)
    assert {p.id: p.other.id for p in pair_with_others(shuffled, seed)} == {p.id: p.other.id for p in paired}


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=25), st.integers(0, 3))
def test_the_other_answer_differs_wherever_that_can_be(answers, seed):
    assume(2 * max(Counter(answers).values()) <= len(answers))
    paired = pair_with_others(problems_of([f"q{n}" for n in range(len(answers))], answers), seed)
    assert all(p.answer != p.other.answer for p in paired)


@given(st.lists(st.sampled_from("abbbb"), min_size=2, max_size=25), st.integers(0, 3))
def test_where_most_answers_are_equal_as_few_leak_as_can_be(answers, seed):
    most = max(Counter(answers).values())
    paired = pair_with_others(problems_of([f"q{n}" for n in range(len(answers))], answers), seed)
    assert sum(p.answer == p.other.answer for p in paired) == max(0, 2 * most - len(answers))


@given(st.lists(st.integers(1, 2000), min_size=4, max_size=60, unique=True), st.integers(0, 3))
def test_others_are_close_in_length_of_solution(lengths, seed):
    problems = problems_of([f"q{n}" for n in lengths], None, ["s" * n for n in lengths])
    paired = pair_with_others(problems, seed)
    rank = {length: at for at, length in enumerate(sorted(lengths))}
    assert all(abs(rank[len(p.solution)] - rank[len(p.other.solution)]) <= 2 for p in paired)


@pytest.mark.parametrize("questions", [[], ["q"], ["q", " Q "], ["q", "q", "q\n", "Q"]])
def test_fewer_than_two_distinct_problems_cannot_be_paired(questions):
    with pytest.raises(InputError, match="at least two distinct"):
        pair_with_others(problems_of(questions))


def test_too_many_repeats_cannot_be_paired():
    with pytest.raises(InputError, match="3 of 5 problems ask the same question"):
        pair_with_others(problems_of(["a", "a", "a", "b", "c"]))


def test_pairing_thousands_is_quick():
    n = 4000
    yes_no = [["yes", "no"][at % 5 == 0] for at in range(n)]
    paired = pair_with_others(problems_of([f"q{at}" for at in range(n)], yes_no, ["s" * (at % 97) for at in range(n)]))
    assert sum(p.answer == p.other.answer for p in paired) == n - 2 * yes_no.count("no")
