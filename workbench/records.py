"""The nouns of the workbench. Frozen: judging, gating and scoring wrap a record, nothing edits one.

Units and shapes stand in the field docstrings. Axes: n completion tokens, v vocabulary, h width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict

from verifiers import Verdict

if TYPE_CHECKING:
    from torch import Tensor

Author = Literal["student", "teacher", "dataset"]
Role = Literal["student", "teacher", "reference"]
"""`reference`: the initial student, or a third model, beside both (G-OPD); scored only where a recipe asks for it."""
Capability = Literal["text", "write", "logp", "entropies", "top_k", "named", "logits"]
"""What a teacher gives: texts it wrote; decoding of any prompt; log-probs of given tokens; entropies; the
likeliest entries with their rest; whole distributions."""
StopReason = Literal["stop", "length", "cancelled"]
"""`stop`: the completion ends with an end token of its author; `length`: it was cut; `cancelled`: the user stopped."""


class Message(TypedDict):
    """One turn of a chat, as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True)
class Problem:
    """One question, and everything that might be privileged about it."""

    id: str
    question: str
    answer: str | None = None
    """What a verifier compares with."""
    solution: str | None = None
    """A worked solution: privileged."""
    document: str | None = None
    """A source text: privileged."""
    demonstration: str | None = None
    """A worked example of the task: privileged."""
    feedback: str | None = None
    """What an earlier attempt was told: privileged."""
    tests: tuple[str, ...] = ()
    """For programs."""
    difficulty: str | None = None
    template_kwargs: tuple[tuple[str, str | bool], ...] = ()
    """Arguments for the chat template that belong to this problem, for both roles."""
    other: Problem | None = None
    """Another problem of the same set, matched in solution length: what the control contexts show instead."""


@dataclass(frozen=True)
class Rollout:
    """A completion: the text somebody wrote after a prompt."""

    problem: Problem
    author: Author
    tokens: tuple[int, ...]
    """Completion only, with its end token if it stopped."""
    text: str
    """The decoded completion without its end token."""
    logprobs: tuple[float, ...] | None
    """Nats, per token, under the temperature-scaled distribution of the author before top-p or top-k cut it;
    None: not sampled by us."""
    stop: StopReason
    weights_version: int = 0
    """Optimizer steps the author had seen."""
    index: int = 0
    """Which of the problem's rollouts this is, from 0."""

    def of(self, problem: Problem) -> Rollout:
        """The same with the run's own record of the problem: what another process wrote holds a copy of it."""
        return self if self.problem is problem else replace(self, problem=problem)


@dataclass(frozen=True)
class Judged:
    """A rollout with its verdict, and what the group made of it."""

    rollout: Rollout
    verdict: Verdict
    advantage: float = 0.0
    weight: float = 1.0
    """0: votes but does not teach (a probe)."""
    median_tokens: float | None = None
    """Median length of what its author drew for the problem, before any gate; None outside a step."""


@dataclass(frozen=True)
class Case:
    """What a context may look at. Before sampling only `problem` is set."""

    problem: Problem
    rollout: Rollout | None = None
    verdict: Verdict | None = None
    peers: tuple[Judged, ...] = ()
    """The rest of the group: a context may quote a successful sibling."""


class Context(Protocol):
    """Who sees what: a frozen dataclass or named function from a case to chat messages."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the `Problem` fields it shows; a dotted `other.solution` is the other problem's."""
        ...

    @property
    def thinking(self) -> bool | None:
        """What the chat template is told as `enable_thinking`; None says nothing."""
        ...

    def __call__(self, case: Case) -> list[Message]:
        """The chat that ends where the completion begins."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How a role writes. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing."""

    max_new_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Request:
    """One completion somebody wants: who writes, what they see, which of the group it is."""

    problem: Problem
    context: Context
    author: Author = "student"
    index: int = 0
    seed: tuple[int, ...] = (0,)
    """Everything the random draws of this completion depend on, beside the problem id and `index`."""
    teacher_share: float = 0.0
    """Above 0 every token is drawn from a mixture with the teacher, who reads `teacher_context`."""
    teacher_context: Context | None = None

    @property
    def writer(self) -> Literal["student", "teacher"]:
        """The role that writes it."""
        return "teacher" if self.author == "teacher" else "student"

    @property
    def key(self) -> bytes:
        """32 bytes that decide every random draw of this completion, and nothing else does."""
        text = f"{self.seed}/{self.problem.id}/{self.author}/{self.index}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


Told = Callable[[Rollout], None]
"""Somebody who is told of a rollout as soon as it is finished."""


class Completer(Protocol):
    """Something that turns requests into rollouts: the engine, whoever writes for it."""

    def generate(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stopped: Callable[[], bool] = ...,
        wrote: Told = ...,
    ) -> list[Rollout]:
        """One rollout a request, in the order asked; `stopped` is polled at every token.

        `wrote` is told of those that are finished while others are still to be written: the same objects.
        """
        ...

    def transcribe(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """Each problem's own solution as a rollout of the data set, cut at `sampling.max_new_tokens`."""
        ...


@dataclass(frozen=True)
class Wanted:
    """One completion as token ids: templates and tokenizers stay on our side, no text crosses."""

    prompt: tuple[int, ...]
    key: bytes
    """32 bytes that decide its random draws (`Request.key`): neither batch nor replica does."""


@dataclass(frozen=True)
class Sample:
    """What was written behind one prompt."""

    tokens: tuple[int, ...]
    """Completion only; the end token is included where there was one."""
    logprobs: tuple[float, ...]
    """Nats, one a token, under the temperature-scaled distribution before top-p or top-k cut it."""
    stop: StopReason
    versions: tuple[int, int]
    """Oldest and newest weights that wrote a token of it."""


class Generator(Protocol):
    """Whose weights write: a module of this process, or servers that are sent the weights."""

    version: int
    """Optimizer steps the weights that write have seen."""

    @property
    def gap(self) -> float:
        """How far what is served was from the learner when it was last compared, nats a token; 0: it is the learner."""
        ...

    def generate(
        self,
        wanted: Sequence[Wanted],
        sampling: Sampling,
        ends: frozenset[int],
        stopped: Callable[[], bool] = ...,
        wrote: Callable[[int, Sample], None] = ...,
    ) -> list[Sample]:
        """One sample for each wanted, in the order asked; any id of `ends` ends one.

        `wrote` is told the place and the sample of those that are finished while others are still to be written.
        When `stopped()` turns true every unfinished sample ends as `cancelled`.
        """
        ...

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Returns when everything that writes serves `version`, or raises. `weights` yields (HF name, whole tensor)."""
        ...

    mark: str
    """Tells these weights from others of the same version; new at every synchronisation."""

    def follow(self, version: int, mark: str) -> None:
        """Another process of the run has synchronised: ask for what it sent."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


@dataclass(frozen=True)
class TokenStats:
    """What is known about a chunk of n completion tokens without keeping the vocabulary. All detached, all (n,)."""

    ids: Tensor
    position: Tensor
    """From 0 at the first completion token of its rollout."""
    student_logp: Tensor
    """log p_S(y_t), nats."""
    teacher_logp: Tensor | None
    """log p_T(y_t), nats; None where no teacher scored."""
    behaviour: Tensor
    """log-prob of y_t under the sampler that wrote it, nats; NaN where it was not sampled by us."""
    advantage: Tensor
    student_entropy: Tensor | None = None
    """Nats; only where a part asks for it."""
    teacher_entropy: Tensor | None = None


@dataclass(frozen=True)
class Tokens:
    """`TokenStats` with both whole distributions: what a term sees on the generic path and in the reference."""

    stats: TokenStats
    student: Tensor
    """(n, v) log-probs, nats, with gradient."""
    teacher: Tensor | None
    """(n, v) log-probs, nats, without gradient."""


@dataclass(frozen=True)
class Refresh:
    """teacher <- (1 - rate) * teacher + rate * student after every `every`-th optimizer step; 0 never."""

    every: int
    rate: float
    external: bool = False
    """Another model teaches, whatever the student does."""

    def __post_init__(self) -> None:
        """Refuse what cannot mean anything. Raises ValueError."""
        if self.every < 0 or not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"Refresh(every={self.every}, rate={self.rate}): every >= 0 and 0 <= rate <= 1.")

    def due(self, step: int) -> bool:
        """Whether the teacher moves after optimizer step `step` (the first is 1)."""
        return self.every > 0 and step > 0 and step % self.every == 0
