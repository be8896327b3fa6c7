"""What a budget buys: the survey's known answers, and commands that run."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.test_ranks import TOLD
from workbench import opsd, plan
from workbench.budget import Costs, normalised, read_budget
from workbench.cli import parse
from workbench.errors import UsageError
from workbench.plan import Measurement, buy
from workbench.recipes import ALL

SURVEY = Costs(teacher_reads=10, student_reads=1, student_learns=2, student_writes=3)
"""The worked example of the cost model, in any unit."""


def test_the_surveys_ratios() -> None:
    off = SURVEY.off_policy(7.0)
    ratios = [SURVEY.on_policy(7.0, rate) / off for rate in (1.0, 0.5, 0.1)]
    assert ratios == pytest.approx([1.2307692308, 0.8461538462, 0.5384615385], abs=1e-10)
    generated = replace(SURVEY, teacher_reads=0, teacher_writes=30).off_policy(written=True)
    assert SURVEY.on_policy() / generated == pytest.approx(0.4848484848, abs=1e-10)


def test_shares_of_the_rule_are_normalised() -> None:
    assert normalised((0.6, 0.2, 0.1)) == pytest.approx((0.6667, 0.2222, 0.1111), abs=1e-4)
    assert normalised((0.7, 0.3, 0.1)) == pytest.approx((0.6364, 0.2727, 0.0909), abs=1e-4)
    for wrong in ((), (0.0, 0.0), (1.0, -0.1), (float("inf"), 1.0)):
        with pytest.raises(UsageError, match="--shares"):
            normalised(wrong)


def test_a_budget_is_a_time() -> None:
    assert [read_budget(text) for text in ("8h", "90m", "1.5d", "300s", "2min")] == [28800, 5400, 129600, 300, 120]
    for wrong in ("8", "h", "-1h", "0h", "1e3h", "8 h", "8h\n", "nan"):
        with pytest.raises(UsageError, match="--budget"):
            read_budget(wrong)


def test_steps_fill_their_share_and_no_more() -> None:
    found = Measurement(replace(SURVEY, teacher_writes=30), written=20, given=5)
    sft, opsd_, grpo, seqkd = (replace(ALL[name], batch=4) for name in ("sft", "opsd", "grpo", "seqkd"))
    bought = buy(sft, found, 600.0, 0.5)
    assert (bought.seconds_a_token, bought.tokens_a_step, bought.steps) == (1 + 2, 4 * 5, 10)
    assert bought.seconds == 600.0
    assert buy(opsd_, found, 1281.0, 0.5, rate=0.5).steps == 1281 // int(4 * 20 * (3 + 0.5 * 10 + 3)) == 1
    assert buy(grpo, found, 3841.0, 0.1).steps == 3841 // (4 * 8 * 20 * 6) == 1
    assert buy(seqkd, found, 5.0, 0.1).seconds_a_token == 30 + 3, "the teacher writes and is not asked again"
    assert buy(seqkd, found, 5.0, 0.1).steps == 1, "at least one"


def test_a_plan_prints_commands_that_run(tiny_folder: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", str(tiny_folder), "--problems", "sums:terms=2,maximum=9", "--limit", "12", "--batch", "3"]
    flags += ["--eval-problems", "2", "--max-new-tokens", "8", "--progress", "plain", "--group", "2"]
    asked = ["--budget", "20s", "--refresh-rate", "0.5", *flags]
    assert plan.main(asked) == 0
    first = capsys.readouterr()
    assert "measuring two steps of opsd" in first.err
    commands = [line for line in first.out.splitlines() if line.startswith("python -m workbench.opsd ")]
    assert len(commands) == 4
    configs = [parse(shlex.split(command)[3:]) for command in commands]
    names = [stage.partition(":")[0] for stage in configs[0].stages]
    assert names == [config.recipe for config in configs[1:]] == ["sft", "opsd", "grpo"]
    assert [int(stage.partition(":")[2]) for stage in configs[0].stages] == [config.steps for config in configs[1:]]
    assert [config.fork for config in configs] == [None, None, "runs/planned-1", "runs/planned-2"]
    assert {(config.batch, config.adapter, config.max_new_tokens) for config in configs} == {
        (3, "lora:r=64,alpha=128", 8)
    }
    assert [config.group for config in configs] == [2, None, 2, 2]
    assert opsd.main([*shlex.split(commands[0])[3:], "--dry-run"]) == 0
    capsys.readouterr()
    assert plan.main(asked) == 0
    again = capsys.readouterr()
    assert again.err == "", "measured once"
    assert again.out == first.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budget", "soon"], "is no time"),
        (["--budget", "1h", "--shares", "1,2"], "three stages"),
        (["--budget", "1h", "--shares", "a"], "no numbers"),
        (["--budget", "1h", "--refresh-rate", "0"], "is no share"),
        (["--budget", "1h", "--stages", "sft:1"], "whole recipes"),
        (["--budget", "1h", "--engine", "vllm", "--server", "http://127.0.0.1:1"], "Leave --engine and --server out"),
        (["--budget", "1h", "--modle", "x"], "no flag --modle"),
        (["--budget", "1h", "--reward", "grp"], "no recipe 'grp'"),
    ],
)
def test_a_plan_that_cannot_be_meant(flags, words, capsys) -> None:
    assert plan.main(flags) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_plan_is_made_by_one_process(monkeypatch, capsys) -> None:
    for name, value in (TOLD | {"RANK": "0", "LOCAL_RANK": "0"}).items():  # the first one speaks
        monkeypatch.setenv(name, value)
    assert plan.main(["--budget", "1h"]) == 2
    assert "workbench.plan runs in one process" in " ".join(capsys.readouterr().err.split())
