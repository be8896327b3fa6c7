"""What a model can do on held-out problems, and how far the student is from its teacher there."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import verifiers
from verifiers import Status, Verdict
from workbench.divergence import Options, Part, ReverseKL, Scored, fused_loss
from workbench.engine.engine import Engine
from workbench.engine.generating import never
from workbench.errors import InputError, JudgingError
from workbench.parts.writers import Desk
from workbench.recipe import Recipe
from workbench.records import Author, Context, Judged, Problem, Request, Rollout, Sampling
from workbench.train.batches import Entry, entries, micro_batches, token_rows
from workbench.train.gathering import problem_ids, shortest
from workbench.train.intervals import Arm, Scores, pass_at_k
from workbench.train.judging import judge_all

Verifier = Callable[[Rollout], Verdict]


@dataclass(frozen=True)
class Asked:
    """One way of asking: the student before, under the teacher's instruction, with its privileged view, after."""

    name: str
    context: Context
    samples: int = 1
    """Completions a problem; more than one needs a temperature."""
    author: Author = "student"
    """Whose weights answer."""


def tests_digest(tests: Sequence[str]) -> str | None:
    """What tells a problem's tests from others; None where it has none."""
    return hashlib.sha256("\0".join(tests).encode("utf-8", "surrogatepass")).hexdigest()[:16] if tests else None


@dataclass(frozen=True)
class Answer:
    """One judged completion, as eval.jsonl keeps it."""

    problem: str
    index: int
    status: Status
    score: float | None
    tokens: int
    stop: str
    text: str
    extracted: str | None
    gold: str | None = None
    tests: str | None = None
    """Digest of the tests that judged a program: judged again it is by these and no others."""

    @classmethod
    def of(cls, rollout: Rollout, verdict: Verdict) -> Answer:
        """From what was written and what was said about it."""
        return cls(
            rollout.problem.id,
            rollout.index,
            verdict.status,
            verdict.score,
            len(rollout.tokens),
            rollout.stop,
            rollout.text,
            verdict.extracted,
            rollout.problem.answer,
            tests_digest(rollout.problem.tests),
        )


@dataclass(frozen=True)
class Evaluation:
    """The held-out set at one moment: a line of a run's evaluations.jsonl."""

    when: str
    arms: tuple[ArmResult, ...]
    divergence: Scores | None

    def as_row(self) -> dict[str, Any]:
        """For the file."""
        arms = [{"name": a.name, "answers": [vars(x) for x in a.answers]} for a in self.arms]
        return {"when": self.when, "arms": arms, "divergence": self.divergence}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Evaluation:
        """What `as_row` wrote."""
        arms = tuple(ArmResult(a["name"], tuple(Answer(**x) for x in a["answers"])) for a in row["arms"])
        return cls(row["when"], arms, row["divergence"])


@dataclass(frozen=True)
class ArmResult:
    """What came back, problem by problem."""

    name: str
    answers: tuple[Answer, ...]

    @property
    def scores(self) -> Scores:
        """Problem id -> 1, 0 or None a rollout."""
        return self.by_problem(lambda a: a.score)

    @property
    def tokens(self) -> Scores:
        """Problem id -> completion tokens a rollout, end token included."""
        return self.by_problem(lambda a: float(a.tokens))

    def by_problem(self, value: Callable[[Answer], float | None]) -> dict[str, list[float | None]]:
        """Problem id -> any number of each answer."""
        out: dict[str, list[float | None]] = {}
        for answer in self.answers:
            out.setdefault(answer.problem, []).append(value(answer))
        return out

    @property
    def arm(self) -> Arm:
        """The row of the table: counts, accuracy and tokens with their intervals."""
        verdicts: dict[str, list[Verdict]] = {}
        lengths: dict[str, list[int]] = {}
        for answer in self.answers:
            verdicts.setdefault(answer.problem, []).append(Verdict(answer.status))
            lengths.setdefault(answer.problem, []).append(answer.tokens)
        return Arm.of(self.name, verdicts, lengths)

    def pass_at(self, k: int) -> float | None:
        """Unbiased pass@k, averaged over the problems with at least k judged rollouts; None where there is none."""
        judged = [[s for s in scores if s is not None] for scores in self.scores.values()]
        values = [pass_at_k(len(s), sum(x == 1.0 for x in s), k) for s in judged if len(s) >= k]
        return sum(values) / len(values) if values else None


def verify_with(profile: str) -> Verifier:
    """The judge of a rollout under a profile. It raises JudgingError where the sandbox's level no longer holds."""

    def verify(rollout: Rollout) -> Verdict:
        try:
            return verifiers.verify(rollout.problem, rollout.text, truncated=rollout.stop != "stop", profile=profile)
        except verifiers.SandboxRefused as refusal:
            raise JudgingError(
                f"programs can no longer be run in isolation. {refusal} Mend it and go on from where it stopped."
            ) from refusal

    return verify


def evaluate(
    engine: Engine,
    problems: Sequence[Problem],
    asked: Asked,
    sampling: Sampling,
    verify: Verifier,
    stopped: Callable[[], bool] = never,
) -> ArmResult | None:
    """Ask the weights of `asked.author` every problem under its context; None when stopped midway.

    Greedy unless `sampling` has a temperature. The draws depend on (problem, index) alone, so two arms and two
    checkpoints are compared on the same luck.
    """
    requests = [Request(p, asked.context, asked.author, k, (0, -2)) for p in problems for k in range(asked.samples)]
    rollouts = engine.generate(requests, sampling, stopped)
    if stopped():
        return None
    return ArmResult(
        asked.name, tuple(Answer.of(j.rollout, j.verdict) for j in judge_all(engine.ranks, verify, rollouts))
    )


class HeldOutDivergence:
    """How far the student is from its *initial* teacher, on rollouts recorded before training.

    Both sides of the comparison see the same text and the same teacher, so the difference is paired. The teacher is
    kept as its hidden states with its head (exact, and small beside logits): later refreshes do not move the ruler.
    """

    def __init__(
        self, engine: Engine, recipe: Recipe, problems: Sequence[Problem], stopped: Callable[[], bool]
    ) -> None:
        """Sample one rollout a problem under the student's context and record what the teacher makes of it."""
        self._engine = engine
        self._recipe = replace(recipe, gates=(), token_weight=None)
        self.divergence = headline(recipe)
        found = entries(
            engine, self._recipe, [[Judged(r, Verdict("unjudged"))] for r in self._rollouts(problems, stopped)]
        )
        external = engine.external
        if external is not None and external.recorded:
            found = [e for e in found if external.knows(e.teacher_prompt or (), e.tokens)]
        self._entries = found
        own = [found[i] for i in engine.ranks.places(problem_ids(found))]
        self._batches = engine.ranks.level(micro_batches(own, engine.settings.micro_tokens), shortest(found))
        with torch.no_grad():
            self._teacher = [
                engine.teach([e.teacher_prompt or () for e in batch], [e.tokens for e in batch], self._temperature)
                for batch, _ in self._batches
            ]
            # It will move, or be split among ranks again: keep the head as it is now, once.
            if (recipe.refresh.every > 0 or engine.ranks.strategy == "fsdp2") and self._teacher and external is None:
                head = engine.head("teacher", self._temperature)
                head = replace(head, weight=head.weight.detach().clone())
                self._teacher = [Scored(t.hidden, head) for t in self._teacher if isinstance(t, Scored)]

    def _rollouts(self, problems: Sequence[Problem], stopped: Callable[[], bool]) -> list[Rollout]:
        """One a problem by the student; by the recipe's own authors where the teacher knows theirs alone."""
        engine, recipe = self._engine, self._recipe
        if engine.external is not None and engine.external.recorded and not engine.external.anew:
            desk = Desk(engine, recipe.student, recipe.teacher, recipe.sampling, (0, -3), stopped)
            found: list[Rollout] = []
            for problem in problems:
                with contextlib.suppress(InputError):  # a cache need not hold every held-out problem
                    found += recipe.rollouts.draw(desk, [problem])
            return found
        requests = [Request(p, recipe.student, "student", 0, (0, -3)) for p in problems]
        return engine.generate(requests, recipe.sampling, stopped)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to compare on."""
        return not self._entries

    @property
    def _temperature(self) -> float:
        return self._recipe.temperature

    def _states(self, batch: Sequence[Entry]) -> torch.Tensor:
        return self._engine.score("student", [e.student_prompt for e in batch], [e.tokens for e in batch])

    @torch.no_grad()
    def measure(self) -> Scores:
        """Problem id -> mean nat/token of its rollout."""
        out: dict[str, list[float | None]] = {}
        means = self._engine.ranks.spread(problem_ids(self._entries), self._means)
        for entry, mean in zip(self._entries, means, strict=True):
            out.setdefault(entry.judged.rollout.problem.id, []).append(mean)
        return out

    def _means(self, places: Sequence[int]) -> list[float]:
        """Of this rank's entries."""
        found: dict[int, float] = {}
        for (batch, counted), teacher in zip(self._batches, self._teacher, strict=True):
            rows = token_rows(batch, self._engine.settings.device)
            weight = torch.ones_like(rows.behaviour)
            part = Part(weight=weight, divergence=self.divergence)
            with self._engine.meter.counting(counted):
                states = self._states(batch)  # before the head: there it is whole where tensors are split among ranks
            scored = Scored(states, self._engine.head("student", self._temperature))
            values = fused_loss(scored, teacher, rows, [part], Options(grad=False)).values[0]
            pieces = torch.split(values, [len(e.tokens) for e in batch])
            found |= {id(e): float(piece.mean()) for e, piece in zip(batch, pieces, strict=True) if counted}
        return [found[id(self._entries[i])] for i in places]


def headline(recipe: Recipe) -> Any:
    """The divergence a recipe is judged by: that of its first full-vocabulary term, unclipped, else reverse KL."""
    for term in recipe.terms:
        divergence = getattr(term, "divergence", None)
        if divergence is not None:
            return getattr(divergence, "unclipped", divergence)
    return ReverseKL()
