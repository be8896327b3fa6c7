"""The step: its order, its gradient, and that nothing about how it is computed changes the result."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import ClassVar, get_args

import pytest
import torch

import verifiers
from verifiers import Verdict
from workbench.divergence import JSD, ForwardKL, ReverseKL, TopK
from workbench.divergence.transforms import Rest
from workbench.parts.advantages import GroupCentred
from workbench.parts.contexts import question, with_solution
from workbench.parts.gates import Correct
from workbench.parts.plans import ReverseKLToGo
from workbench.parts.refresh import LIVE
from workbench.parts.schedules import Clock
from workbench.parts.selection import EarlyDisagreement, Hardest, WithoutOutliers
from workbench.parts.terms import CrossEntropy, Distill, PolicyGradient, SampledReverseKL, by_student, by_teacher
from workbench.parts.weights import EntropyAbove, SkipFirst
from workbench.parts.writers import ByTeacher, FromDataset, OnPolicy, Together
from workbench.recipe import Optimizer, Recipe
from workbench.records import Judged, Problem, Rollout, Sampling
from workbench.train.batches import Denominators, entries, micro_batches
from workbench.train.learning import learn
from workbench.train.objective import objective
from workbench.train.reading import planned
from workbench.train.report import Phases
from workbench.train.step import State, by_problem, train_step
from workbench.train.watching import Course

PROBLEMS = [
    Problem(f"p{i}", f"What is {i} + {i * 7 % 5}" + "?" * (i % 4), str(i), f"{i} it is" * (1 + i % 3)) for i in range(6)
]
SHORT = Sampling(max_new_tokens=9, temperature=1.3)


def recipe(**changes) -> Recipe:
    sound = {
        "name": "here",
        "paper": "-",
        "student": question,
        "teacher": with_solution,
        "rollouts": OnPolicy(2),
        "terms": (Distill(JSD(0.3)),),
        "sampling": SHORT,
        "optimizer": Optimizer(lr=1e-3),
    }
    return Recipe(**{**sound, **changes})


def verify(rollout: Rollout) -> Verdict:
    return verifiers.verify(rollout.problem, rollout.text, truncated=rollout.stop != "stop")


def gradient(engine, chosen: Recipe, groups, micro_tokens: int = 10_000, order: int = 1):
    """(loss, gradient by name) of one gathered step."""
    engine.settings = replace(engine.settings, micro_tokens=micro_tokens)
    kept = planned(chosen, engine, entries(engine, chosen, groups[::order]))
    signals = learn(chosen, engine, kept, Denominators.of(chosen, kept), Course(Phases()))
    grads = {n: p.grad.clone() for n, p in engine.parameters().items() if p.grad is not None}
    engine.updates.forget()
    total = sum(float((s.values.double() * s.weights.double()).sum()) for s in signals)
    return total, grads


def drawn(engine, chosen: Recipe):
    from workbench.parts.writers import Desk

    desk = Desk(engine, chosen.student, chosen.teacher, chosen.sampling, (0, 0), lambda: False)
    judged = [Judged(r, verify(r), advantage=0.5 - i % 2) for i, r in enumerate(chosen.rollouts.draw(desk, PROBLEMS))]
    return by_problem(judged)


RECIPES = {
    "divergence": recipe(),
    "two terms": recipe(terms=(Distill(ForwardKL(), coef=0.7), SampledReverseKL(coef=0.2, clip=1.0))),
    "top-k, generic": recipe(terms=(Distill(ReverseKL(), transforms=(TopK(5),)), Distill(ForwardKL()))),
    **{
        f"top-k alone, {rest}": recipe(
            terms=(
                Distill(ForwardKL(), transforms=(TopK(5, rest=rest),), token_weight=EntropyAbove(2.0)),
                Distill(JSD(), transforms=(TopK(5, rest=rest),), token_clip=2.0),
                SampledReverseKL(coef=0.3),
            )
        )
        for rest in get_args(Rest)
    },
    "top-k of more than there is": recipe(terms=(Distill(ReverseKL(), transforms=(TopK(5000),)),)),
    "two authors": recipe(
        rollouts=Together((ByTeacher(2), OnPolicy(1))),
        terms=(CrossEntropy(where=by_teacher), Distill(ReverseKL(), where=by_student)),
    ),
    "sequence mean": recipe(reduction="sequence"),
    "text": recipe(teacher=None, rollouts=FromDataset(), terms=(CrossEntropy(),)),
    "reward": recipe(teacher=None, terms=(PolicyGradient(),)),
    "sum": recipe(teacher=None, terms=(PolicyGradient(correction="importance", ceiling=2.0),), reduction="sum"),
    "advantages along the completion": recipe(
        plans=(ReverseKLToGo(), EarlyDisagreement()),
        terms=(Distill(ReverseKL()), PolicyGradient(correction="clipped")),
    ),
    "tokens selected over the step": recipe(plans=(WithoutOutliers(0.2), Hardest(0.6))),
    "a gate of one term": recipe(
        terms=(
            SampledReverseKL(),
            Distill(ForwardKL(), token_weight=EntropyAbove(2.0)),
            Distill(ReverseKL(), token_weight=SkipFirst(2)),
        )
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_gradient_does_not_depend_on_how_the_batch_is_split(tiny, name: str) -> None:
    """Micro-batch, order and padding; float64, so agreement is to rounding."""
    engine, chosen = tiny(), RECIPES[name]
    groups = drawn(engine, chosen)
    loss, whole = gradient(engine, chosen, groups)
    assert any(float(g.abs().max()) > 0 for g in whole.values())
    for micro_tokens, order in ((1, 1), (150, 1), (400, -1)):
        other_loss, parts = gradient(engine, chosen, groups, micro_tokens, order)
        assert other_loss == pytest.approx(loss, abs=1e-10)
        for key, value in whole.items():
            assert torch.allclose(parts[key], value, atol=1e-10), key


@pytest.mark.parametrize("name", RECIPES)
def test_gradient_is_that_of_the_plain_definition(tiny, name: str) -> None:
    """One sequence at a time through HF's own logits and log_softmax, terms called as they are written."""
    from workbench.engine.heads import base_model
    from workbench.records import Tokens, TokenStats

    engine, chosen = tiny(), RECIPES[name]
    groups = drawn(engine, chosen)
    loss, mine = gradient(engine, chosen, groups)
    kept = planned(chosen, engine, entries(engine, chosen, groups))
    counts = Denominators.of(chosen, kept)
    total = torch.zeros((), dtype=torch.float64)
    for entry in kept:
        logp = {}
        for role, prompt in (("student", entry.student_prompt), ("teacher", entry.teacher_prompt)):
            if prompt is None:
                continue
            with engine.running(role) as model, torch.set_grad_enabled(role == "student"):
                logits = base_model(model)(input_ids=torch.tensor([[*prompt, *entry.tokens]])).logits[0]
            logp[role] = torch.log_softmax(logits[len(prompt) - 1 : -1] / chosen.temperature, -1)
        ids = torch.tensor(entry.tokens)
        picked = {role: x.gather(1, ids[:, None]).squeeze(1).detach() for role, x in logp.items()}
        n = len(ids)
        own = torch.full((n,), entry.judged.advantage, dtype=torch.float64)
        entropy = {role: -(x.exp() * x).sum(-1).detach() for role, x in logp.items()}
        stats = TokenStats(
            ids, torch.arange(n), picked["student"], picked.get("teacher"),
            torch.tensor(entry.judged.rollout.logprobs or [0.0] * n),
            own if entry.reading is None else entry.reading.advantage,
            entropy["student"], entropy.get("teacher"),
        )  # fmt: skip
        tokens = Tokens(stats, logp["student"], logp.get("teacher"))
        for k, term in enumerate(chosen.terms):
            weight = counts.weights(chosen, k, [entry], torch.device("cpu")).double()
            weight = weight if term.token_weight is None else weight * term.token_weight(stats)
            total = total + (weight * term(tokens)).sum()
    total.backward()
    assert float(total.detach()) == pytest.approx(loss, abs=1e-7)
    for key, p in engine.parameters().items():
        assert torch.allclose(mine[key], p.grad, atol=1e-7), key


def test_token_and_sequence_means_are_what_they_say() -> None:
    """TRL 1.16: two sequences of lengths 2 (A = 1) and 4 (A = -1) at ratio 1: token mean 1/3, sequence mean 0."""
    rollouts = [Rollout(PROBLEMS[0], "student", (1,) * n, "", (0.0,) * n, "stop") for n in (2, 4)]
    from workbench.train.batches import Entry

    batch = [
        Entry(Judged(r, Verdict("wrong"), advantage=a), (1,), None) for r, a in zip(rollouts, (1.0, -1.0), strict=True)
    ]
    for reduction, expected in (("token", 1 / 3), ("sequence", 0.0)):
        chosen = recipe(teacher=None, terms=(PolicyGradient(),), reduction=reduction)
        weights = Denominators.of(chosen, batch).weights(chosen, 0, batch, torch.device("cpu"))
        loss = -(weights * torch.tensor([1.0] * 2 + [-1.0] * 4)).sum()
        assert float(loss) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("adapter", [None, "lora:r=4,alpha=8"])
def test_same_context_and_weights_give_nothing_to_learn(tiny, adapter) -> None:
    """OPSD: teacher prompt == student prompt, frozen teacher, fresh adapter: loss 0 and gradient 0."""
    engine = tiny(adapter)
    chosen = recipe(teacher=question, terms=(Distill(ForwardKL()), Distill(JSD(0.5)), SampledReverseKL()))
    loss, grads = gradient(engine, chosen, drawn(engine, chosen))
    assert loss == pytest.approx(0.0, abs=1e-9)
    assert max(float(g.abs().max()) for g in grads.values()) < 1e-7


def test_step_runs_its_stages_in_order_and_observes_the_rejected(tiny) -> None:
    engine = tiny()
    seen: list[str] = []

    @dataclass(frozen=True)
    class Spy:
        name: str

        def __call__(self, group):
            seen.append(self.name)
            return [] if self.name == "gate" else GroupCentred()(group)

    chosen = recipe(advantage=Spy("advantage"), gates=(Spy("gate"),))
    state = State(engine, Clock(0, 5))
    report = train_step(chosen, state, PROBLEMS, verify)
    assert seen == ["advantage"] * 6 + ["gate"] * 6, "advantages over the whole group, gates after"
    assert (report.kept, len(report.judged), report.grad_norm) == (0, 12, 0.0)
    assert state.clock.step == 1, "a step that kept nothing is a step"


def test_stopped_step_changes_nothing_and_comes_back_the_same(tiny) -> None:
    from workbench.engine.roles import fingerprint

    engine, chosen = tiny(), recipe()
    before = fingerprint(engine.student)
    polls = iter(range(10_000))
    assert train_step(chosen, State(engine, Clock(0, 5), stopped=lambda: next(polls) > 3), PROBLEMS, verify) is None
    assert (
        train_step(chosen, State(engine, Clock(0, 5), stopped=lambda: next(polls) > 10_000 - 4), PROBLEMS, verify)
        is not None
    )
    assert fingerprint(engine.student) != before
    assert train_step(chosen, State(tiny(), Clock(0, 5)), PROBLEMS, verify).loss is not None


def test_memory_that_runs_out_changes_no_result(tiny, monkeypatch) -> None:
    from workbench.errors import ResourceError
    from workbench.train import learning

    engine, chosen = tiny(), recipe()
    groups = drawn(engine, chosen)
    _, whole = gradient(engine, chosen, groups)
    real, calls = objective, []

    def tight(recipe_, engine_, batch, counts, **rest):
        calls.append(len(batch))
        if len(batch) > limit:
            raise torch.OutOfMemoryError("too large")
        return real(recipe_, engine_, batch, counts, **rest)

    monkeypatch.setattr(learning, "objective", tight)
    limit = 2
    _, split = gradient(engine, chosen, groups)
    assert max(calls) > limit, "the first try was too large"
    assert all(torch.allclose(split[k], whole[k], atol=1e-12) for k in whole), "a half-gathered gradient was dropped"
    limit = 0
    with pytest.raises(ResourceError, match=r"does not fit in memory.*--activation-checkpointing") as error:
        gradient(engine, chosen, groups)
    assert error.value.exit_code == 4


def test_micro_batches_hold_every_row_once_within_budget(tiny) -> None:
    engine, chosen = tiny(), recipe()
    kept = entries(engine, chosen, drawn(engine, chosen))
    for budget in (1, 300, 100_000):
        batches = micro_batches(kept, budget)
        assert sorted(id(e) for b in batches for e in b) == sorted(id(e) for e in kept)
        assert all(len(b) == 1 or max(e.width for e in b) * len(b) <= budget for b in batches)


def test_a_method_is_one_value_defined_anywhere(tiny) -> None:
    """A recipe written here, with a divergence-like term written here, trains: nothing else is touched."""

    @dataclass(frozen=True)
    class Disagreement:
        """1 - sum_v min(p_T, p_S): total variation, spelt by hand."""

        coef: float = 1.0
        where: object = by_student
        needs: ClassVar = frozenset({"teacher"})

        def __call__(self, tokens):
            return 1.0 - torch.minimum(tokens.student.exp(), tokens.teacher.exp()).sum(-1)

        def part(self, weight):
            from workbench.divergence import Part

            return Part(weight=weight, term=self)

    engine = tiny()
    mine = recipe(name="mine", terms=(Disagreement(),), refresh=LIVE)
    state = State(engine, Clock(0, 2))
    reports = [train_step(mine, state, PROBLEMS, verify) for _ in range(2)]
    assert [r.step for r in reports] == [1, 2]
    assert all(0 < r.divergence[0] < 1 and r.grad_norm > 0 for r in reports)
    assert reports[0].terms == ("Disagreement",)


def test_training_moves_the_student_towards_the_teacher(tiny) -> None:
    engine = tiny()
    chosen = recipe(terms=(Distill(ForwardKL()),), optimizer=Optimizer(lr=3e-3), sampling=Sampling(max_new_tokens=9))
    state = State(engine, Clock(0, 8))
    values = [train_step(chosen, state, PROBLEMS, verify).divergence[0] for _ in range(8)]
    assert values[-1] < 0.7 * values[0]


def test_a_token_weight_may_read_entropies(tiny) -> None:
    @dataclass(frozen=True)
    class Sure:
        """Only tokens at which the student's entropy is below `most` count."""

        most: float
        entropies: ClassVar[bool] = True

        def __call__(self, stats):
            return (stats.student_entropy < self.most).to(stats.student_entropy.dtype)

    engine = tiny()
    groups = drawn(engine, recipe())
    whole, _ = gradient(engine, recipe(), groups)
    assert gradient(engine, recipe(token_weight=Sure(1e9)), groups)[0] == pytest.approx(whole)
    assert gradient(engine, recipe(token_weight=Sure(-1.0)), groups)[0] == 0.0


def test_scoring_without_gradients_keeps_no_graph(tiny) -> None:
    engine = tiny()
    with torch.no_grad():
        assert not engine.score("student", [(1, 2)], [(3,)]).requires_grad


def test_cpu_memory_that_really_runs_out_is_recognised() -> None:
    from workbench.engine.modes import out_of_memory

    with pytest.raises(RuntimeError) as error:
        torch.empty(2**52, dtype=torch.uint8)
    assert out_of_memory(error.value)
    assert not out_of_memory(RuntimeError("shape mismatch"))


def test_report_counts_what_the_step_did(tiny) -> None:
    engine, chosen = tiny(), recipe()
    report = train_step(chosen, State(engine, Clock(0, 2)), PROBLEMS, verify)
    row = report.metrics()
    assert row["rollouts"] == row["kept"] == 12
    assert row["tokens_trained"] == sum(len(j.rollout.tokens) for j in report.judged)
    assert row["term.JSD"] == pytest.approx(report.loss), "one term, coefficient 1: the mean is the loss"
    assert row["sampler_gap"] < 1e-5, "sampler and learner are one model at one temperature"
    assert set(report.entries) == {id(j.rollout) for j in report.judged}
    assert len(report.entries[id(report.judged[0].rollout)]) == len(report.judged[0].rollout.tokens)
    gated = train_step(replace(chosen, gates=(Correct(),)), State(engine, Clock(0, 2)), PROBLEMS, verify)
    assert gated.kept <= sum(j.verdict.correct for j in gated.judged)


def test_verdicts_are_made_while_the_next_rollouts_are_written(tiny) -> None:
    """Eight rollouts, three at a time: the first six are judged beside the decoder, and nothing else changes."""
    chosen = recipe(teacher=None, terms=(PolicyGradient(),), rollouts=OnPolicy(4))

    def run(rows: int):
        threads: list[str] = []

        def judge(rollout: Rollout) -> Verdict:
            threads.append(threading.current_thread().name)
            return Verdict("correct" if rollout.index % 2 else "wrong")

        engine = tiny(decode_rows=rows)
        report = train_step(chosen, State(engine, Clock(0, 1)), PROBLEMS[:2], judge)
        return report, threads, [p.detach().clone() for p in engine.parameters().values()]

    (together, alone, weights), (apart, beside, same) = run(64), run(3)
    assert [name.startswith("verify") for name in alone] == [False] * 8, "one batch has nothing to overlap with"
    assert sum(name.startswith("verify") for name in beside) == 6
    assert [j.rollout.tokens for j in together.judged] == [j.rollout.tokens for j in apart.judged]
    assert [j.verdict for j in together.judged] == [j.verdict for j in apart.judged]
    assert all(torch.equal(x, y) or torch.allclose(x, y, atol=1e-12) for x, y in zip(weights, same, strict=True))
    assert not [t for t in threading.enumerate() if t.name.startswith("verify")], "no thread is left"


def test_a_judge_that_fails_beside_the_writer_fails_the_step(tiny) -> None:
    chosen = recipe(teacher=None, terms=(PolicyGradient(),), rollouts=OnPolicy(4))

    def broken(rollout: Rollout) -> Verdict:
        raise ZeroDivisionError("a bug of the judge")

    state = State(tiny(decode_rows=3), Clock(0, 1))
    with pytest.raises(ZeroDivisionError, match="a bug of the judge"):
        train_step(chosen, state, PROBLEMS[:2], broken)
    assert state.clock.step == 0
    assert not [t for t in threading.enumerate() if t.name.startswith("verify")]
