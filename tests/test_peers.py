"""What other distillation trainers got wrong, each with the test that we pass and they do not.

`COVERED` says where each mistake is tested; a name that is gone is an error. What no other file tests is below.
Citations are issues and pull requests of the projects, or "read": seen in the source of TRL 1.16.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from verifiers import Verdict
from workbench.divergence import ForwardKL, ReverseKL
from workbench.engine.engine import Engine
from workbench.engine.heads import base_model
from workbench.parts.contexts import question, with_solution
from workbench.parts.schedules import Clock
from workbench.parts.terms import CrossEntropy, Distill
from workbench.parts.writers import Desk, FromDataset, Mixture, OnPolicy
from workbench.recipe import Recipe
from workbench.recipes import ALL
from workbench.records import Case, Problem, Request, Rollout, Sampling
from workbench.train.batches import Denominators, entries, micro_batches
from workbench.train.objective import objective
from workbench.train.step import State, train_step

HERE = Path(__file__).parent
COVERED = {
    "means per micro-batch (trl 4719, 6006; ms-swift 10165)": (
        "test_step.py::test_gradient_does_not_depend_on_how_the_batch_is_split",
        "test_external_step.py::test_taught_live",
        "test_external_step.py::test_taught_from_a_cache",
    ),
    "tokens counted before they are generated (trl 5653, 6478)": (
        "test_peers.py::test_the_denominator_counts_what_was_generated",
    ),
    "a fused path with another objective (trl 5731)": (
        "test_step.py::test_gradient_is_that_of_the_plain_definition",
        "test_fused.py::test_every_divergence",
        "test_teachers.py::test_loss_is_that_of_both_models_own_logits_in_float64",
    ),
    "NaN at extremes, logits rounded before the cast (Liger 769, 1432)": (
        "test_fused.py::test_finite_at_extreme_logits",
        "test_fused.py::test_rounding_is_that_of_float32_logits",
        "test_fused.py::test_every_divergence_with_bfloat16_operands",
    ),
    "a shift too many or none; the prompt in the loss (trl 6006, ms-swift 8436)": (
        "test_engine.py::test_score_equals_the_models_own_logits_row_by_row",
        "test_engine.py::test_teacher_forced_scores_are_the_samplers_log_probs",
    ),
    "pad == eos hides the end (trl 6357, Megatron-Bridge 4660)": (
        "test_peers.py::test_the_end_is_learnt_though_padding_has_its_id",
        "test_teachers.py::test_two_end_tokens_of_one_meaning",
    ),
    "padding in the loss (optipfair 34)": (
        "test_peers.py::test_a_much_longer_neighbour_changes_nothing",
        "test_plans.py::test_whitening_is_over_tokens_and_not_over_padding",
    ),
    "teacher and student end otherwise (ms-swift 9526)": (
        "test_teachers.py::test_two_end_tokens_of_one_meaning",
        "test_mixing.py::test_every_first_token_is_drawn_as_often_as_it_is_likely",
    ),
    "KL the other way round; the rate of an average inverted (trl 4935, slime 2254)": (
        "test_traps.py::test_kl_div_takes_the_student_first_and_means_the_teacher_first",
        "test_engine.py::test_ema_of_all_weights_has_the_closed_form",
        "test_recipes.py::test_refresh_moves_after_every_mth_step_only",
    ),
    "one role in the other's template (OPSD, tinker 796)": (
        "test_teachers.py::test_each_role_is_rendered_by_its_own_template",
    ),
    "the teacher's prompt cut to the student's limit (trl 5862, 5990)": (
        "test_peers.py::test_a_long_solution_leaves_the_problem_and_the_chat_in_the_teachers_prompt",
        "test_teachers.py::test_a_teachers_limit_is_its_own",
        "test_job.py::test_prompt_too_long_is_refused_not_cut",
    ),
    "the solution inside the assistant's turn (verl 6833)": (
        "test_peers.py::test_nothing_privileged_stands_in_the_assistants_turn",
    ),
    "truncated KLs that are none (verl 7856, 5041)": (
        "test_traps.py::test_truncated_kls_fall_when_mass_leaves_the_support",
        "test_traps.py::test_one_renormalised_entry_teaches_nothing",
        "test_transforms.py::test_a_tail_bucket_never_adds_divergence",
    ),
    "a KL as advantage; clipping signed entries (miles 2362, trl 5990)": (
        "test_traps.py::test_a_divergence_is_no_advantage",
        "test_traps.py::test_clipping_signed_entries_can_turn_the_loss",
    ),
    "whole vocabularies only while both models live (verl 7239, NeMo 3978)": (
        "test_teacher_cache.py::test_hidden_states_train_to_the_bit",
        "test_external_step.py::test_hidden_states_teach_what_the_live_teacher_does",
    ),
    "teacher logits of a whole cycle kept (ms-swift 10097)": (
        "test_fused.py::test_memory_is_two_tiles_and_the_head_s_gradient_whatever_the_number_of_tokens",
        "test_sparse.py::test_memory_is_one_tile_and_the_head_s_gradient_whatever_the_number_of_tokens",
    ),
    "no cache while decoding under checkpointing (CoursIA 12720; GKD, read)": (
        "test_engine.py::test_activation_checkpointing_changes_no_gradient",
        "test_peers.py::test_decoding_reads_each_token_once_also_under_checkpointing",
    ),
    "log-probs of another temperature, or cut by top-p (vllm 42259, verl 5592)": (
        "test_peers.py::test_recorded_log_probs_are_the_scored_ones_at_any_sampling",
        "test_mixing.py::test_log_probs_are_the_mixtures_of_what_both_roles_score",
    ),
    "a recorded teacher's loss is another (ms-swift 9671)": (
        "test_teacher_cache.py::test_hidden_states_train_to_the_bit",
        "test_teacher_cache.py::test_the_likeliest_train_within_what_was_cut_off",
    ),
    "a teacher that is asked and never used (atropos 456)": (
        "test_teachers.py::test_a_model_that_would_never_be_used_is_refused",
    ),
    "padded heads, equal sizes for equal tokenizers (trl 2215, unsloth-zoo 965)": (
        "test_teachers.py::test_padding_rows_are_never_written",
        "test_teachers.py::test_another_tokenizer_is_refused_with_the_first_difference",
        "test_teachers.py::test_tokenizers_that_split_text_otherwise_are_refused",
    ),
    "padded positions projected (DistillationTrainer on a CPU)": (
        "test_fused.py::test_rows_without_weight_are_not_computed",
    ),
    "1 / W on W processes; GA times too small or large (GKD, GOLD, read)": (
        "test_external_step.py::test_taught_live",
        "test_external_step.py::test_counting_a_half_by_itself_would_be_another_loss",
        "test_parallel.py::test_two_processes_say_what_one_does",
    ),
    "masked samples in the mean, and run through the teacher (SDPO, SDFT, read)": (
        "test_peers.py::test_what_a_gate_rejects_is_not_in_the_mean",
    ),
    "averages of A and of B, lost on resume (SDPO, SDFT, read)": (
        "test_engine.py::test_ema_under_lora_averages_the_merged_delta",
        "test_job.py::test_lora_run_with_a_moving_teacher_resumes_to_the_same_weights",
        "test_job.py::test_resumed_run_is_the_uninterrupted_one",
    ),
    "a second copy of the base beside its adapter (DistillationTrainer, read)": (
        "test_peers.py::test_a_frozen_teacher_under_an_adapter_is_the_students_own_base",
    ),
    "schedules that count micro-batches (TAID, Veto, read)": (
        "test_memory_in_runs.py::test_memory_counts_optimizer_steps_however_they_are_split",
    ),
}


@pytest.mark.parametrize("mistake", COVERED)
def test_each_mistake_has_its_test(mistake: str) -> None:
    for place in COVERED[mistake]:
        file, name = place.split("::")
        assert re.search(rf"^def {name}\(", (HERE / file).read_text(), re.MULTILINE), place


PROBLEMS = [Problem(f"p{i}", f"What is {i} + 1?", str(i + 1), f"it is {i + 1}") for i in range(5)]
SHORT = Sampling(max_new_tokens=9, temperature=1.3)


def recipe(**changes) -> Recipe:
    sound = {"name": "here", "paper": "-", "student": question, "teacher": with_solution, "sampling": SHORT}
    return Recipe(**{**sound, "terms": (Distill(ForwardKL()),), **changes})


def unjudged(rollout: Rollout) -> Verdict:
    return Verdict("unjudged")


def stepped(engine: Engine, chosen: Recipe, problems=PROBLEMS):
    return train_step(chosen, State(engine, Clock(0, 4)), problems, unjudged)


def objective_of(engine: Engine, chosen: Recipe, rollouts):
    from workbench.records import Judged

    kept = entries(engine, chosen, [[Judged(r, Verdict("unjudged"))] for r in rollouts])
    counts = Denominators.of(chosen, kept)
    (batch,) = micro_batches(kept, 10**9)
    loss, signal = objective(chosen, engine, batch, counts)
    return loss, signal, batch


def transcribed(engine: Engine, problems, sampling=SHORT) -> list[Rollout]:
    desk = Desk(engine, question, None, sampling, (0,), lambda: False)
    return FromDataset().draw(desk, problems)


@pytest.mark.parametrize("writer", [OnPolicy(), Mixture(student=1.0, per="batch")])
def test_the_denominator_counts_what_was_generated(tiny, writer) -> None:
    """Texts of the data set that are five times as long change nothing where the student writes."""
    chosen = recipe(teacher=question, refresh=ALL["gkd"].refresh, rollouts=writer)
    chosen = replace(chosen, terms=(Distill(ReverseKL()),))
    found = []
    for times in (1, 5):
        engine = tiny()
        with torch.no_grad():
            next(iter(engine.parameters().values())).mul_(1.01)
        problems = [replace(p, solution=p.solution * times) for p in PROBLEMS]
        report = stepped(engine, chosen, problems)
        found.append((report.loss, report.grad_norm))
        per_token = [x for values in report.entries.values() for x in values]
        assert report.loss == pytest.approx(sum(per_token) / len(per_token), rel=1e-6)
        assert len(per_token) == sum(len(j.rollout.tokens) for j in report.judged)
    assert found[0] == found[1]
    assert found[0][0] > 0


def test_the_end_is_learnt_though_padding_has_its_id(tiny) -> None:
    """The tiny tokenizer pads with its end token. Each text's end is in the loss once, whatever stands beside it."""
    engine = tiny()
    assert engine.tokenizer.pad_token_id == engine.tokenizer.eos_token_id == engine.end_of_turn
    chosen = recipe(teacher=None, rollouts=FromDataset(), terms=(CrossEntropy(),))
    texts = [replace(p, solution="so " * (i + 1)) for i, p in enumerate(PROBLEMS)]
    rollouts = transcribed(engine, texts, Sampling(max_new_tokens=99))
    loss, signal, batch = objective_of(engine, chosen, rollouts)
    ids = [t for e in batch for t in e.tokens]
    assert ids.count(engine.end_of_turn) == len(PROBLEMS), "one end a text, no padding"
    at_end = [i for i, t in enumerate(ids) if t == engine.end_of_turn]
    assert bool((signal.weights[0, at_end] > 0).all())
    assert bool((signal.values[0, at_end] > 0).all())
    loss.backward()
    row = engine.head("student").weight.grad[engine.end_of_turn].clone()
    engine.updates.forget()
    without = [replace(r, tokens=r.tokens[:-1]) for r in rollouts]
    objective_of(engine, chosen, without)[0].backward()
    assert not torch.allclose(engine.head("student").weight.grad[engine.end_of_turn], row, atol=1e-3)


def test_a_much_longer_neighbour_changes_nothing(tiny) -> None:
    """Per-token values beside a text of two hundred tokens are those alone."""
    engine = tiny()
    chosen = recipe(refresh=ALL["kd"].refresh, teacher=question, rollouts=FromDataset())
    chosen = replace(chosen, terms=(CrossEntropy(),))
    rollouts = transcribed(engine, [PROBLEMS[0]])
    (long,) = transcribed(engine, [replace(PROBLEMS[1], solution="and on " * 30)], Sampling(max_new_tokens=220))
    _, alone, _ = objective_of(engine, chosen, rollouts)
    _, beside, batch = objective_of(engine, chosen, [*rollouts, long])
    assert len(batch[-1].tokens) > 200
    n = len(batch[0].tokens)
    assert torch.allclose(beside.values[:, :n], alone.values, atol=1e-12)
    assert beside.values.shape[1] == n + len(long.tokens)


def test_what_a_gate_rejects_is_not_in_the_mean(tiny) -> None:
    """Loss and step size are those of the rollouts that teach, and nobody scores the others."""
    engine, alone = tiny(), tiny()

    class Some:
        """Lets the first two problems teach."""

        def __call__(self, group):
            return [j for j in group if j.rollout.problem.id in ("p0", "p1")]

    scored = []
    score = engine.score
    engine.score = lambda role, prompts, completions: (
        scored.append(len(completions)) or score(role, prompts, completions)
    )
    gated = stepped(engine, recipe(gates=(Some(),)))
    few = stepped(alone, recipe(), PROBLEMS[:2])
    assert (gated.kept, len(gated.judged)) == (2, 5)
    assert gated.loss == pytest.approx(few.loss, rel=1e-9)
    assert gated.grad_norm == pytest.approx(few.grad_norm, rel=1e-9)
    assert sum(scored) == 4, "two rollouts, two roles"


def test_a_frozen_teacher_under_an_adapter_is_the_students_own_base(tiny) -> None:
    engine = tiny("lora:r=4,alpha=8")
    with engine.running("teacher") as teacher:
        assert teacher is base_model(engine.student)
    assert engine.teacher.tensors() == {}


def test_a_long_solution_leaves_the_problem_and_the_chat_in_the_teachers_prompt(tiny) -> None:
    """TRL 1.16's SDFT keeps the last 512 tokens: of a long solution neither problem nor chat header is left."""
    engine, problem = tiny(), replace(PROBLEMS[3], solution="first this, then that; " * 60 + "done")
    prompt = engine.prompt(with_solution, Case(problem), "teacher")
    assert len(prompt.ids) > 1000
    text = engine.tokenizer.decode(list(prompt.ids))
    assert text == prompt.text
    assert text.startswith("<|im_start|>")
    assert problem.question in text
    assert problem.solution in text
    rollouts = engine.generate([Request(problem, question)], SHORT)
    _, _, batch = objective_of(engine, recipe(), rollouts)
    assert batch[0].teacher_prompt == prompt.ids, "and it is scored behind the whole of it"


@pytest.mark.parametrize("name", sorted(name for name, chosen in ALL.items() if chosen.teacher is not None))
def test_nothing_privileged_stands_in_the_assistants_turn(tiny, name: str) -> None:
    """Both roles' prompts end where an assistant's turn begins, and every word of theirs stands before it."""
    engine, told = tiny(), Problem("a", "Why?", "7", "since seven", "a page", "an example", "again", other=PROBLEMS[2])
    chosen, opening = ALL[name], "<|im_start|>assistant\n"
    for role, context in (("student", chosen.student), ("teacher", chosen.teacher)):
        text = engine.prompt(context, Case(told), role).text
        assert text.endswith(opening)
        assert text.count(opening) == 1


@pytest.mark.parametrize(
    "sampling", [Sampling(9, 0.6), Sampling(9, 1.7, top_p=0.7), Sampling(9, 1.0, top_k=5), Sampling(9, 0.8, 0.9, 40)]
)
def test_recorded_log_probs_are_the_scored_ones_at_any_sampling(tiny, sampling: Sampling) -> None:
    """Tempered as the loss is, and before anything was cut off: importance ratios of a first step are 1."""
    engine = tiny()
    rollouts = engine.generate([Request(p, question, seed=(0, 1)) for p in PROBLEMS], sampling)
    chosen = recipe(sampling=sampling)
    _, signal, _ = objective_of(engine, chosen, rollouts)
    assert torch.allclose(signal.stats.student_logp, signal.stats.behaviour.double(), atol=1e-5)
    assert stepped(tiny(), chosen).gap < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
def test_decoding_reads_each_token_once_also_under_checkpointing(tiny, checkpointing: bool, monkeypatch) -> None:
    """GKD turns the cache off with checkpointing, which is on by default: every token reads all before it again."""
    engine, read = tiny(activation_checkpointing=checkpointing), []
    layer = base_model(engine.student).model.layers[0]
    layer.register_forward_pre_hook(lambda module, args, kwargs: read.append(args[0].shape), with_kwargs=True)
    sampling = Sampling(max_new_tokens=12)
    engine.generate([Request(PROBLEMS[0], question)], sampling)
    prompt = len(engine.prompt(question, Case(PROBLEMS[0])).ids)
    assert sum(shape[0] * shape[1] for shape in read) <= prompt + sampling.max_new_tokens
