"""What a run says it did, counted by hand, by torch's own FLOP counter, and through the real step and the real job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import build_tiny
from tests.test_step import PROBLEMS, drawn, recipe, verify
from workbench import opsd
from workbench.divergence import JSD
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.loading import load
from workbench.engine.machine import Machine, measured
from workbench.engine.meter import Shape
from workbench.engine.ranks import Ranks
from workbench.parts.contexts import question
from workbench.parts.plans import LogRatio
from workbench.parts.refresh import FROZEN
from workbench.parts.schedules import Clock
from workbench.parts.terms import CrossEntropy, Distill, PolicyGradient
from workbench.parts.writers import Desk, FromDataset, OnPolicy
from workbench.records import Case, Judged, Problem, Request, Sample
from workbench.train import accounts
from workbench.train.batches import Denominators, entries
from workbench.train.learning import _pass
from workbench.train.objective import objective
from workbench.train.reading import read
from workbench.train.report import BESIDE, Phases
from workbench.train.run_directory import read_jsonl
from workbench.train.step import State, train_step
from workbench.train.watching import Course

LINEAR = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
"""Weights of the tiny model's two layers: q and o, k and v, the MLP's three."""
WIDTH = 2 * 64
"""heads x head dim, over its layers."""


def step(engine, chosen, problems=PROBLEMS):
    """One real step; (its report, what it and the time beside it came to)."""
    state = State(engine, Clock(0, 4))
    book = accounts.of(engine, state.phases)
    report = train_step(chosen, state, problems, verify)
    return report, book.step("here", report.tokens), book


def addmm(_, a, b, *__, **___) -> int:
    """Products that add into what is there: torch's counter knows the others."""
    return 2 * a[0] * a[1] * b[1]


def triangle(n: int) -> int:
    return n * (n + 1) // 2


def test_a_model_is_seen_as_what_a_token_is_multiplied_by(tiny) -> None:
    engine = tiny()
    shape = Shape.of(engine.student)
    vocabulary = len(engine.tokenizer)
    assert (shape.weights, shape.trained, shape.head, shape.head_trained) == (LINEAR, LINEAR, vocabulary * 64, True)
    assert [(a.window, a.width, a.cached) for a in shape.attention] == [(None, WIDTH, 2 * 2 * 32 * 8)]
    factors = 4 * 2 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 96) * 3)
    lora = tiny(adapter="lora:r=4")
    with lora.running("student") as module:
        shape = Shape.of(module)
        assert (shape.weights, shape.trained, shape.head_trained) == (LINEAR + factors, factors, False)
    with lora.running("teacher") as module:
        assert Shape.of(module).weights == LINEAR, "an adapter that is off multiplies nothing"


def test_experts_count_as_many_as_a_token_is_sent_to() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, sliding_window=None,
    )  # fmt: skip
    attention, router, experts = 2 * 16 * 16 + 2 * 16 * 8, 4 * 16, 2 * 3 * 16 * 24
    assert Shape.of(MixtralForCausalLM(config)).weights == attention + router + experts


@pytest.mark.parametrize("adapter", [None, "lora:r=4"])
def test_flops_are_what_torch_counts_and_half_of_the_masked_square_less(tmp_path, adapter) -> None:
    """A text under plain attention, which computes every pair: ours leave out those that are masked, and no more."""
    loaded = load(str(build_tiny(tmp_path / "plain")), dtype=torch.float32)
    loaded.model.set_attn_implementation("eager")
    engine = Engine(loaded, adapter=adapter, refresh=FROZEN, settings=EngineSettings())
    chosen = recipe(rollouts=FromDataset(), terms=(Distill(JSD(0.3)),), teacher=recipe().student)
    desk = Desk(engine, chosen.student, chosen.teacher, chosen.sampling, (0,), lambda: False)
    judged = [Judged(r, verify(r)) for r in chosen.rollouts.draw(desk, PROBLEMS[:1])]
    kept, phases = entries(engine, chosen, [judged]), Phases()
    book = accounts.of(engine, phases)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: addmm}) as counter:
        with phases("score"):
            loss, _ = objective(chosen, engine, kept, Denominators.of(chosen, kept))
        with phases("backward"):
            loss.backward()
    found = book.step("here", 0)
    width = len(kept[0].student_prompt) + len(kept[0].tokens)
    assert found["tokens"]["read"] == {"student": width, "teacher": width}
    # A forward each, and the student's backward of twice that.
    masked = (width * width - triangle(width)) * 4 * WIDTH * (1 + 1 + 2)
    # Nothing trains below the first layer of a frozen base: nobody needs the gradient of what q, k and v read there.
    first = 2 * width * (64 * 64 + 2 * 64 * 32 + 3 * 64 * 4) if adapter else 0
    assert sum(found["flops"].values()) + masked - first == counter.get_total_flops()


def test_a_step_is_counted_by_hand(tiny) -> None:
    """Nothing is shared and nothing is short enough to be padded: one problem, two rollouts, both roles."""
    engine, chosen = tiny(dtype=torch.float32), recipe(rollouts=OnPolicy(1))
    report, found, _ = step(engine, chosen, PROBLEMS[:1])
    (rollout,) = [j.rollout for j in report.judged]
    case, n = Case(PROBLEMS[0]), len(rollout.tokens)
    student, teacher = (len(engine.prompt(c, case).ids) for c in (chosen.student, chosen.teacher))
    # What is written last is not read again by whoever wrote it.
    assert found["tokens"] == {
        "generated": {"student": n},
        "scored": {"student": n, "teacher": n},
        "read": {"student": student + n - 1 + student + n, "teacher": teacher + n},
        "trained": n,
    }
    head = 2 * len(engine.tokenizer) * 64 * n
    assert found["flops"]["rollout"] == 2 * LINEAR * (student + n - 1) + 4 * WIDTH * triangle(student + n - 1) + head
    both = 2 * LINEAR * (student + teacher + 2 * n) + 4 * WIDTH * (triangle(student + n) + triangle(teacher + n))
    assert found["flops"]["score"] == both + 2 * head + 2 * head
    assert found["flops"]["backward"] == 4 * LINEAR * (student + n) + 8 * WIDTH * triangle(student + n)
    assert set(found["seconds"]) >= {"rollout", "verify", "read", "score", "backward", "update"}
    assert set(found["bound_seconds"]) == {"rollout", "score", "backward", "update"}


def test_what_is_shared_is_read_once_and_padding_never(tiny) -> None:
    """Groups of four behind one prompt: the prompt once a role, and each completion behind its last token."""
    engine, chosen = tiny(micro_tokens=100_000), recipe(rollouts=OnPolicy(4))
    long = [Problem(f"l{i}", "word " * (40 + 30 * i), "1", "1") for i in range(2)]
    report, found, _ = step(engine, chosen, long)
    lengths = [len(j.rollout.tokens) for j in report.judged]
    prompts = [engine.prompt(chosen.student, Case(p)).ids for p in long]
    template = next(i for i, (a, b) in enumerate(zip(*prompts, strict=False)) if a != b)
    stems = template + sum(len(p) - 1 - template for p in prompts)
    scored = stems + sum(1 + n for n in lengths)
    written = template + sum(len(p) - template for p in prompts) + sum(n - 1 for n in lengths)
    assert found["tokens"]["read"]["student"] == written + scored
    assert found["tokens"]["generated"] == {"student": sum(lengths)}


def test_texts_of_unlike_length_are_read_side_by_side_and_only_they_count(tiny) -> None:
    engine, chosen = tiny(), recipe(rollouts=FromDataset(), teacher=None, terms=(CrossEntropy(),))
    report, found, _ = step(engine, chosen)
    lengths = [len(j.rollout.tokens) for j in report.judged]
    assert len(set(lengths)) > 1, "or nothing would be padded"
    prompts = [engine.prompt(chosen.student, Case(p)).ids for p in PROBLEMS]
    template = next(i for i, several in enumerate(zip(*prompts, strict=False)) if len(set(several)) > 1)
    apart = sum(len(p) - template + n for p, n in zip(prompts, lengths, strict=True))
    assert found["tokens"]["read"] == {"student": template + apart}


def test_readings_and_texts_are_scored_and_nothing_is_generated(tiny) -> None:
    report, found, _ = step(tiny(), recipe(rollouts=FromDataset(), teacher=None, terms=(CrossEntropy(),)))
    assert found["tokens"]["generated"] == {}
    assert found["tokens"]["scored"] == {"student": report.tokens}
    planned = recipe(plans=(LogRatio(),), terms=(PolicyGradient(),))
    report, found, _ = step(tiny(), planned)
    assert found["tokens"]["scored"] == {"student": 2 * report.tokens, "teacher": 2 * report.tokens}
    assert found["flops"]["read"] > 0


def test_what_no_step_did_is_kept_apart(tiny) -> None:
    engine, chosen = tiny(), recipe()
    state = State(engine, Clock(0, 4))
    book = accounts.of(engine, state.phases)
    engine.score("student", [(1, 2, 3)], [(4, 5)])
    report = train_step(chosen, state, PROBLEMS, verify)
    found = book.step("here", report.tokens)
    engine.score("student", [(1, 2, 3)], [(4, 5)])
    totals = book.settled()
    assert totals["methods"][BESIDE]["tokens"]["scored"] == {"student": 4}
    assert totals["methods"][BESIDE]["tokens"]["read"] == {"student": 10}
    assert totals["methods"]["here"]["tokens"] == found["tokens"]
    assert totals["flops"] == sum(sum(m["flops"].values()) for m in totals["methods"].values())
    again = accounts.Accounts(book.machine, Phases(), 0)
    again.load(json.loads(json.dumps(book.state_dict())))
    assert again.totals() == totals


def test_what_only_fills_up_a_process_is_not_counted(tiny, monkeypatch) -> None:
    engine, chosen = tiny(), recipe()
    kept = entries(engine, chosen, drawn(engine, chosen))
    found = []
    for batches in ([(kept[:2], True)], [(kept[:2], True), (kept[2:3], False)]):
        engine.meter.take()
        _pass(chosen, engine, batches, Denominators.of(chosen, kept), Course(Phases()))
        found.append({key: (c.passes, c.read, c.logits, c.tokens) for key, c in engine.meter.take().items()})
        engine.updates.forget()
    assert found[0] == found[1]
    assert found[0]["student", "learn", False][3] > 0
    found = []
    for blanks in (0, 1):
        more = [(kept[2:3], False)] * blanks
        monkeypatch.setattr(Ranks, "level", lambda _, own, blank, more=more: [*((b, True) for b in own), *more])
        read(chosen, engine, kept)
        found.append({key: (c.passes, c.read, c.logits, c.tokens) for key, c in engine.meter.take().items()})
    assert found[0] == found[1]


class Elsewhere:
    """A server: what it writes is computed by others."""

    version, gap = 0, 0.0

    def generate(self, wanted, *_: object) -> list[Sample]:
        return [Sample((5, 6, 7), (-1.0,) * 3, "length", (0, 0)) for _ in wanted]


def test_a_probe_beside_a_server_forms_no_logits_of_what_it_writes(tiny) -> None:
    engine = tiny()
    engine.generators["student"] = Elsewhere()
    with engine.voice("student") as (module, _):
        module(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    engine.generate([Request(p, question, "student") for p in PROBLEMS[:2]], recipe().sampling)
    counts = [c for (_, mode, _), c in engine.meter.take().items() if mode == "write"]
    assert (sum(c.tokens for c in counts), sum(c.read for c in counts), sum(c.logits for c in counts)) == (6, 3, 0)


def test_what_watches_changes_no_number(tiny) -> None:
    chosen = recipe()
    plain = train_step(chosen, State(tiny(), Clock(0, 4)), PROBLEMS, verify)
    counted, _, _ = step(tiny(), chosen)
    assert (counted.loss, counted.grad_norm) == (plain.loss, plain.grad_norm)


def test_a_bound_is_the_slower_of_two() -> None:
    machine = Machine(flops=100.0, bytes=10.0)
    assert machine.seconds(200.0, 10.0) == 2.0
    assert machine.seconds(100.0, 30.0) == 3.0
    model = torch.nn.Linear(64, 64)
    found = measured(model, torch.device("cpu"))
    assert found.flops > 0
    assert found.bytes > 0


def test_a_run_keeps_its_accounts_through_a_resume(tiny_folder: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", str(tiny_folder), "--problems", "sums:terms=2,maximum=9", "--limit", "12", "--batch", "3"]
    flags += ["--eval-problems", "2", "--max-new-tokens", "8", "--adapter", "none", "--progress", "plain"]
    flags += ["--save-every", "1", "--price-per-hour", "36", "--watts", "1000"]
    assert opsd.main([*flags, "--name", "a", "--steps", "2"]) == 0
    line = next(x for x in capsys.readouterr().err.splitlines() if x.startswith("step 1/2"))
    assert "TFLOP" in line
    assert "times bound" in line
    assert opsd.main([*flags, "--name", "a", "--steps", "3", "--resume", "--price-per-hour", "72"]) == 0
    totals = json.loads(Path("runs/a/status.json").read_text())["accounts"]
    own, rows = totals["methods"]["opsd"], read_jsonl(Path("runs/a/metrics.jsonl"))
    assert own["steps"] == len(rows) == 3
    assert own["tokens"]["trained"] == sum(row["tokens_trained"] for row in rows)
    assert sum(own["flops"].values()) == pytest.approx(sum(row["flops"] for row in rows))
    written = sum(len(row["token_ids"]) for row in read_jsonl(Path("runs/a/rollouts.jsonl")))
    assert own["tokens"]["generated"] == {"student": written}
    assert totals["methods"][BESIDE]["tokens"]["generated"]["student"] > 0, "evaluations write too"
    assert totals["cost"] == pytest.approx(totals["seconds"] / 50)
    assert totals["kilowatt_hours"] == pytest.approx(totals["seconds"] / 3600)
    card = Path("runs/a/final/README.md").read_text()
    assert "## What it took" in card
    assert f"trained {totals['tokens']['trained']:,}" in card
