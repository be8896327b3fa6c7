"""Studies on a tiny model: what a notebook asks is what the main job would do, and every beginning is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from workbench import study
from workbench.config import RunConfig
from workbench.divergence import ReverseKL
from workbench.errors import UsageError
from workbench.parts.contexts import question, with_solution, with_solution_of_another
from workbench.parts.gates import Correct
from workbench.parts.terms import Distill
from workbench.problems import ProblemSet
from workbench.recipe import Optimizer, Recipe
from workbench.records import Problem, Sampling

RECIPE = Recipe(
    name="probe",
    paper="none",
    student=question,
    teacher=with_solution,
    terms=(Distill(ReverseKL()),),
    sampling=Sampling(max_new_tokens=6),
    optimizer=Optimizer(lr=1e-2),
    batch=2,
)
PROBLEMS = study.mixed_sums(train=6, held_out=6)


@pytest.fixture
def begin(tiny_folder: Path):
    def make(recipe: Recipe = RECIPE, problems: ProblemSet = PROBLEMS) -> study.Study:
        return study.begin(recipe, problems, config=RunConfig(model=str(tiny_folder), eval_tokens=8))

    return make


@pytest.mark.parametrize(("word", "number"), [("ci", 1), ("default", 2), ("large", 3), ("", 2), (None, 2)])
def test_the_environment_says_the_size(monkeypatch, word, number) -> None:
    monkeypatch.delenv("WB_NB_SIZE", raising=False)
    if word is not None:
        monkeypatch.setenv("WB_NB_SIZE", word)
    assert study.sized(ci=1, default=2, large=3) == number


def test_another_size_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("WB_NB_SIZE", "larg")
    with pytest.raises(UsageError, match=r"WB_NB_SIZE=larg is no size. .*large"):
        study.sized(1, 2, 3)


def test_sums_of_several_lengths_in_turn() -> None:
    assert [len(p.solution.splitlines()) for p in PROBLEMS.held_out] == [1, 2, 3, 1, 2, 3]
    assert study.steps_of_reference(PROBLEMS.held_out)[PROBLEMS.held_out[0].id] == "1 step"
    assert sorted(set(study.steps_of_reference(PROBLEMS.held_out).values())) == ["1 step", "2 steps", "3 steps"]
    assert study.steps_of_reference([Problem("p", "?")]) == {}
    assert {p.id for p in PROBLEMS.train}.isdisjoint(p.id for p in PROBLEMS.held_out)
    assert all(p.other is not None and p.other.id != p.id for p in PROBLEMS.held_out)
    assert all(p.other.id != p.id and p.other.answer != p.answer for p in PROBLEMS.held_out if p.other)
    assert (len(PROBLEMS.train), len(PROBLEMS.held_out)) == (6, 6)


def test_every_beginning_is_the_same_and_learning_moves_it(begin) -> None:
    first = begin()
    before = first.ask("before", samples=2)
    weights = {name: p.detach().clone() for name, p in first.engine.parameters().items()}
    reports = first.learn(2)
    assert [report.step for report in reports] == [1, 2]
    assert all(report.tokens > 0 for report in reports)
    assert any(not torch.equal(weights[name], p) for name, p in first.engine.parameters().items())
    second = begin()
    assert all(torch.equal(weights[name], p) for name, p in second.engine.parameters().items())
    assert second.ask("before", samples=2) == before, "the same weights, problems and luck"
    assert first.ask("after", samples=2).answers != before.answers
    assert [len(group) for group in before.scores.values()] == [2] * 6
    assert max(a.tokens for a in before.answers) == 8, "under the evaluation's cap, not the rollouts'"


def test_greedy_for_one_sample(begin) -> None:
    case = begin()
    assert case.ask("a").answers == case.ask("a", temperature=0.0).answers
    assert case.ask("a", with_solution).answers != case.ask("a").answers


def test_what_is_seen_is_what_the_step_would_lose(begin) -> None:
    """The loss of the first training step on these rollouts, by the step's own report."""
    case = begin()
    groups = case.write(case.held_out, samples=2)
    assert [len(group) for group in groups] == [2] * 6
    seen = case.see(groups)
    assert [one.problem for one in seen] == [j.rollout.problem.id for group in groups for j in group]
    weighted = sum((one.reverse_kl * one.weights[0]).sum() for one in seen)
    assert study.loss(seen) == pytest.approx(weighted, rel=1e-6)
    assert study.loss(seen) > 0
    same = case.see(groups, question)
    assert max(np.abs(one.difference).max() for one in same) < 1e-5
    assert same[0].recipe == "probe, teacher sees question"
    other = case.see(groups, with_solution_of_another)
    assert study.loss(other) != pytest.approx(study.loss(seen))
    wrong = case.see(groups, recipe=begin(gated()).recipe)
    assert not any(one.weight.any() for one in wrong), "a random model solves nothing"
    assert study.loss(wrong) == 0.0


def gated() -> Recipe:
    return replace(RECIPE, gates=(Correct(),))


def test_a_text_put_into_the_students_mouth(begin) -> None:
    """Its answer's log-prob is the sum over the tokens that hold it, under each role."""
    case = begin()
    problem = case.held_out[1]
    groups = case.say({problem.id: f"It is {problem.answer}."})
    (seen,) = case.see(groups)
    assert seen.completion.startswith(f"It is {problem.answer}")
    found = study.answer_logps([seen], "student")[problem.id]
    at = [i for i, piece in enumerate(seen.text) if piece.isdigit()]
    assert found == [pytest.approx(float(seen.student_logp[at].sum()))]
    assert study.answer_logps([seen])[problem.id] == [pytest.approx(float(seen.teacher_logp[at].sum()))]
    assert list(study.answer_logps(case.see(case.say({problem.id: "none"}))).values()) == [[None]]
    assert case.say({}) == []


def test_prompts_and_partings_are_readable(begin) -> None:
    case = begin()
    text = case.prompts(case.held_out[0])
    assert text.startswith("--- student sees ")
    assert "--- teacher sees " in text
    assert case.held_out[0].question in text
    assert case.held_out[0].solution in text
    seen = case.see(case.write())
    at = study.most_apart(seen)
    assert seen[at].forward_kl.sum() == max(one.forward_kl.sum() for one in seen)
    head, *rows = study.parting(seen[at], 3).splitlines()
    assert head.startswith("token")
    assert len(rows) == 3
    widest = int(seen[at].forward_kl.argmax())
    assert any(row.startswith(f"{widest} ") for row in rows)
    assert "\x00" not in "".join(rows)


def test_a_gold_that_nobody_can_read_is_refused(begin) -> None:
    unread = ProblemSet((Problem("a", "?", None),), (), "given", "none", ())
    with pytest.raises(UsageError, match="the gold of 1 problems cannot be read"):
        begin(problems=unread)


def test_a_view_is_a_page_of_its_own(begin) -> None:
    """In a frame without an origin, the page as one attribute: nothing of it is the notebook's."""
    case = begin()
    seen = case.see(case.write(case.held_out[:1]))
    shown = study.show(seen, 'two "views" <b>')
    text = shown._repr_html_()
    assert text.startswith('<div><iframe title="two &quot;views&quot; &lt;b&gt;" sandbox="allow-scripts"')
    assert text.count("<") == 4, "div, frame and their ends"
    assert "Content-Security-Policy" in text
    assert repr(shown).startswith("<two")
