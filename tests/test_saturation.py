"""A loop that believes itself: seen in constructed groups, in a run that was built to do it, and in SmolLM2."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import verifiers
from verifiers import Verdict
from workbench import opsd
from workbench.parts.contexts import question, question_v1
from workbench.parts.gates import Consensus, Correct
from workbench.parts.schedules import Clock
from workbench.parts.terms import CrossEntropy
from workbench.parts.writers import FromDataset, OnPolicy
from workbench.recipe import Optimizer, Recipe
from workbench.recipes import ALL
from workbench.records import Judged, Problem, Rollout, Sampling
from workbench.train.run_directory import read_jsonl
from workbench.train.saturation import WINDOW, Saturation, figures
from workbench.train.step import State, train_step

BY_ITSELF = Recipe(
    name="by_itself",
    paper="-",
    student=question,
    rollouts=OnPolicy(8),
    gates=(Consensus(votes=4, author="student"),),
    terms=(CrossEntropy(),),
    sampling=Sampling(max_new_tokens=12),
    optimizer=Optimizer(lr=5e-4),
)


def group(
    answers: str, name: str = "p", *, gold: str | None = "7", tokens: int = 2, logp: float = -0.5
) -> list[Judged]:
    """One rollout a letter; `-` has no answer, `?` was not judged."""
    out = []
    for i, answer in enumerate(answers):
        said = None if answer == "-" else answer
        status = "unjudged" if gold is None or answer == "?" else "correct" if answer == gold else "wrong"
        rollout = Rollout(Problem(name, "?"), "student", (1,) * tokens, "", (logp,) * tokens, "stop", index=i)
        out.append(Judged(rollout, Verdict("no_answer" if said is None else status, said)))
    return out


# -- one step --------------------------------------------------------------------------------------------------------


def test_figures_of_two_groups() -> None:
    """7731 and 3333: half and none right, three answers and one, majorities 7 and 3."""
    step = group("7731", "a", logp=-0.25) + group("3333", "b", tokens=6, logp=-1.0)
    assert figures(step) == pytest.approx(
        {
            "group_k": 4,
            "mean_at_k": 0.25,
            "pass_at_k": 0.5,
            "all_correct_share": 0.0,
            "all_wrong_share": 0.5,
            "answer_diversity": (2 / 3 + 0) / 2,
            "consensus_agreement": (0.5 + 1.0) / 2,
            "consensus_right": 0.5,
            "student_entropy": (8 * 0.25 + 24 * 1.0) / 32,
        }
    )


def test_what_cannot_be_said_is_left_out() -> None:
    assert figures([]) == {}
    assert set(figures(group("7"))) == {"student_entropy"}, "one rollout agrees with nobody"
    unjudged = figures(group("7731", gold=None))
    assert set(unjudged) == {"consensus_agreement", "answer_diversity", "student_entropy"}
    assert set(figures(group("----"))) >= {"mean_at_k", "consensus_agreement"}
    assert figures(group("----"))["consensus_agreement"] == 0.0
    assert "consensus_right" not in figures(group("73")), "a tie has no majority"
    by_others = [replace(j, rollout=replace(j.rollout, author="teacher")) for j in group("7777")]
    assert figures(by_others) == {}, "it is about the student"


def test_pass_at_k_is_unbiased_where_groups_differ_in_size() -> None:
    """k is the smallest group: 2 of 4 right at k = 2 is 1 - 1/6."""
    step = group("7733", "a") + group("73", "b")
    assert (figures(step)["group_k"], figures(step)["pass_at_k"]) == (2, pytest.approx((5 / 6 + 1) / 2))


def test_equivalent_answers_are_one_answer() -> None:
    step = group("12")
    same = [replace(j, verdict=replace(j.verdict, extracted=a)) for j, a in zip(step, ("1/2", "0.5"), strict=True)]
    assert figures(same)["answer_diversity"] == 0.0


written = st.lists(st.text("731-?", min_size=1, max_size=6), min_size=1, max_size=4)


@given(written)
@settings(deadline=None)
def test_laws_of_figures(texts: list[str]) -> None:
    """Shares lie in [0, 1], the mean never exceeds the pass, and the order of rollouts and groups does not matter."""
    step = [j for i, text in enumerate(texts) for j in group(text, f"p{i}")]
    found = figures(step)
    assert all(0.0 <= found[name] <= 1.0 for name in set(found) - {"group_k", "student_entropy"})
    assert found.get("mean_at_k", 0.0) <= found.get("pass_at_k", 0.0) + 1e-12
    assert figures(step[::-1]) == pytest.approx(found)


# -- step by step ----------------------------------------------------------------------------------------------------


def watch(steps: list[list[Judged]], recipe: Recipe = BY_ITSELF) -> list[str]:
    """Everything said; the monitor is laid down and taken up again after every step."""
    monitor, said = Saturation(recipe), []
    for step in steps:
        said += monitor.observe(step)[1]
        monitor = Saturation(recipe, json.loads(json.dumps(monitor.state_dict())))
    return said


MIXED, WRONG, RIGHT = "77333412", "33333333", "77777777"


@pytest.mark.parametrize(
    ("steps", "gold", "words"),
    [
        ([MIXED] * 9, "7", None),
        ([MIXED] * 3 + [WRONG] * 3, "7", "finds 1.00 of these majorities wrong"),
        ([MIXED] * 3 + [WRONG] * 3, None, "nobody verified it"),
        ([MIXED] * 3 + [RIGHT] * 3, "7", None),
        ([WRONG] * 3, None, "1.00 of a group's rollouts give the same answer: nobody"),
        ([WRONG] * 2, None, None),
        (["77334412"] * 3 + ["77333333"] * 9, "7", "finds 1.00 of these"),
    ],
    ids=["steady", "wrong", "unverified", "right", "from the start", "too early", "by degrees"],
)
def test_agreement_is_an_alarm_unless_it_is_right(steps, gold, words) -> None:
    said = watch([group(text, gold=gold) for text in steps])
    assert len(said) == (words is not None), "once"
    assert words is None or words in said[0]


def test_narrowing_is_an_alarm() -> None:
    """Four problems solved once in four each; then one of them always: mean@k holds, pass@k falls to a quarter."""
    wide = [j for i in range(4) for j in group("7345", f"p{i}")]
    narrow = [j for i in range(4) for j in group("7777" if i == 0 else "1234", f"p{i}")]
    (said,) = watch([wide] * 3 + [narrow] * 3)
    assert said.startswith("pass@k is 0.50 of the start's while mean@k holds")
    assert watch([wide] * 3 + [[*wide[:12], *group("7777", "p3")]] * 3) == []


def test_silent_groups_are_an_alarm_where_groups_are_compared() -> None:
    steps = [group("1234", "a") + group("1254", "b")] * 3
    (said,) = watch(steps, ALL["grpo"])
    assert said == "1.00 of the groups are all right or all wrong: they teach nothing. Use easier problems"
    assert watch(steps) == watch(steps, ALL["kdrl"]) == [], "cross entropy, and a teacher, teach there too"


def test_length_drift_and_windows() -> None:
    monitor = Saturation(BY_ITSELF)
    drifts = [monitor.observe(group("71", tokens=n))[0].get("length_drift") for n in (10, 10, 10, 40, 40, 40)]
    assert drifts == [None, None, 1.0, 2.0, 3.0, 4.0]
    assert WINDOW == 3


# -- a run that was built to believe itself --------------------------------------------------------------------------


def mostly_wrong(engine) -> None:
    """Teach it to answer 3 five times in eight, 7 twice and 1 once."""
    recipe = replace(BY_ITSELF, rollouts=FromDataset(), gates=(), optimizer=Optimizer(lr=1e-2))
    texts = [Problem(f"t{i}", "2 + 5", None, f"\\boxed{{{a}}}") for i, a in enumerate("33333771")]
    state = State(engine, Clock(0, 1))
    for _ in range(25):
        train_step(recipe, state, texts, lambda rollout: Verdict("unjudged"))


def judge(gold: str | None):
    asked = [Problem(f"q{i}", "2 + 5", gold) for i in range(4)]
    return asked, lambda r: verifiers.verify(r.problem, r.text, truncated=r.stop != "stop")


def test_a_run_that_believes_itself_is_seen_and_a_verifier_turns_it(tiny) -> None:
    """Without a verifier agreement is all there is to see; from there `Correct` finds the way back to the 7."""
    engine = tiny()
    mostly_wrong(engine)
    asked, verify = judge(None)
    state, monitor, said, first = State(engine, Clock(0, 1)), Saturation(BY_ITSELF), [], {}
    while not said:
        assert state.clock.step < 25, "never seen"
        found, said = monitor.observe(train_step(BY_ITSELF, state, asked, verify).judged)
        first = first or found
    assert "nobody verified it" in said[0]
    assert first["answer_diversity"] > 2 * found["answer_diversity"]
    assert found["student_entropy"] < 0.5 * first["student_entropy"]

    asked, verify = judge("7")
    gated, right = replace(BY_ITSELF, gates=(Correct(),)), []
    while not right or right[-1] < 0.9:
        assert len(right) < 45, "never turned"
        right.append(figures(train_step(gated, state, asked, verify).judged)["mean_at_k"])
    assert right[0] < 0.2, "it did believe itself"


@pytest.mark.parametrize(("gate", "ends"), [(BY_ITSELF.gates[0], "wrong"), (Correct(), "right")])
def test_what_a_gate_makes_of_the_same_start(tiny, gate, ends: str) -> None:
    """With verdicts at hand: agreement on a wrong answer is told by its name, on the right one it is no alarm."""
    engine = tiny()
    mostly_wrong(engine)
    asked, verify = judge("7")
    recipe = replace(BY_ITSELF, gates=(gate,), optimizer=Optimizer(lr=2e-3))
    state, monitor, said = State(engine, Clock(0, 1)), Saturation(recipe), []
    for _ in range(8):
        found, new = monitor.observe(train_step(recipe, state, asked, verify).judged)
        said += new
    if ends == "right":
        assert found["mean_at_k"] > 0.9
        assert said == [], "agreeing on what is right is what training is for"
    else:
        assert found["mean_at_k"] < 0.1
        assert ["of these majorities wrong. Gate by Correct" in text for text in said] == [True]


def test_a_run_says_it_on_the_screen_and_in_its_files(tmp_path, tiny_folder, capsys, monkeypatch) -> None:
    """Through the command: figures in metrics.jsonl, the alarm as a line of its own."""
    monkeypatch.chdir(tmp_path)
    problems = tmp_path / "problems.jsonl"
    rows = [{"id": str(i), "question": "2 + 5", "answer": "7", "solution": "7"} for i in range(4)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = "--steps 3 --batch 2 --group 3 --max-new-tokens 4 --eval-problems 0 --progress plain --name a"
    where = ["--model", str(tiny_folder), "--problems", str(problems), "--recipe", "grpo"]
    assert opsd.main([*where, *sizes.split()]) == 0
    captured = capsys.readouterr()
    assert "1.00 of the groups are all right or all wrong" in captured.out + captured.err
    metrics = read_jsonl(Path("runs/a/metrics.jsonl"))
    assert all(row["mean_at_k"] == row["pass_at_k"] == 0.0 and row["all_wrong_share"] == 1.0 for row in metrics)
    assert all(math.isfinite(row["student_entropy"]) for row in metrics)
    assert all({"rollout", "verify"} <= set(row["seconds"]) for row in metrics)
    line = next(text for text in (captured.out + captured.err).splitlines() if "step 1/3" in text)
    assert " verify " in line, "what judging took is a column of its own"


@pytest.mark.slow
def test_smollm2_takes_its_own_majority_for_the_truth() -> None:
    """17 + 25 is 32 to it, most of the time. Its own majority makes that a certainty; `Correct` makes it 42."""
    from workbench.engine.engine import Engine, EngineSettings
    from workbench.engine.loading import load

    told = r"What is {} + {}? Put the final answer in \boxed{{}}."
    asked = [Problem(f"{a}+{b}", told.format(a, b), str(a + b)) for a, b in ((17, 25), (24, 18))]

    def verify(rollout: Rollout) -> Verdict:
        cut = rollout.stop != "stop"
        return verifiers.verify(rollout.problem, rollout.text, truncated=cut, profile="last_number")

    def rows(gate, steps: int):
        """Figures step by step, until all is right, and what was said."""
        recipe = replace(
            BY_ITSELF,
            student=question_v1,
            gates=(gate,),
            sampling=Sampling(max_new_tokens=12, top_p=0.9),
            optimizer=Optimizer(lr=5e-5),
        )
        loaded = load("smollm2", dtype=torch.float32)
        engine = Engine(loaded, adapter=None, refresh=recipe.refresh, settings=EngineSettings())
        state, monitor, found, said = State(engine, Clock(0, 1)), Saturation(recipe), [], []
        while len(found) < steps and (not found or found[-1]["mean_at_k"] < 0.9):
            row, new = monitor.observe(train_step(recipe, state, asked, verify).judged)
            found.append(row)
            said += new
            print(type(gate).__name__, {key: round(value, 3) for key, value in row.items()}, new, flush=True)
        return found, said

    found, said = rows(Consensus(votes=3, author="student"), 5)
    assert (found[-1]["mean_at_k"], found[-1]["consensus_right"]) == (0.0, 0.0)
    assert found[-1]["student_entropy"] < 0.2 * found[0]["student_entropy"]
    assert "of these majorities wrong" in said[0]
    found, _ = rows(Correct(), 15)
    assert found[0]["mean_at_k"] < 0.2
    assert found[-1]["mean_at_k"] > 0.9
