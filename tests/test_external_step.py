"""A step that another model teaches: one loss and gradient however it is cut, for every recipe and kind of teacher.

Float64, so agreement is to rounding. A process is half of the step's rollouts, with the whole step's denominators and
plans, and the gradients of both added up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.conftest import build_tiny
from verifiers import Verdict
from workbench import cache_teacher
from workbench.divergence import fused, generic, layouts
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.loading import load
from workbench.engine.roles import Cast
from workbench.engine.teachers import Beside, Local, Place, invite, run_texts
from workbench.overrides import choose
from workbench.parts.contexts import question
from workbench.parts.refresh import EXTERNAL
from workbench.parts.schedules import Clock
from workbench.parts.writers import Desk
from workbench.planning import plan
from workbench.recipe import Recipe
from workbench.recipes import ALL
from workbench.records import Judged
from workbench.train.batches import Denominators, Entry, entries
from workbench.train.learning import learn
from workbench.train.reading import planned
from workbench.train.report import Phases
from workbench.train.step import by_problem
from workbench.train.watching import Course

PROBLEMS = "sums:terms=2,maximum=9"
FLAGS = f"--problems {PROBLEMS} --limit 4 --eval-problems 0 --max-new-tokens 12 --temperature 1.3".split()
MIDDLE = Clock(2, 4)
"""Half of the way: every schedule is somewhere between its ends."""
EXTERNALS = sorted(name for name, recipe in ALL.items() if recipe.refresh.external)
MORE = {
    "adakd, half the tokens": ("adakd", "plans.0.share=0.5"),
    "minillm as released": ("minillm", "plans.0=ReverseKLToGo(scale=0.5,discount=0.95,own=true)"),
    "selectkd by speculation": ("selectkd", "plans.0.by=speculation"),
    "paced, its text": ("paced", "rollouts.second=0.0"),
    "distillm, its rollouts": ("distillm", "rollouts.student=1.0", "rollouts.fresh=1.0"),
    "gkd, one by one": ("gkd", "rollouts.per=problem"),
    "opd, future": ("opd", "plans.0=LogRatio(future=0.9)"),
    "lsm, entropies": ("lsm", "plans.0=HighestEntropy(0.4)"),
}
CASES = {name: (name,) for name in EXTERNALS} | MORE
CACHED = {
    "hidden": ("kd", "word_kd", "rkl_kd", "akl", "todi", "taid", "csd", "adakd", "selectkd", "topk_kd"),
    "top-k": ("word_kd", "rkl_kd"),
}


@dataclass(frozen=True)
class Step:
    """An engine, a recipe of numbers, and the groups of one step."""

    engine: Engine
    recipe: Recipe
    kept: list[Entry]

    @classmethod
    def drawn(cls, engine: Engine, recipe: Recipe, problems) -> Step:
        desk = Desk(engine, recipe.student, recipe.teacher, recipe.sampling, (0, 2), lambda: False)
        judged = [
            Judged(r, Verdict("wrong" if i % 16 else "correct"), advantage=0.5 - i % 2, weight=1.0 + i % 3 / 2)
            for i, r in enumerate(recipe.rollouts.draw(desk, problems))
        ]
        return cls(engine, recipe, entries(engine, recipe, by_problem(judged)))

    def counts(self) -> Denominators:
        return Denominators.of(self.recipe, self.kept)

    def gathered(self, some: list[Entry], counts: Denominators, micro: int = 10_000) -> tuple[float, dict]:
        """Loss and gradient by name of some of the step's entries."""
        self.engine.settings = replace(self.engine.settings, micro_tokens=micro)
        signals = learn(self.recipe, self.engine, some, counts, Course(Phases()))
        grads = {n: p.grad.clone() for n, p in self.engine.parameters().items() if p.grad is not None}
        self.engine.updates.forget()
        return sum(float((s.values.double() * s.weights.double()).sum()) for s in signals), grads

    def planned(self, micro: int = 10_000) -> list[Entry]:
        self.engine.settings = replace(self.engine.settings, micro_tokens=micro)
        return planned(self.recipe, self.engine, self.kept)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build_tiny(folder / "student")
    build_tiny(folder / "teacher", seed=3, layers=1, hidden_size=96, vocab_size=300)
    who = ["--model", str(folder / "student"), "--teacher", str(folder / "teacher"), *FLAGS]
    who += ["--recipe", "word_kd", "--set", "student=question", "--set", "teacher=question"]
    assert cache_teacher.main([*who, "--hidden", "--out", str(folder / "hidden")]) == 0
    assert cache_teacher.main([*who, "--top-k", "16", "--out", str(folder / "top-k")]) == 0
    return folder


@pytest.fixture(scope="module")
def problems():
    from workbench.cli import parse

    return plan(parse(["--model", "x", *FLAGS, "--recipe", "word_kd"])).train


@pytest.fixture(scope="module")
def engines(root: Path, problems) -> dict[str, Engine]:
    """By what teaches."""
    return {kind: engine_of(root, kind, problems) for kind in ("teacher", "hidden", "top-k")}


def engine_of(root: Path, kind: str, problems) -> Engine:
    loaded, cpu = load(str(root / "student"), dtype=torch.float64), torch.device("cpu")
    other = invite(str(root / kind))
    other.join(Beside(loaded, run_texts(problems), Place(cpu, cpu, dtype="float32")))
    if isinstance(other, Local):
        with other.weights.module() as model:
            model.double()
        other.weights.head = replace(other.weights.head, weight=other.weights.head.weight.double())
    cast = Cast(other, needs_reference=kind == "teacher")
    return Engine(loaded, adapter=None, refresh=EXTERNAL, settings=EngineSettings(), cast=cast)


def recipe_of(case: tuple[str, ...]) -> Recipe:
    name, *changes = case
    recipe = choose(name, changes).at(MIDDLE)
    sampling = replace(recipe.sampling, max_new_tokens=12, temperature=1.3)
    return replace(recipe, student=question, teacher=question, sampling=sampling, adapter=None)


def same(found: tuple[float, dict], expected: tuple[float, dict]) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-10)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert torch.allclose(found[1][name], gradient, atol=1e-10), name


def cut_in_every_way(step: Step, monkeypatch) -> None:
    counts, whole = step.counts(), step.planned()
    expected = step.gathered(whole, counts)
    assert max(float(g.abs().max()) for g in expected[1].values()) > 1e-8, "there is something to learn"
    # micro-batches, their order, and readings made in micro-batches
    for micro in (1, 300):
        same(step.gathered(step.planned(micro)[::-1], counts, micro), expected)
    # processes
    for halves in ((whole[::2], whole[1::2]), (whole[:1], whole[1:])):
        parts = [step.gathered(half, counts) for half in halves]
        total = {name: sum(p[1][name] for p in parts if name in p[1]) for name in expected[1]}
        same((sum(p[0] for p in parts), total), expected)
    # chunks of tokens and blocks of the vocabulary
    monkeypatch.setattr(generic, "CHUNK", 5)
    monkeypatch.setattr(fused, "CPU_CHUNK", 3)
    monkeypatch.setattr(layouts, "CPU_BLOCK", 16 * 7)
    same(step.gathered(step.planned(), counts, 500), expected)


@pytest.mark.parametrize("name", CASES)
def test_taught_live(engines, problems, monkeypatch, name: str) -> None:
    recipe = recipe_of(CASES[name])
    cut_in_every_way(Step.drawn(engines["teacher"], recipe, problems), monkeypatch)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in CACHED.items() for name in names])
def test_taught_from_a_cache(engines, problems, monkeypatch, kind: str, name: str) -> None:
    step = Step.drawn(engines[kind], recipe_of((name,)), problems)
    cut_in_every_way(step, monkeypatch)


@pytest.mark.parametrize("name", CACHED["hidden"])
def test_hidden_states_teach_what_the_live_teacher_does(engines, problems, name: str) -> None:
    """Kept in float32, so to its rounding; every plan and every generic term included."""
    recipe, found = recipe_of((name,)), []
    for kind in ("teacher", "hidden"):
        step = Step.drawn(engines[kind], recipe, problems)
        found.append(step.gathered(step.planned(), step.counts()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4, abs=1e-6)
    for key, gradient in found[0][1].items():
        assert torch.allclose(found[1][1][key], gradient, rtol=1e-3, atol=1e-5), key


@pytest.mark.parametrize("name", CACHED["top-k"])
def test_sixteen_of_258_entries_are_a_lower_bound(engines, problems, name: str) -> None:
    recipe, found = recipe_of((name,)), {}
    for kind in ("teacher", "top-k"):
        step = Step.drawn(engines[kind], recipe, problems)
        found[kind] = step.gathered(step.planned(), step.counts())[0]
    assert 0 < found["top-k"] < found["teacher"]


@pytest.mark.parametrize("name", ["adakd", "minillm", "lsm"])
def test_counting_a_half_by_itself_would_be_another_loss(engines, problems, name: str) -> None:
    """What the law above would not notice if both halves counted and planned for themselves: they differ."""
    step = Step.drawn(engines["teacher"], recipe_of(CASES[name]), problems)
    expected = step.gathered(step.planned(), step.counts())[0]
    apart = 0.0
    for half in (step.kept[:1], step.kept[1:]):
        alone = replace(step, kept=half)
        apart += alone.gathered(alone.planned(), alone.counts())[0] / 2
    assert apart != pytest.approx(expected, abs=1e-4)
