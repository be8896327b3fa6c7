"""What every `Generator` promises, asked of each: in process, and through a server."""

from __future__ import annotations

import hashlib
import threading

import pytest
import torch

from tests.serving_double import Double, soon
from workbench.engine.serving.attaching import attach
from workbench.records import Sampling, Wanted

PROMPTS = [(5, 6, 7), tuple(range(20, 40)), (5, 6, 7), tuple(range(3, 140))]
SAMPLING = Sampling(8)


def wanted(prompts=PROMPTS, seed=0):
    return [Wanted(p, hashlib.sha256(f"{seed}/{i}".encode()).digest()) for i, p in enumerate(prompts)]


@pytest.fixture(params=["hf", "vllm, two replicas", pytest.param("vllm, adapter", marks=pytest.mark.slow)])
def engine(request, tiny, tiny_folder, tmp_path):
    """An engine whose student is written by the generator under test; its weights are not the initial ones."""
    adapter = "lora:r=4" if "adapter" in request.param else None
    engine = tiny(adapter=adapter)
    stir(engine)
    if request.param == "hf":
        yield engine
        return
    doubles = [Double(tiny_folder) for _ in range(2 if "two" in request.param else 1)]
    attach(engine, [d.url for d in doubles], tmp_path / "weights", [(SAMPLING, 0)])
    engine.doubles = doubles
    yield engine
    for double in doubles:
        double.close()


def stir(engine, seed=1):
    with torch.no_grad():
        for p in engine.parameters().values():
            p.add_(torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(seed)) * 0.05)


def ours(engine, prompt, tokens, temperature=1.0):
    """The log-probs of tokens as the learner scores them."""
    logits = engine.head("student", temperature).logits(engine.score("student", [prompt], [tokens]))
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).squeeze(1).tolist()


def generate(engine, asked, sampling=SAMPLING, ends=frozenset(), **more):
    return engine.generators["student"].generate(asked, sampling, ends, **more)


def test_tokens_come_with_the_learners_own_log_probs(engine) -> None:
    for sampling in (SAMPLING, Sampling(8, top_p=0.8, top_k=5)):
        for sample, asked in zip(generate(engine, wanted(), sampling), wanted(), strict=True):
            assert len(sample.tokens) == len(sample.logprobs) == 8
            assert sample.stop == "length"
            assert sample.logprobs == pytest.approx(ours(engine, asked.prompt, sample.tokens), abs=1e-5)


def test_greedy_is_greedy(engine) -> None:
    for sample, asked in zip(generate(engine, wanted(), Sampling(6, temperature=0.0)), wanted(), strict=True):
        states = engine.score("student", [asked.prompt], [sample.tokens])
        assert tuple(engine.head("student").logits(states).argmax(-1).tolist()) == sample.tokens


def test_the_key_decides_and_nothing_else(engine) -> None:
    """Not the batch, not the order, not the replica."""
    asked = wanted()
    together = generate(engine, asked)
    alone, turned = [generate(engine, [one])[0] for one in asked], generate(engine, asked[::-1])[::-1]
    for sample, *others in zip(together, alone, turned, strict=True):
        for other in others:
            assert other.tokens == sample.tokens
            assert other.logprobs == pytest.approx(sample.logprobs, abs=1e-9)
    assert together[0].tokens != together[2].tokens, "one prompt, two keys"
    assert [s.tokens for s in together] != [s.tokens for s in generate(engine, wanted(seed=1))]


def test_an_end_token_ends_and_is_kept(engine) -> None:
    whole = generate(engine, wanted())
    for end in {s.tokens[3] for s in whole[:2]}:
        for sample, free in zip(generate(engine, wanted(), ends=frozenset({end})), whole, strict=True):
            cut = free.tokens.index(end) + 1 if end in free.tokens else len(free.tokens)
            assert sample.tokens == free.tokens[:cut]
            assert sample.stop == ("stop" if end in free.tokens else "length")


def test_samples_carry_the_version_that_was_served(engine) -> None:
    assert {s.versions for s in generate(engine, wanted())} == {(0, 0)}
    engine.serve(7)
    samples = generate(engine, wanted())
    assert {s.versions for s in samples} == {(7, 7)}
    assert engine.generators["student"].version == 7


def test_what_is_trained_is_what_writes_next(engine) -> None:
    before = generate(engine, wanted())
    for version in (1, 2):
        stir(engine, seed=version + 1)
        engine.serve(version)
        after = generate(engine, wanted())
        assert [s.tokens for s in after] != [s.tokens for s in before]
        for sample, asked in zip(after, wanted(), strict=True):
            assert sample.logprobs == pytest.approx(ours(engine, asked.prompt, sample.tokens), abs=1e-5)


def test_finished_samples_are_told_while_others_are_written(engine) -> None:
    engine.generators["student"]._rows = 1  # in process: one at a time, so that something is left
    told = {}
    samples = generate(engine, wanted(), wrote=lambda place, sample: told.update({place: sample}))
    assert 0 < len(told) < len(samples)
    assert all(samples[place] == sample for place, sample in told.items())


def test_a_stop_leaves_the_rest_cancelled(engine) -> None:
    stop = threading.Event()
    stop.set()
    samples = generate(engine, wanted(), stopped=stop.is_set)
    assert {s.stop for s in samples} == {"cancelled"}
    assert len(generate(engine, wanted())) == len(PROMPTS), "and it writes again"


def test_nothing_wanted_nothing_written(engine) -> None:
    assert generate(engine, []) == []


def test_one_problems_samples_stay_together_and_the_load_is_even(tiny, tiny_folder, tmp_path) -> None:
    with Double(tiny_folder) as one, Double(tiny_folder) as other:
        engine = tiny()
        attach(engine, [one.url, other.url], tmp_path, [(SAMPLING, 0)])
        before = len(one.calls), len(other.calls)
        generate(engine, wanted([(i, 9, 9) for i in range(6) for _ in range(4)]))
        seen = [
            [tuple(b["token_ids"]) for path, b in d.calls[n:] if path.endswith("generate")]
            for d, n in zip((one, other), before, strict=True)
        ]
        assert [len(s) for s in seen] == [12, 12]
        assert not set(seen[0]) & set(seen[1])


def test_a_stop_midway_cuts_off_what_is_under_way(tiny, tiny_folder, tmp_path) -> None:
    with Double(tiny_folder) as double:
        engine = tiny()
        attach(engine, [double.url], tmp_path, [(SAMPLING, 0)])
        double.hang, before = True, len(double.said("/inference/v1/generate"))
        samples = generate(
            engine, wanted(), stopped=lambda: len(double.said("/inference/v1/generate")) - before == len(PROMPTS)
        )
        assert {(s.stop, s.tokens) for s in samples} == {("cancelled", ())}
        double.hang = False
        assert soon(lambda: len(generate(engine, wanted())) == len(PROMPTS))
