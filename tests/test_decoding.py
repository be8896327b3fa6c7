"""What makes decoding fast changes no token: groups, shared beginnings, room in the cache, gaps, packed weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from workbench.engine import packed as packing
from workbench.engine import prefill
from workbench.engine.engine import Engine, EngineSettings, base_model, decoder, head_of
from workbench.engine.loading import Loaded
from workbench.engine.packed import Packing
from workbench.engine.sampling import Row, _closing_gaps, decode
from workbench.parts.refresh import LIVE
from workbench.records import Sampling

START = tuple(range(20, 32))
PROMPTS = {
    "one": [(5, 6, 7)],
    "alike": [(5, 6, 7)] * 3,
    "nothing shared": [(9, 1), (3, 4, 5, 6), tuple(range(40))],
    "all shared but the last": [(*START, i) for i in range(4)],
    "one is the beginning of the others": [START, (*START, 5), (*START, 5, 6, *range(30))],
    "mixed": [(*START, *range(i * i)) for i in range(1, 7)] * 2,
}


def run(engine: Engine, prompts: list[tuple[int, ...]], tokens: int = 12, stops: frozenset[int] = frozenset()):
    import numpy as np

    rows = [Row(p, np.zeros(0)) for p in prompts]
    model = engine.student
    with torch.no_grad():
        decode(decoder(model), head_of(model), rows, Sampling(tokens, temperature=0.0), stops, lambda: False)
    return rows


def alone(engine: Engine, prompt: tuple[int, ...], tokens: int = 12) -> list[int]:
    """HF's own greedy loop, one prompt, no end token."""
    ids = torch.tensor([prompt])
    model = base_model(engine.student)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("room", [1, 5, 256])
@pytest.mark.parametrize("name", PROMPTS)
def test_every_prompt_is_continued_as_if_alone(tiny, monkeypatch, name: str, room: int) -> None:
    monkeypatch.setattr(prefill, "_ROOM", room)
    engine, prompts = tiny(), PROMPTS[name]
    rows = run(engine, prompts)
    assert [row.tokens for row in rows] == [alone(engine, prompt) for prompt in prompts]
    states = engine.score("student", prompts, [row.tokens for row in rows])
    logp = engine.head("student").logits(states).log_softmax(-1)
    said = torch.tensor([t for row in rows for t in row.tokens])
    expected = logp.gather(1, said[:, None]).squeeze(1)
    found = torch.tensor([x for row in rows for x in row.logprobs], dtype=expected.dtype)
    assert torch.allclose(found, expected.detach(), atol=1e-9)


def test_rows_that_end_leave_the_others_alone(tiny) -> None:
    """Every token anybody says is tried as an end: rows leave in every order."""
    engine, prompts = tiny(), PROMPTS["mixed"]
    whole = [row.tokens for row in run(engine, prompts)]
    assert len({tuple(tokens) for tokens in whole}) > 2
    for end in sorted({t for tokens in whole for t in tokens}):
        for row, tokens in zip(run(engine, prompts, stops=frozenset({end})), whole, strict=True):
            expected = tokens[: tokens.index(end) + 1] if end in tokens else tokens
            assert (row.tokens, row.stop) == (expected, "stop" if end in tokens else "length")


def test_shared_tokens_are_read_once(tiny) -> None:
    engine = tiny()
    read: list[int] = []
    original = engine.student.forward
    stack = decoder(engine.student)
    handle = stack.register_forward_pre_hook(
        lambda _m, _a, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        run(engine, [(*START, i) for i in range(4)] * 2, tokens=1)
    finally:
        handle.remove()
    assert engine.student.forward == original
    assert sum(read) == len(START) + 4


def test_a_sliding_window_is_read_whole_and_decodes_the_same(tiny) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    plain = tiny()
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        initializer_range=0.3,
        eos_token_id=63,
        bos_token_id=None,
    )
    model = MistralForCausalLM(config).double()
    loaded = Loaded(model, plain.tokenizer, "tiny", None, ())
    engine = Engine(loaded, adapter=None, refresh=LIVE, settings=EngineSettings())
    prompts = [tuple(t % 60 for t in p) for p in PROMPTS["mixed"]]
    assert [row.tokens for row in run(engine, prompts)] == [alone(engine, p) for p in prompts]


@given(st.sets(st.integers(0, 30), min_size=1))
def test_gaps_are_closed_by_the_last_rows(alive: set[int]) -> None:
    order = _closing_gaps(sorted(alive))
    assert sorted(order) == sorted(alive)
    assert all(source == i or source >= len(alive) for i, source in enumerate(order))
    assert all(order[i] == i for i in alive if i < len(alive))


def forwards(engine: Engine) -> list[Any]:
    return [m.__dict__.get("forward") for m in engine.student.modules() if isinstance(m, nn.Linear)]


@pytest.mark.skipif(not packing._supported(), reason="this torch has no packed products")
def test_packed_weights_give_the_same_and_leave_no_trace(tiny, monkeypatch) -> None:
    engine = tiny(dtype=torch.float32)
    stack, head = decoder(engine.student), head_of(engine.student)
    x = torch.randn(5, head.weight.shape[1])
    with torch.no_grad(), Packing(stack, head) as project:
        assert sum(f is not None for f in forwards(engine)) == sum(type(m) is nn.Linear for m in stack.modules()) > 0
        assert torch.allclose(project(x), head.logits(x), atol=1e-4)
        with pytest.raises(RuntimeError, match="stop"), Packing(stack, head):
            raise RuntimeError("stop")
    assert forwards(engine) == [None] * len(forwards(engine))
    fast = [row.tokens for row in run(engine, PROMPTS["mixed"])]
    monkeypatch.setattr(packing, "_memory", lambda: 0)
    with Packing(stack, head) as project:
        assert forwards(engine) == [None] * len(forwards(engine)), "no memory, no copy"
        assert project == head.logits
    assert [row.tokens for row in run(engine, PROMPTS["mixed"])] == fast


@pytest.mark.skipif(not packing._supported(), reason="this torch has no packed products")
def test_a_step_of_training_reaches_what_is_decoded_next(tiny) -> None:
    """Packed weights live as long as one call: afterwards the model is trained, and decodes what it has become."""
    engine = tiny(dtype=torch.float32)
    before = [row.tokens for row in run(engine, PROMPTS["mixed"])]
    with torch.no_grad():
        for parameter in engine.parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    after = [row.tokens for row in run(engine, PROMPTS["mixed"])]
    assert after != before
    assert after == [alone(engine, prompt) for prompt in PROMPTS["mixed"]]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_groups_cover_everything_at_the_least_cost(lengths: list[int]) -> None:
    lengths = sorted(lengths)
    groups = prefill.grouped(lengths, torch.device("cpu"))
    assert [i for group in groups for i in range(len(lengths))[group]] == list(range(len(lengths)))

    def cost(cut: list[slice]) -> int:
        return sum(max(lengths[g]) * len(lengths[g]) + prefill._GROUP_COSTS for g in cut)

    cuts = [[slice(0, len(lengths))], [slice(i, i + 1) for i in range(len(lengths))]]
    cuts += [[slice(0, i), slice(i, len(lengths))] for i in range(1, len(lengths))]
    assert cost(groups) <= min(map(cost, cuts))


def test_scores_do_not_depend_on_who_is_read_together(tiny) -> None:
    """Lengths far apart, in no order: several passes, and every row as if alone, gradient included."""
    engine = tiny()
    prompts = [tuple(range(3, 3 + n)) for n in (90, 4, 60, 5, 30, 91, 1, 61)]
    completions = [tuple(range(2, 2 + n)) for n in (9, 30, 1, 8, 40, 2, 25, 3)]
    passes: list[int] = []
    handle = decoder(engine.student).register_forward_pre_hook(
        lambda _m, _a, kwargs: passes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        together = engine.score("student", prompts, completions)
    finally:
        handle.remove()
    assert len(passes) > 1
    assert max(passes) > 1
    alone = torch.cat([engine.score("student", [p], [c]) for p, c in zip(prompts, completions, strict=True)])
    assert torch.allclose(together, alone, atol=1e-9)
    direction = torch.randn(together.shape, dtype=together.dtype, generator=torch.Generator().manual_seed(0))
    weights = list(engine.parameters().values())
    for one, other in zip(
        torch.autograd.grad((together * direction).sum(), weights, allow_unused=True),
        torch.autograd.grad((alone * direction).sum(), weights, allow_unused=True),
        strict=True,
    ):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-7)
