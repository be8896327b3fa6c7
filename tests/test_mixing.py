"""Tokens drawn from two models at once: exact at both ends, priced as they were drawn, and nobody else's business."""

from __future__ import annotations

import functools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import TEMPLATE, build_tiny
from verifiers import Verdict
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.loading import load
from workbench.engine.mixing import decode_mixed
from workbench.engine.roles import Cast
from workbench.engine.sampling import Row
from workbench.engine.teachers import Beside, Local, Place
from workbench.parts.contexts import question, question_boxed
from workbench.parts.plans import ReverseKLToGo
from workbench.parts.refresh import FROZEN, LIVE
from workbench.parts.schedules import Clock
from workbench.parts.terms import PolicyGradient
from workbench.parts.writers import Desk, OnPolicy, TokenMixture
from workbench.recipe import Optimizer
from workbench.recipes import ALL
from workbench.records import Case, Problem, Request, Rollout, Sampling, TokenStats, Wanted
from workbench.train.step import State, train_step

PROBLEMS = [Problem(f"p{i}", "What is " + "1 + " * i + "2?", str(i + 2), "so " * i + f"{i + 2}") for i in range(4)]
SAMPLING = Sampling(max_new_tokens=9, temperature=1.3)
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    build_tiny(root / "student", specials=(END,))
    build_tiny(root / "wide", seed=3, hidden_size=96, vocab_size=300, specials=(END,))
    other = TEMPLATE.replace("{{ m['content'] }}<|im_end|>", "{{ m['content'] }}" + END)
    build_tiny(root / "ends", seed=3, hidden_size=96, specials=(END,), end=END, template=other)
    return root


@pytest.fixture(scope="module")
def engines(models):
    """One engine a teacher, for tests that change nothing in it."""
    return functools.cache(functools.partial(engine_of, models))


def engine_of(models: Path, teacher: str, refresh=FROZEN, **settings) -> Engine:
    """`lora`: the teacher is the student without its adapter; `self`: its initial weights; else another model."""
    loaded = load(str(models / "student"), dtype=torch.float64)
    cast = None
    if teacher in ("wide", "ends"):
        other, cpu = Local(str(models / teacher)), torch.device("cpu")
        other.join(Beside(loaded, ["2 + 2"], Place(cpu, cpu, dtype="float32")))
        with other.weights.module() as model:
            model.double()
        other.weights.head = replace(other.weights.head, weight=other.weights.head.weight.double())
        cast = Cast(other)
    adapter = "lora:r=4,alpha=8" if teacher == "lora" else None
    torch.manual_seed(0)
    engine = Engine(loaded, adapter=adapter, refresh=refresh, settings=EngineSettings(**settings), cast=cast)
    torch.manual_seed(1)
    with torch.no_grad():  # student and teacher are to differ, and not by their prompts alone
        for name, p in engine.parameters().items():
            if adapter is None or "lora_B" in name:
                p.add_(0.1 * torch.randn_like(p))
    return engine


TEACHERS = pytest.mark.parametrize("teacher", ["self", "lora", "wide", "ends"])


def written(engine: Engine, writer, seed=(0, 3), problems=PROBLEMS) -> list[Rollout]:
    desk = Desk(engine, question, question_boxed, SAMPLING, seed, lambda: False)
    return writer.draw(desk, problems)


def logp(engine: Engine, role, rollouts) -> torch.Tensor:
    """(N, V) of a role behind its own prompts, by the scoring that the loss uses."""
    context = question if role == "student" else question_boxed
    prompts = [engine.prompt(context, Case(r.problem), role).ids for r in rollouts]
    with torch.no_grad():
        states = engine.score(role, prompts, [r.tokens for r in rollouts])
        return engine.head(role, SAMPLING.temperature).logits(states).log_softmax(-1)


def said(rollouts) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([t for r in rollouts for t in r.tokens])
    return ids, torch.tensor([x for r in rollouts for x in r.logprobs], dtype=torch.float64)


@TEACHERS
def test_no_share_is_the_student_alone(engines, teacher) -> None:
    engine = engines(teacher)
    assert written(engine, TokenMixture(2, 0.0)) == written(engine, OnPolicy(2))


@pytest.mark.parametrize("teacher", ["self", "lora", "wide"])
def test_the_whole_share_is_the_teacher_with_the_students_draws(engines, teacher) -> None:
    engine = engines(teacher)
    mixed = written(engine, TokenMixture(2, 1.0))
    rows = []
    for r in mixed:
        request = Request(r.problem, question, "student", r.index, (0, 3))
        prompt = engine.prompt(question_boxed, Case(r.problem), "teacher").ids
        wanted = Wanted(prompt, request.key)
        rows += engine.generators["teacher"].generate([wanted], SAMPLING, engine.stop_ids)
    assert [r.tokens for r in mixed] == [row.tokens for row in rows]
    assert {r.author for r in mixed} == {"student"}
    assert [r.tokens for r in mixed] != [r.tokens for r in written(engine, OnPolicy(2))]


@TEACHERS
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_log_probs_are_the_mixtures_of_what_both_roles_score(engines, teacher, share) -> None:
    """Bug: the behaviour's log-prob taken from one model, or from heads whose entries mean other tokens."""
    engine = engines(teacher)
    rollouts = written(engine, TokenMixture(3, share))
    ids, kept = said(rollouts)
    own, guided = (logp(engine, role, rollouts) for role in ("student", "teacher"))
    mixture = torch.log(share * guided.exp() + (1 - share) * own.exp())
    assert torch.allclose(kept, mixture.gather(1, ids[:, None]).squeeze(1), atol=1e-9)
    assert not torch.allclose(own, guided, atol=0.1), "the two do differ"
    assert {r.stop for r in rollouts} <= {"stop", "length"}


@pytest.mark.parametrize("teacher", ["lora", "wide", "ends"])
def test_every_first_token_is_drawn_as_often_as_it_is_likely(engines, teacher) -> None:
    """One draw in the middle of each token's share of [0, 1): all are reached, chances sum to 1, p_S / p_B is 1."""
    engine, share = engines(teacher), 0.2
    v, problem = len(engine.head("student").weight), PROBLEMS[2]
    first = [Rollout(problem, "student", (0,), "", None, "stop")]
    own, guided = (logp(engine, role, first)[0].exp() for role in ("student", "teacher"))
    mixture = share * guided + (1 - share) * own
    middle = (mixture.cumsum(0) - mixture / 2) / mixture.sum()
    rows = []
    for u in middle.tolist():
        row = Row(engine.prompt(question, Case(problem)).ids, np.array([u]))
        row.share, row.guide = share, Row(engine.prompt(question_boxed, Case(problem), "teacher").ids, row.draws)
        rows.append(row)
    voices = partial(engine.voice, "student"), engine.beside
    decode_mixed(*voices, rows, replace(SAMPLING, max_new_tokens=1), engine.stop_ids, lambda: False)
    assert [row.tokens for row in rows] == [[i] for i in range(v)]
    assert rows[engine.end_of_turn].stop == "stop"
    behaviour = torch.tensor([row.logprobs[0] for row in rows], dtype=torch.float64)
    assert float(behaviour.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    ids = torch.arange(v)
    stats = TokenStats(ids, ids * 0, own.log(), guided.log(), behaviour, torch.ones(v, dtype=torch.float64))
    ratio = PolicyGradient(correction="importance").coefficient(stats)
    assert float((behaviour.exp() * ratio).sum()) == pytest.approx(1.0, abs=1e-9)
    assert float(ratio.max()) <= 1 / (1 - share) + 1e-12, "a mixture's ratios are bounded"


@TEACHERS
def test_neither_batch_nor_order_nor_resuming_changes_a_rollout(models, engines, teacher) -> None:
    engine, writer = engines(teacher), TokenMixture(2, 0.4)
    whole = {(r.problem.id, r.index): (r.tokens, r.stop) for r in written(engine, writer)}
    other = engine_of(models, teacher, decode_rows=3)  # as a resumed run: everything built anew
    for problems in (PROBLEMS[::-1], PROBLEMS[1:2]):
        for r in written(other, writer, problems=problems):
            assert (r.tokens, r.stop) == whole[r.problem.id, r.index]
    later = written(engine, writer, seed=(0, 4))
    assert any(r.tokens != whole[r.problem.id, r.index][0] for r in later), "another step, other draws"


def test_memory_that_runs_out_while_mixing_changes_no_rollout(engines, monkeypatch) -> None:
    """Half the rows after a failure in the middle: both halves of a row are written again from their beginning."""
    from workbench.engine import writing as module

    engine, writer = engines("wide"), TokenMixture(2, 0.4)
    whole, real, sizes = written(engine, writer), module.decode_mixed, []

    def tight(student, teacher, rows, *rest):
        sizes.append(len(rows))
        if len(rows) > 3:
            real(student, teacher, rows, replace(SAMPLING, max_new_tokens=4), *rest[1:])
            raise torch.OutOfMemoryError("too many rows")
        real(student, teacher, rows, *rest)

    monkeypatch.setattr(module, "decode_mixed", tight)
    assert [r.tokens for r in written(engine, writer)] == [r.tokens for r in whole]
    assert max(sizes) > 3 >= sizes[-1]


def test_stopping_cancels_both_halves(engines) -> None:
    engine, polls = engines("wide"), iter(range(1000))
    desk = Desk(engine, question, question_boxed, SAMPLING, (0, 3), lambda: next(polls) >= 4)
    rollouts = TokenMixture(2, 0.4).draw(desk, PROBLEMS)
    assert {r.stop for r in rollouts} <= {"cancelled", "stop"}
    assert max(len(r.tokens) for r in rollouts) <= 5


@pytest.mark.parametrize("teacher", ["self", "lora", "wide"])
def test_minillm_steps_on_what_was_mixed(models, teacher) -> None:
    """The recipe itself: sampler and learner differ by the teacher's share, and the first step's ratio is theirs."""
    recipe = replace(ALL["minillm"], teacher=question_boxed, student=question, sampling=SAMPLING, batch=4)
    recipe = replace(recipe, refresh=FROZEN, optimizer=Optimizer(lr=1e-3), adapter=None)
    assert recipe.plans == (ReverseKLToGo(),)
    engine = engine_of(models, teacher)
    report = train_step(recipe, State(engine, Clock(0, 2)), PROBLEMS, lambda r: Verdict("unjudged"))
    assert report.grad_norm > 0
    assert report.gap > 1e-2, "the log-prob on record is the mixture's, not the student's"
    assert report.kept == 4


def test_a_live_teacher_mixes_with_itself_behind_another_prompt(models) -> None:
    engine = engine_of(models, "self", refresh=LIVE)
    rollouts = written(engine, TokenMixture(1, 0.5))
    own, guided = (logp(engine, role, rollouts) for role in ("student", "teacher"))
    ids, kept = said(rollouts)
    expected = torch.logaddexp(own, guided) + np.log(0.5)
    assert torch.allclose(kept, expected.gather(1, ids[:, None]).squeeze(1), atol=1e-9)
