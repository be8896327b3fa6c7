"""What texts begin with is read once; nothing about a state or a gradient may say so."""

from __future__ import annotations

import random

import pytest
import torch

import workbench.engine.scoring as scoring
from workbench.engine.heads import decoder
from workbench.engine.stems import Sharing, cheapest, shareable

CPU = torch.device("cpu")
WAYS = (Sharing(), Sharing(12), Sharing(0, True), Sharing(12, True))


def asked(groups: tuple[int, ...], seed: int = 0):
    """Prompts with twelve tokens in common, the i-th as often as `groups` says, completions of any length."""
    chance = random.Random(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(chance.randrange(200) for _ in range(n))

    template = tokens(12)
    prompts = [p for n in groups for p in [template + tokens(chance.randrange(1, 15))] * n]
    completions = [tokens(chance.randrange(1, 12)) for _ in prompts]
    order = list(range(len(prompts)))
    chance.shuffle(order)
    return [prompts[i] for i in order], [completions[i] for i in order]


def scored(engine, monkeypatch, way: Sharing, prompts, completions):
    monkeypatch.setattr(scoring, "cheapest", lambda *_: way)
    engine.updates.forget()
    hidden = engine.score("student", prompts, completions)
    (hidden * torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view(hidden.shape)).sum().backward()
    return hidden.detach(), {k: p.grad.clone() for k, p in engine.parameters().items() if p.grad is not None}


@pytest.mark.parametrize("adapter", [None, "lora:r=4"])
@pytest.mark.parametrize("groups", [(1, 1, 1), (3, 1, 4), (5,), (2, 2)])
def test_states_and_gradients_are_the_same_however_much_is_shared(tiny, monkeypatch, groups, adapter) -> None:
    engine = tiny(adapter=adapter)
    prompts, completions = asked(groups)
    plain, gradients = scored(engine, monkeypatch, Sharing(), prompts, completions)
    assert gradients
    for way in WAYS[1:]:
        states, others = scored(engine, monkeypatch, way, prompts, completions)
        assert torch.allclose(states, plain, atol=1e-12), way
        assert others.keys() == gradients.keys()
        for name, value in gradients.items():
            rounding = 1e-11 if value.dtype == torch.float64 else 1e-5  # a LoRA's factors are float32
            assert torch.allclose(others[name], value, rtol=0, atol=rounding * float(value.abs().max())), (way, name)


def read_tokens(engine, monkeypatch) -> list[int]:
    """The size of everything the decoder is given from now on."""
    sizes: list[int] = []
    module = decoder(engine.student)
    plain = module.forward

    def counting(*args, **kwargs):
        sizes.append(kwargs["input_ids"].numel())
        return plain(*args, **kwargs)

    monkeypatch.setattr(module, "forward", counting)
    return sizes


def test_a_group_reads_its_prompt_once(tiny, monkeypatch) -> None:
    engine, sizes = tiny(), []
    prompt, completions = tuple(range(100)), [tuple(range(9))] * 8
    sizes = read_tokens(engine, monkeypatch)
    engine.score("student", [prompt] * 8, completions)
    assert sizes == [99, 8 * (1 + 9)]


def test_the_cheapest_way_weighs_what_a_pass_costs() -> None:
    long, short = tuple(range(300)), tuple(range(20))
    assert cheapest([long] * 4, [(1,)] * 4, CPU) == Sharing(0, True)
    assert cheapest([short] * 2, [(1,)] * 2, CPU) == Sharing(), "20 tokens cost less than one more pass"
    assert cheapest([long], [(1,)], CPU) == Sharing(), "nothing is shared with nobody"
    assert cheapest([(*long, 1), (*long, 2)], [(1,), (1,)], CPU) == Sharing(300)
    assert cheapest([(*long, i) for i in (1, 2)] * 4, [(1,)] * 8, CPU) == Sharing(300)


def test_what_cannot_be_continued_is_read_whole(tiny) -> None:
    engine = tiny(activation_checkpointing=True)
    engine.student.train()
    assert not shareable(decoder(engine.student)), "a stem would be thrown away before its gradient"
    assert shareable(decoder(tiny().student))
    from transformers import Gemma3TextConfig, Gemma3TextModel

    sliding = Gemma3TextModel(
        Gemma3TextConfig(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"],
        )
    )  # fmt: skip
    assert not shareable(sliding)
