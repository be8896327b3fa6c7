"""What a recipe or a run refuses because it would train something else than it says."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.smoke import problems
from workbench import opsd
from workbench.divergence import ReverseKL
from workbench.errors import RecipeError
from workbench.parts.contexts import question
from workbench.parts.curricula import BetaKernel
from workbench.parts.schedules import Cosine, Linear, follows_total
from workbench.parts.selection import TemperatureByDifficulty
from workbench.parts.terms import CrossEntropy, Distill, PolicyGradient
from workbench.parts.writers import AdaptiveOffPolicy, FromDataset, OnPolicy, Staged, Together, TokenMixture
from workbench.recipe import Recipe
from workbench.recipes import ALL
from workbench.records import Sampling

BASE = Recipe(name="x", paper="-", teacher=question, terms=(Distill(ReverseKL()),))


def test_composite_writers_say_what_is_in_them() -> None:
    assert Together((OnPolicy(), TokenMixture())).mixes
    assert not Together((OnPolicy(), FromDataset())).mixes
    assert Staged((FromDataset(), AdaptiveOffPolicy(0.5, remembers=7)), second=1.0).remembers == 7
    with pytest.raises(RecipeError, match="`teacher` is None"):
        Recipe(name="x", paper="-", terms=(CrossEntropy(),), rollouts=TokenMixture())


def test_one_token_has_one_log_prob() -> None:
    """Another temperature for scoring is for whole distributions; ratios and sampled terms know no second one."""
    other = replace(BASE, sampling=Sampling(temperature=0.5), scoring_temperature=1.0)
    assert (other.temperature, BASE.temperature) == (1.0, 1.0)
    assert replace(other, scoring_temperature=None).temperature == 0.5
    with pytest.raises(RecipeError, match="Set both to the same"):
        replace(other, terms=(PolicyGradient(correction="importance"),))
    with pytest.raises(RecipeError, match="must be above 0"):
        replace(BASE, scoring_temperature=0.0)
    with pytest.raises(RecipeError, match="Use divergences alone"):
        replace(BASE, plans=(TemperatureByDifficulty(),), terms=(Distill(ReverseKL()), CrossEntropy()))


def test_what_follows_the_number_of_steps() -> None:
    following = {name for name, recipe in ALL.items() if follows_total(recipe)}
    assert {"veto", "taid", "adakd", "distillm", "distillm2", "todi", "paced"} <= following
    assert not {"opsd", "opsdc", "gates", "sft", "gkd", "opd", "fast_opd"} & following
    assert follows_total((Linear(0.0, 1.0), 3))
    assert follows_total(Cosine(1.0, 0.0))
    assert follows_total(BetaKernel())
    assert not follows_total(OnPolicy)


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path, monkeypatch, capsys):
    """(exit code, stderr) of a command on the tiny model as its own teacher."""
    monkeypatch.chdir(tmp_path)
    data = problems(tmp_path / "data.jsonl", 12)

    def command(text: str) -> tuple[int, str]:
        where = ["--model", str(tiny_folder), "--teacher", str(tiny_folder), "--problems", str(data)]
        sizes = "--batch 8 --max-new-tokens 4 --eval-tokens 4 --progress quiet --adapter none"
        code = opsd.main([*where, *sizes.split(), *shlex.split(text)])
        return code, capsys.readouterr().err

    return command


def test_a_schedule_is_not_stretched_by_a_resume(run) -> None:
    assert run("--recipe veto --name a --steps 2 --eval-problems 2")[0] == 0
    code, said = run("--recipe veto --name a --steps 4 --eval-problems 2 --resume")
    assert code == 2
    assert "steps 2 -> 4, which the recipe's schedules follow" in said
    assert run("--recipe gkd --name b --steps 1 --eval-problems 2")[0] == 0
    assert run("--recipe gkd --name b --steps 2 --eval-problems 2 --resume")[0] == 0


def test_a_schedule_that_validates_needs_something_to_validate_on(run) -> None:
    code, said = run("--recipe distillm --name a --steps 1 --eval-problems 0")
    assert code == 2
    assert "nothing is held out" in said


def test_a_step_meets_no_problem_twice(run, monkeypatch) -> None:
    """Three of ten problems teach: a batch of eight would write the same rollouts again."""
    monkeypatch.setattr(BetaKernel, "teaching", lambda self, problems, rates: problems[:3])
    code, said = run("--recipe paced --name a --steps 2 --eval-problems 2 --set curriculum.success=0 "
                     "--set curriculum.failure=0")  # fmt: skip
    assert code == 0, said
    rows = [json.loads(line) for line in Path("runs/a/rollouts.jsonl").read_text().splitlines()]
    for step in (1, 2):
        names = [row["problem"] for row in rows if row["step"] == step]
        assert len(names) == len(set(names)) == 3


def test_a_tempered_run_does_not_report_a_gap_between_sampler_and_learner(run) -> None:
    code, said = run('--recipe adakd --name a --steps 1 --eval-problems 2 --set "rollouts=OnPolicy()"')
    assert code == 0, said
    (row,) = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    assert row["sampler_gap"] < 1e-4
