"""The engine's laws: no shift, no padding, no batch changes a number; roles are the weights they say they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from workbench.engine.heads import base_model, decoder
from workbench.engine.roles import fingerprint
from workbench.engine.sampling import draw, uniforms
from workbench.parts.contexts import question, with_solution
from workbench.parts.refresh import FROZEN, LIVE, ema, every
from workbench.recipe import Optimizer
from workbench.records import Case, Problem, Request, Sampling

PROBLEMS = [
    Problem(f"p{i}", "What is " + " + ".join(["3"] * (i + 1)) + "?", str(3 * i + 3), f"it is {3 * i + 3}")
    for i in range(7)
]
FULL = Sampling(max_new_tokens=12, temperature=1.0)


def requests(author="student", context=question, seed=(0, 1), k=2):
    return [Request(p, context, author, i, seed) for p in PROBLEMS for i in range(k)]


def test_teacher_forced_scores_are_the_samplers_log_probs(tiny) -> None:
    """The only shift is right: scoring what was sampled gives the log-probs it was sampled with."""
    engine = tiny()
    rollouts = engine.generate(requests(), FULL)
    prompts = [engine.prompt(question, Case(r.problem)).ids for r in rollouts]
    logp = torch.log_softmax(
        engine.head("student").logits(engine.score("student", prompts, [r.tokens for r in rollouts])), -1
    )
    ids = torch.tensor([t for r in rollouts for t in r.tokens])
    sampled = torch.tensor([x for r in rollouts for x in r.logprobs], dtype=logp.dtype)
    assert torch.allclose(logp.gather(1, ids[:, None]).squeeze(1), sampled, atol=1e-6)


def test_score_equals_the_models_own_logits_row_by_row(tiny) -> None:
    """Padding and batching reach nobody: each sequence alone through the plain HF forward gives the same."""
    engine = tiny()
    prompts = [engine.prompt(question, Case(p)).ids for p in PROBLEMS]
    completions = [tuple(range(5 + i)) for i in range(len(PROBLEMS))]
    together = (
        engine.head("student")
        .logits(engine.score("student", prompts, completions))
        .split([len(c) for c in completions])
    )
    for prompt, completion, mine in zip(prompts, completions, together, strict=True):
        ids = torch.tensor([[*prompt, *completion]])
        theirs = base_model(engine.student)(input_ids=ids, use_cache=False).logits[0]
        assert torch.allclose(mine, theirs[len(prompt) - 1 : len(prompt) - 1 + len(completion)], atol=1e-9)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_a_rollout_depends_on_its_own_seed_alone(tiny, rows: int) -> None:
    """Not on the batch, the order, or what else is asked."""
    engine = tiny()
    asked = requests()
    whole = {(r.problem.id, r.index): r for r in engine.generate(asked, FULL)}
    engine.settings = replace(engine.settings, decode_rows=rows)
    some = engine.generate(asked[::-1][::2], FULL)
    assert all(r.tokens == whole[r.problem.id, r.index].tokens for r in some)
    other = engine.generate(requests(seed=(0, 2)), FULL)
    assert any(r.tokens != whole[r.problem.id, r.index].tokens for r in other), "another step, other draws"
    assert whole["p0", 0].tokens != whole["p0", 1].tokens


def test_greedy_equals_hf_generate(tiny) -> None:
    engine = tiny()
    mine = engine.generate(requests(k=1), Sampling(max_new_tokens=9, temperature=0.0))
    for rollout in mine:
        prompt = torch.tensor([engine.prompt(question, Case(rollout.problem)).ids])
        out = base_model(engine.student).generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False
        )
        assert tuple(out[0, prompt.shape[1] :].tolist()) == rollout.tokens


def test_end_token_is_kept_and_text_is_without_it(tiny) -> None:
    engine = tiny()
    rollouts = engine.generate(requests(k=8), Sampling(max_new_tokens=200))
    ended = [r for r in rollouts if r.stop == "stop"]
    assert ended
    assert all(r.tokens[-1] in engine.stop_ids and r.tokens[-1] not in r.tokens[:-1] for r in ended)
    assert all("<|im_end|>" not in r.text for r in ended)
    assert all(len(r.tokens) == 200 for r in rollouts if r.stop == "length")


def test_stopping_cancels_every_unfinished_row(tiny) -> None:
    engine, polls = tiny(), iter(range(1000))
    rollouts = engine.generate(requests(), FULL, lambda: next(polls) >= 4)
    assert {r.stop for r in rollouts} <= {"cancelled", "stop"}
    assert max(len(r.tokens) for r in rollouts) <= 5


def test_draw_inverts_the_distribution_it_says() -> None:
    """Many uniforms give the probabilities; top-k and top-p give HF's supports."""
    logp = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]], dtype=torch.float64))
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000

    def shares(**options: object) -> list[float]:
        ids = draw(logp.expand(len(u), -1), u, Sampling(**options))
        return (torch.bincount(ids, minlength=4) / len(u)).tolist()

    assert shares() == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=1e-3)
    assert shares(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=1e-3)
    assert shares(top_p=0.6) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=1e-3)
    assert shares(top_p=0.01) == [1, 0, 0, 0]
    assert shares(top_k=3, top_p=0.8) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=1e-3), "top-p is of what top-k left"
    edge = draw(torch.tensor([[0.0, -torch.inf]]), torch.tensor([1 - 1e-16], dtype=torch.float64), Sampling())
    assert edge.tolist() == [0], "rounding never lands on a token without mass"


def test_uniforms_are_each_requests_own() -> None:
    a, b = requests(k=2)[:2]
    assert (uniforms(a.key, 5) == uniforms(a.key, 5)).all()
    assert (uniforms(a.key, 5) == uniforms(a.key, 9)[:5]).all(), "a longer cap only adds draws"
    assert (uniforms(a.key, 5) != uniforms(b.key, 5)).any()
    assert (uniforms(a.key, 5) != uniforms(replace(a, author="teacher").key, 5)).any()


def nudge(engine, times: int = 1) -> None:
    """Optimizer steps on an arbitrary loss: the student moves."""
    for _ in range(times):
        prompts = [engine.prompt(question, Case(p)).ids for p in PROBLEMS[:2]]
        engine.score("student", prompts, [(1, 2, 3)] * 2).square().sum().backward()
        engine.update(Optimizer(lr=1e-2, max_grad_norm=1.0))


def hidden(engine, role):
    prompts = [engine.prompt(question, Case(p)).ids for p in PROBLEMS[:3]]
    return engine.score(role, prompts, [(4, 5, 6)] * 3).detach()


@pytest.mark.parametrize("adapter", [None, "lora:r=4,alpha=8"])
def test_refresh_moves_the_teacher_as_it_says(tiny, adapter) -> None:
    """FROZEN never moves, LIVE is the student, every(2) copies after steps 2 and 4, nothing else."""
    frozen, live, second = (tiny(adapter, refresh) for refresh in (FROZEN, LIVE, every(2)))
    start = hidden(frozen, "teacher")
    for step in (1, 2, 3, 4):
        for engine, refresh in ((frozen, FROZEN), (live, LIVE), (second, every(2))):
            nudge(engine)
            moved = engine.refresh_teacher(refresh, step)
            assert moved == refresh.due(step)
        assert torch.equal(hidden(frozen, "teacher"), start)
        assert not torch.allclose(hidden(frozen, "student"), start)
        assert torch.equal(hidden(live, "teacher"), hidden(live, "student"))
        same = torch.allclose(hidden(second, "teacher"), hidden(second, "student"), atol=1e-5)
        assert same == (step % 2 == 0)


def test_ema_of_all_weights_has_the_closed_form(tiny) -> None:
    engine = tiny(refresh=ema(0.75))
    name = "model.layers.0.mlp.up_proj.weight"
    expected = dict(engine.student.named_parameters())[name].detach().clone()
    for step in range(1, 6):
        nudge(engine)
        expected = 0.75 * expected + 0.25 * dict(engine.student.named_parameters())[name].detach()
        engine.refresh_teacher(ema(0.75), step)
    assert torch.allclose(engine.teacher.tensors()[name], expected, atol=1e-12)


def test_ema_under_lora_averages_the_merged_delta(tiny) -> None:
    """SDFT: averaging A and B apart would give (1 - (1-r)^n)^2 of the delta where it should be 1 - (1-r)^n."""
    engine = tiny("lora:r=4,alpha=8", ema(0.95))
    nudge(engine)
    layer = next(m for _, m in engine.student.named_modules() if hasattr(m, "get_delta_weight"))
    delta = layer.get_delta_weight("default").detach().float()
    for step in range(1, 21):
        engine.refresh_teacher(ema(0.95), step)
    held = next(iter(engine.teacher.tensors().values()))
    assert torch.allclose(held, (1 - 0.95**20) * delta, rtol=1e-4)
    assert pytest.approx(0.6415, abs=1e-4) == 1 - 0.95**20
    assert pytest.approx(0.4115, abs=1e-4) == (1 - 0.95**20) ** 2


def test_lora_teacher_leaves_the_base_untouched(tiny) -> None:
    engine = tiny("lora:r=4,alpha=8", every(1))
    nudge(engine)
    engine.refresh_teacher(every(1), 1)
    before = fingerprint(engine.student)
    for _ in range(5):
        hidden(engine, "teacher")
    assert fingerprint(engine.student) == before, "swapping weights in and out wears nothing away"


def test_only_the_student_gets_a_gradient(tiny) -> None:
    engine = tiny()
    prompts = [engine.prompt(question, Case(p)).ids for p in PROBLEMS[:2]]
    assert engine.score("student", prompts, [(1,), (2,)]).requires_grad
    assert not engine.score("teacher", prompts, [(1,), (2,)]).requires_grad


def test_teacher_writes_under_its_own_context_and_weights(tiny) -> None:
    engine = tiny(refresh=FROZEN)
    before = engine.generate(requests("teacher", with_solution, k=1), FULL)
    nudge(engine, 3)
    after = engine.generate(requests("teacher", with_solution, k=1), FULL)
    assert [r.tokens for r in before] == [r.tokens for r in after], "the frozen teacher writes as before"
    student = engine.generate(requests("student", with_solution, k=1), FULL)
    assert [r.tokens for r in student] != [r.tokens for r in after]


def test_transcribed_solutions_end_as_the_template_ends_a_turn(tiny) -> None:
    engine = tiny()
    (rollout,) = engine.transcribe([Request(PROBLEMS[0], question, "dataset")], FULL)
    assert rollout.author == "dataset"
    assert rollout.logprobs is None
    assert rollout.tokens[-1] == engine.end_of_turn
    assert engine.decoded(rollout.tokens) == PROBLEMS[0].solution
    (cut,) = engine.transcribe([Request(PROBLEMS[0], question, "dataset")], Sampling(max_new_tokens=3))
    assert (len(cut.tokens), cut.stop) == (3, "length")


def test_activation_checkpointing_changes_no_gradient(tiny) -> None:
    def gradient(engine):
        prompts = [engine.prompt(question, Case(p)).ids for p in PROBLEMS]
        engine.score("student", prompts, [(1, 2, 3)] * len(prompts)).square().sum().backward()
        return {n: p.grad for n, p in engine.parameters().items() if p.grad is not None}

    plain, again = gradient(tiny()), gradient(tiny(activation_checkpointing=True))
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[n], again[n], atol=1e-12) for n in plain)
    engine = tiny(activation_checkpointing=True)
    assert engine.generate(requests(k=1), FULL)[0].tokens == tiny().generate(requests(k=1), FULL)[0].tokens


def test_update_skips_what_is_not_finite_and_gives_up_after_three(tiny) -> None:
    from workbench.errors import TrainingError

    engine = tiny()
    before = fingerprint(engine.student)

    def poison() -> None:
        for p in engine.parameters().values():
            p.grad = torch.full_like(p, float("nan"))

    for _ in range(2):
        poison()
        engine.update(Optimizer(lr=1e-2))
    assert fingerprint(engine.student) == before, "a skipped step changes nothing"
    poison()
    with pytest.raises(TrainingError, match="3 steps in a row"):
        engine.update(Optimizer(lr=1e-2))


def test_decoder_is_the_model_without_its_head(tiny) -> None:
    engine = tiny()
    assert decoder(engine.student) is base_model(engine.student).model
