"""What a dry run says a run will need, beside what it needs: the parts that can be counted exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workbench.assembly import build_engine
from workbench.cli import parse
from workbench.engine.heads import decoder
from workbench.engine.serving.publishing import Publisher
from workbench.estimates import _activation_bytes, estimate
from workbench.job import fitting
from workbench.parts.schedules import Clock
from workbench.planning import plan
from workbench.records import Case
from workbench.train import snapshot

FLAGS = ["--problems", "sums:terms=2,maximum=9", "--limit", "12", "--eval-problems", "2", "--batch", "4"]
FLAGS += ["--max-new-tokens", "12"]


def estimated(folder: Path, *flags: str):
    config = parse(["--model", str(folder), *FLAGS, *flags])
    planned = plan(config)
    engine = build_engine(config, planned)
    planned = fitting(engine, planned, config)
    return engine, planned, estimate(engine, planned, config.keep)


def test_memory_and_disk_are_sums_of_what_is_there(tiny_folder: Path, tmp_path) -> None:
    engine, planned, found = estimated(tiny_folder, "--adapter", "none", "--steps", "3")
    weights = sum(p.nbytes for p in engine.student.parameters())
    learning, writing = found.memory["learning"], found.memory["rollout"]
    assert (learning["weights"], learning["teacher"], learning["gradients"]) == (weights, weights, weights)
    assert learning["optimizer"] == writing["optimizer"] == 2 * weights
    prompt = len(engine.prompt(planned.recipe.student, Case(planned.train[0])).ids)
    assert writing["keys and values"] == 4 * (prompt + 12) * 2 * 2 * 32 * 4
    assert found.peak == max(sum(parts.values()) for parts in found.memory.values())
    for p in engine.parameters().values():
        p.grad = torch.zeros_like(p)
    engine.update(planned.recipe.at(Clock(0, 3)).optimizer)
    saved = snapshot.save(snapshot.Vault(tmp_path, "x"), engine, planned.recipe, 1, {})
    size = sum(path.stat().st_size for path in saved.iterdir())
    assert found.disk["one being written"] == pytest.approx(size, rel=0.2), "headers are much of so small a model"
    assert found.disk["checkpoints"] == 2 * found.disk["one being written"]
    assert found.disk["final/"] == weights
    ((steps, seconds),) = found.stages
    assert steps == 3
    assert set(seconds) == {"rollout", "score", "backward", "update"}
    assert min(seconds.values()) > 0


def test_an_adapter_trains_little_and_stages_are_named(tiny_folder: Path) -> None:
    engine, _, found = estimated(tiny_folder, "--adapter", "lora:r=4", "--stages", "sft:2", "opsd:3")
    trained = sum(p.nbytes for p in engine.parameters().values())
    assert found.memory["learning"]["gradients"] == trained
    assert "teacher" not in found.memory["learning"], "the base with the adapter off"
    assert found.disk["final/"] == trained, "the base stays where it was"
    assert [steps for steps, _ in found.stages] == [2, 3]
    assert [("rollout" in seconds) for _, seconds in found.stages] == [False, True]
    assert "2 of them; then about" in found.lines()[-1]


def test_servers_are_not_timed_and_their_weights_take_disk(tiny_folder: Path, tmp_path) -> None:
    for adapter, versions in (("none", 2), ("lora:r=4", 4)):
        engine, planned, _ = estimated(tiny_folder, "--adapter", adapter)
        found = estimate(engine, planned, 2, served=True)
        assert "rollouts were timed in this process, and servers will write them" in found.lines()[-1]
        publisher = Publisher(tmp_path / adapter, engine.student)
        folder = publisher.publish(engine.parameters().items(), 1)
        size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        assert found.disk["weights for servers"] == pytest.approx(versions * size, rel=0.2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_autograd_keeps(tiny, checkpointing) -> None:
    """Within a quarter, for a batch without padding."""
    engine = tiny(dtype=torch.float32, activation_checkpointing=checkpointing)
    parameters = {p.untyped_storage().data_ptr() for p in engine.student.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    alive = []  # or a freed address would come again
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (alive.append(x), pack(x))[1], lambda x: x):
        ids = torch.arange(200)[None]
        hidden = decoder(engine.student)(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    config = engine.student.config
    guess = 200 * _activation_bytes(config, engine.settings)
    if checkpointing:  # one layer at a time is computed again: the rest is a layer's input each
        guess -= 200 * _activation_bytes(config, tiny(dtype=torch.float32).settings) // config.num_hidden_layers
    assert guess == pytest.approx(sum(kept.values()), rel=0.25)
