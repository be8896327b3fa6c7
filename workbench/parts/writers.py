"""Who writes (pi_mix): which completions a step learns from.

A writer turns problems into rollouts through a `Completer`; it never scores them. The random draws of a rollout
depend on (seed, step, problem id, author, index) alone, so neither batch size nor a resume changes one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol

from workbench.errors import RecipeError
from workbench.parts.replay import Replay
from workbench.parts.schedules import Linear, Scalar
from workbench.records import Author, Completer, Context, Problem, Request, Rollout, Sampling, Told


@dataclass(frozen=True)
class Desk:
    """What a writer works with at one step."""

    generator: Completer
    student: Context
    teacher: Context | None
    sampling: Sampling
    seed: tuple[int, ...]
    """(run seed, step)."""
    stopped: Callable[[], bool]
    replay: Replay = field(default_factory=Replay)
    wrote: Told | None = None
    """Told of each rollout that is finished while others are still to be written."""

    def write(self, requests: Sequence[Request]) -> list[Rollout]:
        """One rollout a request, in order."""
        if self.wrote is None:
            return self.generator.generate(requests, self.sampling, self.stopped)
        return self.generator.generate(requests, self.sampling, self.stopped, self.wrote)

    def request(self, problem: Problem, author: Author, index: int) -> Request:
        """The request for one completion; a data set's text is read under the student's context."""
        context = self.teacher if author == "teacher" else self.student
        assert context is not None, "Recipe refuses a writing teacher without a context"
        return Request(problem, context, author, index, self.seed)

    def chance(self, name: str) -> random.Random:
        """Random numbers that depend on the run's seed, the step and `name` alone."""
        return random.Random(f"{self.seed}/{name}")


class Writer(Protocol):
    """Problems -> rollouts that know their author and how likely they were when written."""

    @property
    def remembers(self) -> int:
        """How many of the student's rollouts the run keeps for replay; 0 for most."""
        ...

    @property
    def mixes(self) -> bool:
        """Whether the teacher decodes beside the student, token by token."""
        ...

    @property
    def authors(self) -> frozenset[Author]:
        """Everybody who may appear as an author."""
        ...

    def draw(self, desk: Desk, problems: Sequence[Problem]) -> list[Rollout]:
        """Rollouts, grouped by problem in the order of `problems`."""
        ...

    def grouped(self, per_problem: int) -> Writer:
        """The same writer with another group size."""
        ...


@dataclass(frozen=True)
class _Sampler:
    per_problem: int = 1
    remembers: ClassVar[int] = 0
    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse an empty group. Raises RecipeError."""
        if self.per_problem < 1:
            raise RecipeError(f"{type(self).__name__}(per_problem={self.per_problem}): at least 1 rollout a problem.")

    @property
    def author(self) -> Author:
        """Whose completions these are."""
        return "student"

    @property
    def authors(self) -> frozenset[Author]:
        """The one author."""
        return frozenset({self.author})

    def draw(self, desk: Desk, problems: Sequence[Problem]) -> list[Rollout]:
        """`per_problem` samples each."""
        requests = [desk.request(p, self.author, k) for p in problems for k in range(self.per_problem)]
        return desk.write(requests)

    def grouped(self, per_problem: int) -> Writer:
        """The same writer with another group size."""
        return replace(self, per_problem=per_problem)


@dataclass(frozen=True)
class OnPolicy(_Sampler):
    """The student writes, under its own context; no further than `horizon` tokens where one is set.

    A rollout cut there has no end token and learns none: prefix distillation (Fast OPD, arXiv:2602.15260), with
    `Growing` as the paper's schedule. Evaluation keeps its own limit.
    """

    horizon: Scalar | None = None

    def draw(self, desk: Desk, problems: Sequence[Problem]) -> list[Rollout]:
        """`per_problem` samples each."""
        if self.horizon is None:
            return super().draw(desk, problems)
        assert isinstance(self.horizon, (int, float)), "Recipe.at has replaced schedules by numbers"
        room = max(1, min(desk.sampling.max_new_tokens, int(self.horizon)))
        return super().draw(replace(desk, sampling=replace(desk.sampling, max_new_tokens=room)), problems)


@dataclass(frozen=True)
class ByTeacher(_Sampler):
    """The teacher writes, under its privileged context."""

    @property
    def author(self) -> Author:
        """The teacher."""
        return "teacher"


@dataclass(frozen=True)
class FromDataset:
    """The data set's own worked solution is the completion; nothing is sampled."""

    remembers: ClassVar[int] = 0
    mixes: ClassVar[bool] = False

    @property
    def authors(self) -> frozenset[Author]:
        """The data set."""
        return frozenset({"dataset"})

    def draw(self, desk: Desk, problems: Sequence[Problem]) -> list[Rollout]:
        """One rollout a problem; raises InputError where a problem has no solution."""
        return desk.generator.transcribe([desk.request(p, "dataset", 0) for p in problems], desk.sampling)

    def grouped(self, per_problem: int) -> Writer:
        """There is one solution a problem. Raises RecipeError for more."""
        return _ungrouped(self, per_problem)


@dataclass(frozen=True)
class Together:
    """Every problem by each of the writers: GATES has eight tutor rollouts and eight of the student."""

    writers: tuple[Writer, ...]

    @property
    def remembers(self) -> int:
        """As many as the one that wants most."""
        return max((w.remembers for w in self.writers), default=0)

    @property
    def mixes(self) -> bool:
        """Whether any does."""
        return any(w.mixes for w in self.writers)

    @property
    def authors(self) -> frozenset[Author]:
        """Everybody."""
        return frozenset(author for w in self.writers for author in w.authors)

    def draw(self, desk: Desk, problems: Sequence[Problem]) -> list[Rollout]:
        """Problem by problem, writers in order."""
        drawn = [w.draw(desk, problems) for w in self.writers]
        return [r for p in problems for rollouts in drawn for r in rollouts if r.problem is p]

    def grouped(self, per_problem: int) -> Writer:
        """Each writer with this group size."""
        return replace(self, writers=tuple(w.grouped(per_problem) for w in self.writers))


@dataclass(frozen=True)
class Mixture:
    """By one author, drawn with the given shares, for each problem or for the whole batch.

    pi_mix of GKD (arXiv:2306.13649, eq. 2), which draws once a batch: `per="batch"`.
    """

    student: float = 0.0
    teacher: float = 0.0
    dataset: float = 0.0
    per: Literal["problem", "batch"] = "problem"
    remembers: ClassVar[int] = 0
    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse shares that are no distribution. Raises RecipeError."""
        total = self.student + self.teacher + self.dataset
        if min(self.student, self.teacher, self.dataset) < 0 or abs(total - 1.0) > 1e-9:
            raise RecipeError(
                f"pi_mix must sum to 1: student={self.student} + teacher={self.teacher} + dataset={self.dataset} "
                f"= {total}."
            )

    def _shares(self) -> list[tuple[Writer, float]]:
        return [(OnPolicy(), self.student), (ByTeacher(), self.teacher), (FromDataset(), self.dataset)]

    @property
    def authors(self) -> frozenset[Author]:
        """Those with a share."""
        return frozenset(a for writer, share in self._shares() if share > 0 for a in writer.authors)

    def draw(self, desk: Desk, problems: Sequence[Problem]) -> list[Rollout]:
        """One rollout a problem, its author drawn from (seed, step, problem)."""
        rollouts: dict[int, Rollout] = {}
        writers, shares = zip(*self._shares(), strict=True)
        keys = [p.id if self.per == "problem" else "batch" for p in problems]
        drawn = [random.Random(f"{desk.seed}/{key}").choices(range(3), shares)[0] for key in keys]
        for i, writer in enumerate(writers):
            chosen = [position for position, d in enumerate(drawn) if d == i]
            if chosen:
                written = writer.draw(desk, [problems[c] for c in chosen])
                rollouts.update(zip(chosen, written, strict=True))
        return [rollouts[i] for i in range(len(problems))]

    def grouped(self, per_problem: int) -> Writer:
        """One author a problem. Raises RecipeError for more."""
        return _ungrouped(self, per_problem)


@dataclass(frozen=True)
class TokenMixture(_Sampler):
    """Every token from teacher_share p_T + (1 - teacher_share) p_S. MiniLLM (arXiv:2306.08543, eq. 5), 0.2 there.

    The rollout is the student's, its log-probs are the mixture's: p_S / p_B corrects what the teacher put in. Needs
    a teacher that decodes beside the student.
    """

    teacher_share: float = 0.2
    mixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what is no mixture. Raises RecipeError."""
        super().__post_init__()
        if not 0.0 <= self.teacher_share <= 1.0:
            raise RecipeError(f"TokenMixture(teacher_share={self.teacher_share}): a share lies in [0, 1].")

    def draw(self, desk: Desk, problems: Sequence[Problem]) -> list[Rollout]:
        """`per_problem` samples each."""
        wanted = [desk.request(p, "student", k) for p in problems for k in range(self.per_problem)]
        mixed = [replace(r, teacher_share=self.teacher_share, teacher_context=desk.teacher) for r in wanted]
        return desk.write(mixed)


@dataclass(frozen=True)
class AdaptiveOffPolicy:
    """Data set, replayed or fresh text, a batch at a time. DistiLLM (arXiv:2402.03898, section 3.2).

    With u uniform in [0, 1): below `student` * `fresh`, or below `student` while the memory is not full, the student
    writes; otherwise below `student` the batch is drawn from memory; else it is the data set's. `student` is usually
    `ThresholdByValidation`, `fresh` falls along the run.
    """

    student: Scalar
    fresh: Scalar = field(default_factory=lambda: Linear(1.0, 0.0))
    remembers: int = 1000
    mixes: ClassVar[bool] = False

    @property
    def authors(self) -> frozenset[Author]:
        """The student and the data set."""
        return frozenset({"student", "dataset"})

    def draw(self, desk: Desk, problems: Sequence[Problem]) -> list[Rollout]:
        """One rollout a problem; replayed ones keep the problem they were written for."""
        assert isinstance(self.student, (int, float)), "Recipe.at has replaced schedules by numbers"
        assert isinstance(self.fresh, (int, float)), "Recipe.at has replaced schedules by numbers"
        chance = desk.chance("replay")
        u = chance.random()
        if u >= self.student:
            return FromDataset().draw(desk, problems)
        if u < self.student * self.fresh or len(desk.replay) < self.remembers:
            return OnPolicy().draw(desk, problems)
        return [desk.replay[chance.randrange(len(desk.replay))] for _ in problems]

    def grouped(self, per_problem: int) -> Writer:
        """One rollout a problem. Raises RecipeError for more."""
        return _ungrouped(self, per_problem)


@dataclass(frozen=True)
class Staged:
    """One writer, then another: which, `second` says with 0 or 1. PACED (arXiv:2603.11178): text, then rollouts."""

    writers: tuple[Writer, Writer]
    second: Scalar

    @property
    def remembers(self) -> int:
        """As many as the stage that wants most."""
        return max(w.remembers for w in self.writers)

    @property
    def mixes(self) -> bool:
        """Whether a stage does."""
        return any(w.mixes for w in self.writers)

    @property
    def authors(self) -> frozenset[Author]:
        """Those of both stages."""
        return frozenset(author for w in self.writers for author in w.authors)

    def draw(self, desk: Desk, problems: Sequence[Problem]) -> list[Rollout]:
        """The stage's."""
        assert isinstance(self.second, (int, float)), "Recipe.at has replaced schedules by numbers"
        return self.writers[int(self.second > 0)].draw(desk, problems)

    def grouped(self, per_problem: int) -> Writer:
        """Each stage with this group size."""
        first, second = (w.grouped(per_problem) for w in self.writers)
        return replace(self, writers=(first, second))


def _ungrouped(writer: Writer, per_problem: int) -> Writer:
    if per_problem != 1:
        raise RecipeError(
            f"{type(writer).__name__} writes one text a problem, so --group {per_problem} has no meaning. Leave it out."
        )
    return writer
