"""An engine whose distributions are written down, so that a recipe's own plans, terms and reduction meet known ones.

Hidden states are logits and every head is the identity: what `train/` computes is real, what the models said is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verifiers import Status, Verdict
from workbench.divergence import Head, Scored
from workbench.engine.engine import EngineSettings
from workbench.engine.meter import Meter
from workbench.engine.ranks import ALONE
from workbench.parts.schedules import Clock, Memory
from workbench.recipe import Recipe
from workbench.records import Author, Judged, Problem, Rollout
from workbench.train.batches import Denominators, Entry
from workbench.train.objective import Signal, objective
from workbench.train.reading import planned

Rows = Sequence[Sequence[float]]

F3 = ((0.7, 0.2, 0.1),), ((0.3, 0.4, 0.3),)
"""One token: the teacher's distribution, the student's."""
S3 = (
    ((0.7, 0.15, 0.15), (0.1, 0.45, 0.45), (0.5, 0.25, 0.25)),
    ((0.3, 0.35, 0.35), (0.4, 0.3, 0.3), (0.25, 0.375, 0.375)),
)
"""Three tokens in a row, each the first entry, with the probabilities of the fixture."""


@dataclass(eq=False)
class Written:
    """One rollout, and what both models say at each of its tokens (probabilities)."""

    teacher: Rows
    student: Rows
    tokens: tuple[int, ...] | None = None
    author: Author = "student"
    behaviour: Sequence[float] | None = None
    """Probability of each token under whoever wrote it; None: the student as it is."""
    reference: Rows | None = None
    problem: str = "p"
    weight: float = 1.0
    status: Status = "unjudged"
    advantage: float = 0.0
    logits: Tensor = field(init=False)
    """(n, V) the student's, the leaf that gradients are read from."""

    def __post_init__(self) -> None:
        self.logits = torch.tensor(self.student, dtype=torch.float64).log().requires_grad_()
        self.tokens = self.tokens if self.tokens is not None else (0,) * len(self.student)

    def judged(self, index: int) -> Judged:
        wrote = self.behaviour or [row[t] for row, t in zip(self.student, self.tokens, strict=True)]
        logprobs = None if self.author == "dataset" else tuple(torch.tensor(wrote).double().log().tolist())
        if self.behaviour is None and logprobs is not None:
            logprobs = tuple(float(self.logits.detach()[i, t]) for i, t in enumerate(self.tokens))
        rollout = Rollout(Problem(self.problem, "?"), self.author, self.tokens, "", logprobs, "stop", index=index)
        return Judged(rollout, Verdict(self.status), self.advantage, self.weight)


class Board:
    """Scores by looking up; entry k has the prompt (k,) in every role. `scale` multiplies every role's logits."""

    def __init__(self, written: Sequence[Written], scale: float = 1.0, words: str = "abcdefgh") -> None:
        self.written, self.scale, self.words = written, scale, words
        self.settings, self.ranks, self.meter, self.external = EngineSettings(), ALONE, Meter(), None

    def entries(self) -> list[Entry]:
        return [Entry(w.judged(k), (k,), (k,)) for k, w in enumerate(self.written)]

    def score(self, role: str, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
        rows = []
        for (k,), completion in zip(prompts, completions, strict=True):
            said = self.written[k]
            given = said.teacher if role == "teacher" else said.reference
            rows.append(said.logits if role == "student" else torch.tensor(given, dtype=torch.float64).log())
            assert len(rows[-1]) == len(completion)
        return torch.cat(rows) * self.scale

    def head(self, role: str, temperature: float = 1.0) -> Head:
        return Head(torch.eye(len(self.written[0].student[0]), dtype=torch.float64), temperature=temperature)

    def teach(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        temperature: float,
        named: None = None,
    ):
        return Scored(self.score("teacher", prompts, completions), self.head("teacher", temperature))

    def token_text(self, token: int) -> str:
        return self.words[token]


@dataclass(frozen=True)
class Outcome:
    """What a step with the recipe comes to."""

    loss: float
    gradients: list[Tensor]
    """(n, V) of each rollout's logits."""
    entries: list[Entry]
    signal: Signal

    def advantages(self) -> list[float]:
        return [float(x) for e in self.entries for x in e.reading.advantage]

    def weights(self) -> list[float]:
        return [float(x) for e in self.entries for x in e.reading.weight]


def at_start(recipe: Recipe, total: int = 10_000, step: int = 0) -> Recipe:
    """With its schedules as numbers, nothing remembered."""
    return recipe.at(Clock(step, total), Memory())


def step(recipe: Recipe, *written: Written, tempered: float = 1.0, words: str = "abcdefgh") -> Outcome:
    """One step's loss and gradient through plans and objective.

    Distributions are those at the recipe's own temperature; `tempered` undoes one more, that of a transform.
    """
    now = at_start(recipe)
    board = Board(written, scale=now.temperature * tempered, words=words)
    kept = planned(now, board, board.entries())  # type: ignore[arg-type]
    loss, signal = objective(now, board, kept, Denominators.of(now, kept))  # type: ignore[arg-type]
    gradients = torch.autograd.grad(loss, [w.logits for w in written], allow_unused=True)
    filled = [torch.zeros_like(w.logits) if g is None else g for w, g in zip(written, gradients, strict=True)]
    return Outcome(float(loss.detach()), filled, kept, signal)
