"""What a run will need, before it starts: memory and disk by arithmetic, time from a small piece of each phase."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from verifiers import Verdict
from workbench.divergence.layouts import CPU_CHUNK, GPU_TILE_BYTES
from workbench.engine.engine import Engine
from workbench.engine.export import stays_apart
from workbench.engine.heads import base_model
from workbench.engine.machine import Machine, measured
from workbench.engine.meter import Shape
from workbench.engine.packed import packed_bytes
from workbench.engine.replicas import held_bytes
from workbench.engine.roles import Copy
from workbench.engine.serving.generator import KEPT
from workbench.parts.contexts import question
from workbench.parts.schedules import Clock
from workbench.parts.terms import CrossEntropy
from workbench.parts.writers import FromDataset
from workbench.planning import Plan
from workbench.recipe import Recipe
from workbench.recording import resident_bytes
from workbench.records import Author, Case, Judged, Request, Rollout
from workbench.train.accounts import UPDATE_TRAFFIC
from workbench.train.batches import Denominators, entries
from workbench.train.interrupts import amount
from workbench.train.objective import objective
from workbench.train.reading import planned as planned_readings
from workbench.train.reporting import duration

_TOKENS = 256
"""Padded tokens of the piece that is learnt from to time a step."""
_WRITTEN = 8
"""Tokens written to time decoding, behind the first."""
_SAMPLING = 28
"""Bytes a row and entry of the vocabulary while a token is drawn: logits, log-probs, their sum in float64."""

Parts = dict[str, int]
"""Bytes by what they are for."""


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds. Memory is a sum of named parts, so that one can see what to save on."""

    memory: dict[str, Parts]
    """Phase -> what is held while it lasts, at most."""
    disk: Parts
    stages: tuple[tuple[int, dict[str, float]], ...]
    """(steps, seconds of one by phase) of each recipe that runs."""
    served: bool = False
    """Whether servers will write in the run."""

    @property
    def peak(self) -> int:
        """Bytes of the phase that needs most."""
        return max(sum(parts.values()) for parts in self.memory.values())

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(steps * sum(phases.values()) for steps, phases in self.stages)

    def lines(self) -> list[str]:
        """For a person; time comes last."""
        worst = max(self.memory, key=lambda phase: sum(self.memory[phase].values()))
        parts = ", ".join(f"{name} {amount(size)}" for name, size in self.memory[worst].items())
        others = ", ".join(f"{phase} {amount(sum(p.values()))}" for phase, p in self.memory.items() if phase != worst)
        disk = ", ".join(f"{name} {amount(size)}" for name, size in self.disk.items())
        apart = "; rollouts were timed in this process, and servers will write them" if self.served else ""
        return [
            f"memory         about {amount(self.peak)} in {worst}: {parts}",
            f"               less in {others}",
            f"disk           about {amount(sum(self.disk.values()))}: {disk}",
            f"time           {'; then '.join(map(self._time, self.stages))}; {duration(self.seconds)} for all, "
            f"evaluations apart{apart}",
        ]

    @staticmethod
    def _time(stage: tuple[int, dict[str, float]]) -> str:
        steps, phases = stage
        each = ", ".join(f"{name} {duration(seconds)}" for name, seconds in phases.items())
        return f"about {duration(sum(phases.values()))} a step ({each}), {steps} of them"


def estimate(engine: Engine, planned: Plan, keep: int, served: bool = False) -> Estimate:
    """Look at the model's shape, time a small piece of each phase, and multiply.

    `served`: servers will write, but none is asked to here; the weights they are sent are on the disk.
    """
    machine = measured(engine.student, engine.settings.device)
    methods = planned.recipe.methods
    found = [_memory(engine, planned, method.at(Clock(0, planned.steps))) for method in methods]
    memory = {phase: max((parts[phase] for parts in found), key=lambda p: sum(p.values())) for phase in found[0]}
    steps = getattr(planned.recipe, "lengths", (planned.steps,))
    times = (_seconds(engine, planned, method.at(Clock(0, planned.steps)), machine) for method in methods)
    disk = _disk(engine, planned, keep) | (_sent_bytes(engine) if served else {})
    return Estimate(memory, disk, tuple(zip(steps, times, strict=True)), served)


# -- memory and disk -----------------------------------------------------------------------------------------------


def _memory(engine: Engine, planned: Plan, recipe: Recipe) -> dict[str, Parts]:
    """Phase -> parts, for one recipe."""
    shape, config = Shape.of(engine.student), base_model(engine.student).config.get_text_config()
    trained = held_bytes(engine.parameters().values())
    student, other_model = list(base_model(engine.student).parameters()), _teacher_weights(engine)
    weights, teacher = held_bytes(student), held_bytes(other_model)
    held = {"weights": weights, "teacher": teacher, "program": max(0, resident_bytes() - weights - teacher)}
    prompt, other = _prompts(engine, planned, recipe)
    wide = max(prompt, other) + recipe.sampling.max_new_tokens
    rows = min(engine.settings.decode_rows, recipe.completions)
    positions = rows * (prompt + recipe.sampling.max_new_tokens)
    moments = {"optimizer": 2 * trained}
    writing = {
        "gathered weights": _whole_bytes([*student, *other_model]) - weights - teacher,
        "keys and values": positions * sum(a.cached for a in shape.attention),
        "packed weights": packed_bytes(base_model(engine.student)),
        "sampling": rows * config.vocab_size * _SAMPLING,
    }
    tokens = min(engine.settings.micro_tokens, recipe.completions * wide)
    ends = {id(p): p for p in (engine.head("student").weight, base_model(engine.student).get_input_embeddings().weight)}
    learning = {
        "gathered weights": _whole_bytes(ends.values()) - held_bytes(ends.values()),
        "gradients": trained,
        "activations": max(tokens, wide) * _activation_bytes(config, engine.settings),
        "head": _head_bytes(engine, recipe, config.vocab_size),
    }
    phases = {"rollout": writing | moments, "learning": learning | moments, "update": {"gradients": trained} | moments}
    return {phase: {k: v for k, v in (held | parts).items() if v} for phase, parts in phases.items()}


def _teacher_weights(engine: Engine) -> list[torch.Tensor]:
    """Of a second module."""
    if engine.external is not None and engine.external.recorded:
        return []
    if engine.external is None and not isinstance(engine.teacher, Copy):
        return []
    with engine.running("teacher") as other:
        return list(other.parameters())


def _whole_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of all ranks together."""
    return sum(t.nbytes for t in tensors)


def _head_bytes(engine: Engine, recipe: Recipe, vocabulary: int) -> int:
    """The tiles of both roles, and the head's gradient as the loss forms it, beside the embedding's."""
    head = engine.head("student").weight
    tile = 4 * CPU_CHUNK * vocabulary if engine.settings.device.type == "cpu" else GPU_TILE_BYTES // 2
    return (1 + recipe.needs_teacher) * tile + (2 * 4 * head.numel() if head.requires_grad else 0)


def _activation_bytes(config: Any, settings: Any) -> int:
    """Per token, what a layer keeps for its backward pass: norms, residuals, q, k, v, four of the MLP's width."""
    width = 4 if settings.device.type == "cpu" else 2
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", heads) * (config.hidden_size // heads)
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    a_layer = width * (8 * config.hidden_size + 2 * keys + 4 * inner)
    if settings.activation_checkpointing:
        return int(width * config.hidden_size * (config.num_hidden_layers + 2) + a_layer)  # the last norm keeps two
    return int(a_layer * config.num_hidden_layers)


def _disk(engine: Engine, planned: Plan, keep: int) -> Parts:
    """Checkpoints: weights and two moments each, and one more while it is written; then final/: a model or adapter."""
    trained = _whole_bytes(engine.parameters().values())
    moving = any(method.refresh.every > 0 and method.refresh.rate < 1 for method in planned.recipe.methods)
    final = trained if stays_apart(engine) else _whole_bytes(base_model(engine.student).parameters())
    a_checkpoint = 3 * trained + (_whole_bytes(_teacher_weights(engine)) if moving else 0)
    saved = max(keep, 2) if planned.steps else 0
    return {"checkpoints": saved * a_checkpoint, "one being written": a_checkpoint, "final/": final}


def _sent_bytes(engine: Engine) -> Parts:
    """What servers load: the versions that stay and the next; of a whole model a tied head is written out."""
    sent = _whole_bytes(engine.parameters().values())
    if engine.adapter is None and base_model(engine.student).config.get_text_config().tie_word_embeddings:
        sent += _whole_bytes([engine.head("student").weight])
    return {"weights for servers": (1 + (KEPT if engine.adapter else 1)) * sent}


# -- time ----------------------------------------------------------------------------------------------------------


def _seconds(engine: Engine, planned: Plan, recipe: Recipe, machine: Machine) -> dict[str, float]:
    """Phase -> seconds of a step whose completions all take the room they have."""
    n, room = recipe.completions, recipe.sampling.max_new_tokens
    found = {}
    authors: list[Author] = [a for a in ("student", "teacher") if a in recipe.rollouts.authors]
    writers = [a for a in authors if a == "student" or engine.external is None or not engine.external.recorded]
    if writers:
        rows = min(engine.settings.decode_rows, n)
        first, more = (_written(engine, planned, recipe, writers[0], rows, 1 + k * _WRITTEN) for k in (0, 1))
        found["rollout"] = math.ceil(n / rows) * (first + max(0.0, more - first) / _WRITTEN * (room - 1))
    score, backward, share = _learnt(engine, planned, recipe, authors)
    found |= {"score": score * share, "backward": backward * share}
    found["update"] = UPDATE_TRAFFIC * held_bytes(engine.parameters().values()) / machine.bytes
    return found


def _written(engine: Engine, planned: Plan, recipe: Recipe, author: Author, rows: int, tokens: int) -> float:
    """Seconds of writing `tokens` tokens in each of `rows` rows."""
    context = recipe.teacher if author == "teacher" and recipe.teacher is not None else recipe.student
    problems = planned.train
    requests = [Request(problems[i % len(problems)], context, author, i) for i in range(rows)]
    return _took(lambda: engine.generate(requests, replace(recipe.sampling, max_new_tokens=tokens)), engine)


def _learnt(engine: Engine, planned: Plan, recipe: Recipe, authors: list[Author]) -> tuple[float, float, float]:
    """(seconds of scoring, of the backward pass, and how many such pieces a step is)."""
    if engine.external is not None and engine.external.recorded:  # what it does not know it cannot score
        recipe = Recipe(name="text", paper="-", terms=(CrossEntropy(),), student=question, rollouts=FromDataset(),
                        sampling=recipe.sampling)  # fmt: skip
        authors = ["dataset"]
    room = recipe.sampling.max_new_tokens
    wide = max(_prompts(engine, planned, recipe)) + room
    n = max(1, min(_TOKENS // wide, recipe.completions))
    judged = []
    for i in range(n):
        problem = planned.train[i % len(planned.train)]
        ids = engine.prompt(recipe.student, Case(problem)).ids
        tokens = tuple((ids * (room // len(ids) + 1))[:room])
        for author in authors or ["dataset"]:
            logprobs = (-1.0,) * room
            rollout = Rollout(problem, author, tokens, "", logprobs, "length", index=i)
            judged.append(Judged(rollout, Verdict("correct"), advantage=1.0))
    kept = entries(engine, recipe, [[j] for j in judged])[:n]
    if not kept:
        return 0.0, 0.0, 0.0
    losses: list[torch.Tensor] = []

    def score() -> None:
        read = planned_readings(recipe, engine, kept)
        losses.append(objective(recipe, engine, read, Denominators.of(recipe, read))[0])

    def backward() -> None:
        losses[-1].backward()  # type: ignore[no-untyped-call]

    for _ in range(2):  # the first time pays for fresh memory
        took = _took(score, engine), _took(backward, engine)
    engine.updates.forget()
    return *took, recipe.completions / len(kept)


def _took(work: Callable[[], object], engine: Engine) -> float:
    start = time.perf_counter()
    work()
    if engine.settings.device.type == "cuda":
        torch.cuda.synchronize(engine.settings.device)
    return time.perf_counter() - start


def _prompts(engine: Engine, planned: Plan, recipe: Recipe) -> tuple[int, int]:
    """Tokens of the first problem's prompt, as the student and as the teacher read it (0: none does)."""
    case = Case(planned.train[0])
    student = len(engine.prompt(recipe.student, case).ids)
    asked = recipe.teacher if recipe.needs_teacher and engine.sees("teacher") else None
    return student, 0 if asked is None else len(engine.prompt(asked, case, "teacher").ids)
