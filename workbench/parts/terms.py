"""What is compared: the summands of a recipe's loss, per token and unreduced.

A term gives its value twice. Called with `Tokens` it is plain differentiable torch: the definition, the generic
path and what tests compare with. `part(weight)` describes the same summand to the divergence core, which forms the
gradient where the logits live if the description says how; a part that is only a `term` takes the generic path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch

from workbench.divergence import Divergence, Part, Transform
from workbench.parts.schedules import Scalar
from workbench.records import Author, Judged, Tokens, TokenStats

if TYPE_CHECKING:
    from torch import Tensor

Need = Literal["teacher", "behaviour", "advantage"]


@dataclass(frozen=True)
class Where:
    """Which rollouts a term applies to: those of `authors`."""

    authors: frozenset[Author]

    def __call__(self, judged: Judged) -> bool:
        """Whether the term counts this rollout."""
        return judged.rollout.author in self.authors

    def __repr__(self) -> str:
        """A phrase, as recipes print it."""
        return "anyone" if len(self.authors) == 3 else "by_" + "_or_".join(sorted(self.authors))


anyone = Where(frozenset({"student", "teacher", "dataset"}))
by_student = Where(frozenset({"student"}))
by_teacher = Where(frozenset({"teacher"}))


class Term(Protocol):
    """One summand: coef / N_k * sum_t w_t term(t), N_k the step's tokens the term applies to."""

    needs: ClassVar[frozenset[Need]]

    @property
    def coef(self) -> Scalar:
        """What the term's mean is multiplied by."""
        ...

    @property
    def where(self) -> Where:
        """Which rollouts it counts."""
        ...

    def __call__(self, tokens: Tokens) -> Tensor:
        """(n,) values, differentiable in `tokens.student`."""
        ...

    def part(self, weight: Tensor) -> Part:
        """The same summand, described to the divergence core."""
        ...


@dataclass(frozen=True)
class Distill:
    """D(p_T || p_S) at each token, over the whole vocabulary. The divergence says which way round.

    `transforms` change both distributions first, one after the other; their gains multiply the value.
    `token_clip` caps a token's value, and a capped token has no gradient (the reading of OPSD's clip that sums
    first); clipping per vocabulary entry is `EntryClipped`, a divergence.
    """

    divergence: Divergence
    coef: Scalar = 1.0
    where: Where = anyone
    transforms: tuple[Transform, ...] = ()
    token_clip: float | None = None
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})

    def __call__(self, tokens: Tokens) -> Tensor:
        """(n,) nats."""
        assert tokens.teacher is not None, "a recipe with this term has a teacher (checked when it is built)"
        teacher, student = tokens.teacher, tokens.student
        for transform in self.transforms:
            teacher, student = transform(teacher, student)
        value = self.divergence(teacher, student) * math.prod(t.gain for t in self.transforms)
        return value if self.token_clip is None else value.clamp(max=self.token_clip)

    def part(self, weight: Tensor) -> Part:
        """Generic with transforms: those change the vocabulary itself."""
        if self.transforms:
            return Part(weight=weight, term=self)
        return Part(weight=weight, divergence=self.divergence, token_clip=self.token_clip)


@dataclass(frozen=True)
class _Sampled:
    """-u_t log p_S(y_t) with a detached coefficient u_t: everything that looks at the sampled token alone."""

    coef: Scalar = 1.0
    where: Where = anyone
    needs: ClassVar[frozenset[Need]] = frozenset()

    def coefficient(self, stats: TokenStats) -> Tensor:
        """(n,) u_t, detached."""
        raise AssertionError("each kind says its own coefficient")

    def __call__(self, tokens: Tokens) -> Tensor:
        """(n,) values."""
        logp = tokens.student.gather(-1, tokens.stats.ids[:, None]).squeeze(-1)
        return -self.coefficient(replace(tokens.stats, student_logp=logp.detach())).detach() * logp

    def part(self, weight: Tensor) -> Part:
        """The fused form."""
        sampled: Callable[[TokenStats], Tensor] = self.coefficient
        return Part(weight=weight, sampled=sampled)


@dataclass(frozen=True)
class CrossEntropy(_Sampled):
    """-log p_S(y_t): learn the text as it stands."""

    def coefficient(self, stats: TokenStats) -> Tensor:
        """u_t = 1."""
        return torch.ones_like(stats.student_logp)


@dataclass(frozen=True)
class SampledReverseKL(_Sampled):
    """-A_t log p_S(y_t), A_t = sg[log p_T(y_t) - log p_S(y_t)]: reverse KL from the sampled token alone.

    Averaged over y_t ~ p_S its gradient is that of KL(p_S || p_T) exactly (OPSD's sampled-token variant, Thinking
    Machines' on-policy distillation). `clip` bounds A_t to [-clip, clip], as GATES does (its range is not
    published; 5 is our reconstruction).
    """

    clip: float | None = None
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})

    def coefficient(self, stats: TokenStats) -> Tensor:
        """u_t = A_t."""
        assert stats.teacher_logp is not None, "a recipe with this term has a teacher"
        advantage = stats.teacher_logp - stats.student_logp
        return advantage if self.clip is None else advantage.clamp(-self.clip, self.clip)


@dataclass(frozen=True)
class PolicyGradient(_Sampled):
    """-A log p_S(y_t) with the rollout's group advantage: REINFORCE on rollouts of the current weights."""

    where: Where = by_student
    needs: ClassVar[frozenset[Need]] = frozenset({"advantage"})

    def coefficient(self, stats: TokenStats) -> Tensor:
        """u_t = A of the rollout."""
        return stats.advantage
