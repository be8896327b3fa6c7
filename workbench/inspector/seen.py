"""What both roles thought of a completion, token by token: the record that every view, file and measure reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from verifiers import Verdict
from workbench.records import Author, StopReason

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Source = Literal["live", "recorded", "recomputed"]
"""Where the numbers come from: made while the rollout was written; by the training step that learnt from it; or now,
by a model that may have moved since."""

COUNTED = "counted"
"""The reason of a token that the loss sees; every other reason says in words what kept it out or cut it."""


@dataclass(frozen=True)
class Alternative:
    """One entry of the vocabulary that either role ranks high. Nats; NaN: that role's number is not known."""

    token: int
    text: str
    student_logp: float
    teacher_logp: float
    written: bool
    """Whether it is the token that stands in the completion."""


@dataclass(frozen=True, eq=False)
class Tops:
    """The K likeliest entries of each role at n tokens. Arrays are (n, K), nats; ids are -1 where fewer are known.

    `*_other` is what the other role says of the same entries; `*_tail` (n,) is the log of what a role gives to
    everything outside its own K.
    """

    student_ids: Ints
    student_logp: Floats
    student_other: Floats
    student_tail: Floats
    teacher_ids: Ints
    teacher_logp: Floats
    teacher_other: Floats
    teacher_tail: Floats

    def take(self, rows: slice) -> Tops:
        """Some of the tokens."""
        return Tops(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})


@dataclass(frozen=True, eq=False)
class Seen:
    """A completion of n tokens as both roles saw it. Floats are (n,), nats; NaN where nothing is known.

    Every number is the training loss's own, made by the functions that training calls: `loss` summed over the tokens
    of all kept rollouts of a step is the loss of that step. Positions count from 0 at the first completion token; a
    piece of a rollout that is still being written begins at `start`.
    """

    problem: str
    """The problem's id."""
    token_ids: tuple[int, ...]
    text: tuple[str, ...]
    """What each token adds to the decoded text: joined they are the completion. A token that only begins a character
    adds nothing, the one that ends it adds the character."""
    student_logp: Floats
    """log p_S(y_t)."""
    teacher_logp: Floats
    """log p_T(y_t)."""
    forward_kl: Floats
    """KL(teacher || student)."""
    reverse_kl: Floats
    """KL(student || teacher)."""
    jsd: Floats
    """JSD with equal weights."""
    student_entropy: Floats
    teacher_entropy: Floats
    student_rank: Ints
    """0: the likeliest; -1 where not known."""
    teacher_rank: Ints
    weight: Floats
    """What the first term counts the token for beside the others: 1 an ordinary token, 0 not in the loss."""
    why: tuple[str, ...]
    """`COUNTED`, or what kept the token out or cut it: 'gated by Correct', 'skipped: first 10', 'clipped', ..."""
    terms: tuple[str, ...] = ()
    """The recipe's terms, named as in metrics.jsonl."""
    values: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """(K, n): each term's value at each token, before weights."""
    weights: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """(K, n): what each value counts for in the loss, denominators included."""
    tops: Tops | None = None
    """None where a run recorded the tokens alone."""
    pieces: Mapping[int, str] = field(default_factory=dict)
    """The text of every entry of the vocabulary that `tops` and `token_ids` name, alone."""
    start: int = 0
    student_prompt: tuple[int, ...] = ()
    teacher_prompt: tuple[int, ...] = ()
    prompts: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """The student's and the teacher's prompt, token by token as text, special tokens visible."""
    run: str = ""
    rollout: str = ""
    """Its name inside the run: `step/problem/author/index`."""
    step: int = 0
    index: int = 0
    author: Author = "student"
    stop: StopReason = "stop"
    recipe: str = ""
    source: Source = "recomputed"
    verdict: Verdict | None = None
    question: str = ""
    answer: str | None = None
    solution: str | None = None

    def __len__(self) -> int:
        """Tokens."""
        return len(self.token_ids)

    @property
    def difference(self) -> Floats:
        """(n,) log p_T(y_t) - log p_S(y_t), nats: above 0 the teacher says more."""
        return self.teacher_logp - self.student_logp

    @property
    def loss(self) -> Floats:
        """(n,) what each token adds to the loss: sum_k w_kt value_kt. What counts for 0 adds 0, known or not."""
        return (
            np.where(self.weights != 0, self.weights * self.values, 0.0).sum(0) if self.terms else np.zeros(len(self))
        )

    @property
    def divergence(self) -> Floats:
        """(n,) the first term's value, nats: the column of the step line."""
        return self.values[0] if len(self.terms) else self.reverse_kl

    @property
    def completion(self) -> str:
        """The whole text."""
        return "".join(self.text)

    def alternatives(self, t: int) -> tuple[Alternative, ...]:
        """Both roles' top entries at token t, one line an entry, the teacher's order first; empty without `tops`."""
        if self.tops is None:
            return ()
        tops, found = self.tops, {}
        for k, other, role in (
            ("teacher_ids", "teacher_other", "teacher"),
            ("student_ids", "student_other", "student"),
        ):
            for i, token in enumerate(getattr(tops, k)[t].tolist()):
                if token < 0 or token in found:
                    continue
                own, across = float(getattr(tops, f"{role}_logp")[t, i]), float(getattr(tops, other)[t, i])
                student, teacher = (across, own) if role == "teacher" else (own, across)
                found[token] = Alternative(
                    token, self.pieces.get(token, ""), student, teacher, token == self.token_ids[t]
                )
        return tuple(found.values())

    def rest(self, t: int) -> tuple[float, float]:
        """(student, teacher): log of what each role gives to everything that `alternatives` does not list."""
        listed = self.alternatives(t)
        return tuple(_log_rest([getattr(a, f"{role}_logp") for a in listed]) for role in ("student", "teacher"))  # type: ignore[return-value]

    def take(self, rows: slice) -> Seen:
        """Some consecutive tokens, in their place."""
        first = rows.indices(len(self))[0]
        columns = {
            name: getattr(self, name)[rows]
            for name in (
                "token_ids", "text", "student_logp", "teacher_logp", "forward_kl", "reverse_kl", "jsd",
                "student_entropy", "teacher_entropy", "student_rank", "teacher_rank", "weight", "why",
            )
        }  # fmt: skip
        return replace(
            self,
            **columns,
            values=self.values[:, rows],
            weights=self.weights[:, rows],
            tops=None if self.tops is None else self.tops.take(rows),
            start=self.start + first,
        )


def _log_rest(logps: Sequence[float]) -> float:
    rest = 1.0 - math.fsum(math.exp(x) for x in logps if not math.isnan(x))
    return math.log(rest) if rest > 0 else -math.inf
