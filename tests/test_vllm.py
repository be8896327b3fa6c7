"""The real server on the embedded model: what the double imitates, measured. `make serve-test`."""

from __future__ import annotations

import os

import pytest
import torch

from tests.test_generators import generate, wanted
from tests.vllm_server import running
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.loading import load
from workbench.engine.serving.attaching import attach
from workbench.engine.serving.client import Replica
from workbench.errors import TrainingError
from workbench.parts.refresh import FROZEN
from workbench.records import Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
SAMPLING = Sampling(12)
TEXTS = ("2 + 2 =", "The capital of France is", "def square(x):\n", "Once upon a time there was a", "1, 1, 2, 3, 5,")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    if named := os.environ.get("WORKBENCH_SERVER"):
        yield named
        return
    with running(tmp_path_factory.mktemp("serve") / "model", 8911, "--adapter", "lora:r=8") as address:
        yield address


@pytest.fixture
def engine(url, tmp_path):
    return served(url, tmp_path)


def served(url, folder, adapter=None):
    loaded = load("smollm2", dtype=torch.float32)
    engine = Engine(loaded, adapter=adapter, refresh=FROZEN, settings=EngineSettings())
    facts = attach(engine, [url], folder / "weights", [(SAMPLING, 0)])
    print(f"\n{facts}")
    return engine


def asked(engine, n=5):
    return wanted([tuple(engine.tokenizer(TEXTS[i % len(TEXTS)])["input_ids"]) for i in range(n)])


def stir(engine, size=2e-3):
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in engine.parameters().values():
            p.add_(torch.randn(p.shape, generator=draw) * size)


def gaps(engine, samples, wanted_, role="student"):
    with torch.no_grad():
        states = engine.score(role, [w.prompt for w in wanted_], [s.tokens for s in samples])
        logp = engine.head(role).logits(states).log_softmax(-1)
    said = torch.tensor([t for s in samples for t in s.tokens])
    behaviour = torch.tensor([x for s in samples for x in s.logprobs])
    return (logp.gather(1, said[:, None]).squeeze(1) - behaviour).abs()


def test_float32_agrees_to_rounding(engine) -> None:
    want = asked(engine)
    found = gaps(engine, generate(engine, want, SAMPLING), want)
    print(f"HF fp32 - vLLM fp32: mean {found.mean():.2g}, max {found.max():.2g} nats over {len(found)} tokens")
    assert found.max() < 1e-4


def test_there_and_back(engine) -> None:
    """New weights are new, old ones are old again, and both are ours to rounding: head, cache and all."""
    want, sampling = asked(engine), Sampling(24, temperature=0.0)
    first = {n: p.detach().clone() for n, p in engine.parameters().items()}
    before = generate(engine, want, sampling)
    stir(engine)
    engine.serve(1)
    there = generate(engine, want, sampling)
    assert gaps(engine, there, want).max() < 1e-3
    assert [s.tokens for s in there] != [s.tokens for s in before]
    print(f"there: probe {engine.generators['student'].gap:.2g} nats")
    with torch.no_grad():
        for name, p in engine.parameters().items():
            p.copy_(first[name])
    engine.serve(2)
    back = generate(engine, want, sampling)
    print(f"and back: probe {engine.generators['student'].gap:.2g} nats")
    assert [s.tokens for s in back] == [s.tokens for s in before]
    assert {s.versions for s in back} == {(2, 2)}


def test_a_cache_that_was_not_reset_is_seen_by_the_probe(engine, monkeypatch) -> None:
    tell, post = Replica.tell, Replica.post

    def kept(self, path, body=None, line=None):
        return {"success": True} if path == "/reset_prefix_cache" else post(self, path, body, line)

    def kept_too(self, path, body=None):  # a pause that waits empties the cache by itself
        return None if path.startswith("/pause") else tell(self, path, body)

    stir(engine)
    monkeypatch.setattr(Replica, "post", kept)
    monkeypatch.setattr(Replica, "tell", kept_too)
    with pytest.raises(TrainingError, match="serves other weights than were sent") as caught:
        engine.serve(1)
    print(caught.value)
    monkeypatch.undo()
    engine.serve(2)


def test_seeds_do_not_depend_on_the_batch(engine) -> None:
    want = asked(engine, 32)
    whole = generate(engine, want, SAMPLING)
    again = generate(engine, want, SAMPLING)
    few = generate(engine, want[:8], SAMPLING)
    same = [sum(a.tokens == b.tokens for a, b in zip(x, whole, strict=False)) for x in (again, few)]
    print(f"the same tokens: {same[0]}/32 asked again, {same[1]}/8 in a batch of 8 instead of 32")
    assert same == [32, 8]
    assert len({s.tokens for s in whole[:: len(TEXTS)]}) > 1


def test_an_end_token_is_in_the_answer(engine) -> None:
    want = asked(engine)
    ends = frozenset({s.tokens[5] for s in generate(engine, want, SAMPLING)})
    for sample in generate(engine, want, SAMPLING, ends=ends):
        assert sample.stop == "stop"
        assert sample.tokens[-1] in ends


def test_adapters_are_what_peft_makes_of_them_and_the_base_is_the_teacher(url, tmp_path) -> None:
    engine = served(url, tmp_path, "lora:r=8")
    want = asked(engine)
    for version in (1, 2):
        stir(engine, 0.02)
        engine.serve(version)
        found = gaps(engine, generate(engine, want, SAMPLING), want)
        print(f"adapter {version}: max {found.max():.2g} nats from peft")
        assert found.max() < 1e-3
    teacher = engine.generators["teacher"].generate(want, SAMPLING, frozenset())
    found = gaps(engine, teacher, want, "teacher")
    print(f"base: max {found.max():.2g} nats from the module with its adapter off")
    assert found.max() < 1e-4


def test_greedy_is_the_same_text_in_both(engine) -> None:
    from workbench.engine.generating import HfGenerator

    want, sampling = asked(engine), Sampling(24, temperature=0.0)
    here = HfGenerator(lambda: engine.voice("student"), 8).generate(want, sampling, frozenset())
    assert [s.tokens for s in generate(engine, want, sampling)] == [s.tokens for s in here]
