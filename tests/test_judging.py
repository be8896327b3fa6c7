"""Verdicts beside the writer: as many at once as the jail runs programs, each for its own rollout."""

from __future__ import annotations

import threading

import pytest

from verifiers import Verdict, at_once, close, open_sandbox
from verifiers.programs import SandboxRefused
from workbench.problems.coding import code_problems
from workbench.records import Problem, Rollout
from workbench.train import judging
from workbench.train.evaluate import verify_with
from workbench.train.judging import Judging


def written(n: int) -> list[Rollout]:
    return [Rollout(Problem("p", "q"), "student", (1,), str(i), None, "stop", index=i) for i in range(n)]


def test_several_judge_at_once_and_each_verdict_is_its_own_rollouts(monkeypatch):
    monkeypatch.setattr(judging, "at_once", lambda: 3)
    together = threading.Barrier(3, timeout=30)  # broken, and an error, unless three are inside at the same moment

    def verify(rollout: Rollout) -> Verdict:
        together.wait()
        return Verdict("wrong", rollout.text)

    rollouts = written(9)
    with Judging(verify) as judge:
        for rollout in reversed(rollouts):
            judge.begin(rollout)
        assert [judge(rollout).extracted for rollout in rollouts] == [str(i) for i in range(9)]


def test_without_programs_one_thread_judges():
    close()
    seen: set[int] = set()

    def verify(rollout: Rollout) -> Verdict:
        seen.add(threading.get_ident())
        return Verdict("wrong", rollout.text)

    with Judging(verify) as judge:
        for rollout in (rollouts := written(20)):
            judge.begin(rollout)
        assert [judge(rollout).extracted for rollout in rollouts] == [str(i) for i in range(20)]
    assert at_once() == len(seen) == 1


def test_what_a_judge_raises_comes_out_where_the_verdict_is_wanted(monkeypatch):
    monkeypatch.setattr(judging, "at_once", lambda: 2)

    def verify(rollout: Rollout) -> Verdict:
        if rollout.index == 1:
            raise SandboxRefused("lost")
        return Verdict("wrong", rollout.text)

    with Judging(verify) as judge:
        for rollout in (rollouts := written(3)):
            judge.begin(rollout)
        assert judge(rollouts[0]).extracted == "0"
        with pytest.raises(SandboxRefused):
            judge(rollouts[1])
        assert judge(rollouts[2]).extracted == "2"


def test_programs_judged_two_at_once_get_the_verdicts_they_get_alone():
    try:
        open_sandbox("auto", workers=2)
    except SandboxRefused as refusal:
        pytest.skip(str(refusal))
    train, _ = code_problems("difficulty=easy", 6)
    texts = [text for p in train for text in (p.solution, "```python\nraise SystemExit\n```", "no program")]
    rollouts = [Rollout(train[i // 3], "student", (1,), text, None, "stop", index=i) for i, text in enumerate(texts)]
    with Judging(verify_with("strict")) as judge:
        assert at_once() == 2
        for rollout in rollouts:
            judge.begin(rollout)
        assert [judge(r).status for r in rollouts] == ["correct", "wrong", "no_answer"] * len(train)
    close()
