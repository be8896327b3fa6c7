"""A whole model at work: HF `generate` and the engine's decoding on the same prompts."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from workbench.engine.engine import Engine, EngineSettings
from workbench.engine.loading import load
from workbench.parts.contexts import question_boxed
from workbench.parts.refresh import LIVE
from workbench.problems import STEP_BY_STEP, Sums
from workbench.records import Case, Problem, Request, Sampling


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
