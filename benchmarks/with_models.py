"""A whole model at work: HF `generate` and the engine's decoding on the same prompts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from verifiers import Verdict
from workbench.divergence import JSD
from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.loading import load
from workbench.parts.contexts import question_boxed
from workbench.parts.refresh import FROZEN, LIVE
from workbench.parts.schedules import Clock
from workbench.parts.terms import Distill
from workbench.parts.writers import OnPolicy
from workbench.problems import STEP_BY_STEP, Sums
from workbench.recipe import Optimizer, Recipe
from workbench.records import Case, Message, Problem, Request, Rollout, Sampling
from workbench.train.step import State, train_step


def problems(count: int) -> list[Problem]:
    """Sums of 2, 3, ... numbers: every question is longer than the one before."""
    return [Sums(terms=i + 2, maximum=300, wording=STEP_BY_STEP).problems(1, 0)[0][0] for i in range(count)]


class Decode:
    """Greedy completions by `Engine.generate`."""

    def __init__(self, model: str, count: int, tokens: int) -> None:
        loaded = load(model, dtype=torch.float32)
        self.engine = Engine(loaded, adapter=None, refresh=LIVE, settings=EngineSettings())
        self.problems, self.tokens = problems(count), tokens
        self.out: list[list[int]] = []

    def run(self) -> None:
        requests = [Request(problem, question_boxed) for problem in self.problems]
        rollouts = self.engine.generate(requests, Sampling(max_new_tokens=self.tokens, temperature=0.0))
        self.out = [list(rollout.tokens) for rollout in rollouts]

    def facts(self) -> dict[str, Any]:
        return {"tokens": self.out, "prompts": [len(prompt) for prompt in self.prompts]}

    @cached_property
    def prompts(self) -> list[tuple[int, ...]]:
        return [self.engine.prompt(question_boxed, Case(problem)).ids for problem in self.problems]


class Generate(Decode):
    """The same by HF `generate`: one batch, padded on the left, ending at the same tokens."""

    def run(self) -> None:
        width = max(map(len, self.prompts))
        ids = torch.zeros(len(self.prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(self.prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        model, stop = self.engine.student, sorted(self.engine.stop_ids)
        model.eval()
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=self.tokens,
            eos_token_id=stop,
            pad_token_id=stop[0],
        )
        self.out = [self._cut(row, set(stop)) for row in out[:, width:].tolist()]

    @staticmethod
    def _cut(row: list[int], stop: set[int]) -> list[int]:
        ends = [i for i, token in enumerate(row) if token in stop]
        return row[: ends[0] + 1] if ends else row


@dataclass(frozen=True)
class Below:
    """The question, and below it the solution: what SDFT's teacher reads."""

    needs: frozenset[str] = frozenset({"question", "solution"})
    required: frozenset[str] = frozenset({"question", "solution"})
    thinking: bool | None = None

    def missing(self, case: Case) -> tuple[str, ...]:
        return () if case.problem.solution else ("solution",)

    def __call__(self, case: Case) -> list[Message]:
        (message,) = question_boxed(case)
        return [Message(role="user", content=f"{message['content']}\n\n{case.problem.solution}")]


def recipe(tokens: int, count: int, group: int) -> Recipe:
    """JSD over the whole vocabulary, a frozen teacher, the mean over each sequence: what `with_sdft` is set to."""
    return Recipe(
        name="step",
        paper="none",
        student=question_boxed,
        teacher=Below(),
        refresh=FROZEN,
        rollouts=OnPolicy(group),
        terms=(Distill(JSD(0.5)),),
        reduction="sequence",
        sampling=Sampling(max_new_tokens=tokens, temperature=1.0, top_k=1),
        optimizer=Optimizer(lr=0.0, max_grad_norm=1.0),
        batch=count,
    )


class Step:
    """A whole step: rollouts, teacher, student, update."""

    def __init__(self, model: str, count: int, tokens: int, group: int = 1) -> None:
        loaded = load(model, dtype=torch.float32)
        engine = Engine(loaded, adapter=None, refresh=FROZEN, settings=EngineSettings())
        self.state, self.problems = State(engine, Clock(0, 1000)), problems(count)
        self.recipe = recipe(tokens, count, group)
        self.out: list[list[int]] = []
        self.loss = 0.0

    def run(self) -> None:
        rollouts: list[Rollout] = []

        def verify(rollout: Rollout) -> Verdict:
            rollouts.append(rollout)
            return Verdict("unjudged")

        report = train_step(self.recipe, self.state, self.problems, verify)
        assert report is not None
        self.out, self.loss = [list(r.tokens) for r in rollouts], report.divergence[0]  # nats a token

    def facts(self) -> dict[str, Any]:
        return {"loss": self.loss, "tokens": self.out}


def work(model: str, count: int) -> dict[str, Any]:
    """The same prompts for `with_sdft`."""
    loaded = load(model, dtype=torch.float32)
    engine = Engine(loaded, adapter=None, refresh=LIVE, settings=EngineSettings())
    asked = problems(count)
    return {
        "model": loaded.source,
        "stop": sorted(engine.stop_ids),
        "prompts": [question_boxed(Case(problem)) for problem in asked],
        "privileged": [problem.solution for problem in asked],
    }
