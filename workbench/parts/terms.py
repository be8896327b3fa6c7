"""What is compared: the summands of a recipe's loss, per token and unreduced.

A term gives its value twice. Called with `Tokens` it is plain differentiable torch: the definition, the generic
path and what tests compare with. `part(weight)` describes the same summand to the divergence core, which forms the
gradient where the logits live if the description says how; a part that is only a `term` takes the generic path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch

from workbench.divergence import Divergence, Part, TopK, Transform
from workbench.errors import RecipeError
from workbench.parts.schedules import Scalar
from workbench.parts.weights import TokenWeight
from workbench.records import Author, Judged, Tokens, TokenStats

if TYPE_CHECKING:
    from torch import Tensor

Need = Literal["teacher", "teacher_logp", "behaviour", "advantage"]
"""`teacher`: its whole distribution; `teacher_logp`: only how likely it finds the token that was written."""


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
by_dataset = Where(frozenset({"dataset"}))


class Term(Protocol):
    """One summand: coef / N_k * sum_t w_t term(t), N_k the step's tokens the term applies to."""

    @property
    def needs(self) -> frozenset[Need]:
        """What must be known of a token."""
        ...

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
    token_weight: TokenWeight | None = None
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
            return Part(weight=weight, term=self, gate=self.token_weight)
        return Part(weight=weight, divergence=self.divergence, token_clip=self.token_clip, gate=self.token_weight)


def on_support(terms: Sequence[Term]) -> tuple[tuple[Term, ...], TopK | None]:
    """The terms without the one `TopK` through which all that compare look, and it; or as given.

    A comparison on some entries is one with a teacher that says no more (`SparseTeacher`): the student's gradient takes
    the fused loop, and a teacher that knows those entries is enough. Those of the teacher are in a cache of as many;
    those of the student have to be named to a teacher that answers.
    """
    looking = [term for term in terms if term.part(torch.ones(1)).sampled is None]
    seen = {term.transforms if isinstance(term, Distill) else () for term in looking}
    if len(seen) != 1 or len(only := seen.pop()) != 1 or not isinstance(only[0], TopK):
        return tuple(terms), None
    return tuple(replace(t, transforms=()) if isinstance(t, Distill) else t for t in terms), only[0]


@dataclass(frozen=True)
class _Sampled:
    """-u_t log p_S(y_t) with a detached coefficient u_t: everything that looks at the sampled token alone.

    The gradient is what is meant; the value shown is the surrogate's.
    """

    coef: Scalar = 1.0
    where: Where = anyone
    token_weight: TokenWeight | None = None
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
        return Part(weight=weight, sampled=sampled, gate=self.token_weight)


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
    Machines' on-policy distillation): k1 as a reward, k2 as a loss. `clip` bounds A_t to [-clip, clip], as GATES does
    (its range is not published; 5 is our reconstruction).
    """

    clip: float | None = None
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher_logp"})

    def coefficient(self, stats: TokenStats) -> Tensor:
        """u_t = A_t."""
        assert stats.teacher_logp is not None, "a recipe with this term has a teacher"
        advantage = stats.teacher_logp - stats.student_logp
        return advantage if self.clip is None else advantage.clamp(-self.clip, self.clip)


@dataclass(frozen=True)
class SampledKL(_Sampled):
    """An estimator of KL(p_S || p_T) from the sampled token, used as a loss. Named by the gradient it really has.

    With d = log p_S - log p_T at y_t ~ p_S: "k2" = d^2 / 2 has, on average, the gradient of the *reverse* KL;
    "k3" = e^-d - 1 + d has that of the *forward* KL. "k1" = d has gradient zero on average and is refused: as a reward
    it is `SampledReverseKL`. Schulman's note on approximating KL; all three follow from E[grad log p_S] = 0.
    """

    estimator: Literal["k2", "k3"] = "k2"
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher_logp"})

    def __post_init__(self) -> None:
        """Refuse what cannot teach. Raises RecipeError."""
        if isinstance(self.coef, str):
            raise RecipeError(
                f"SampledKL({self.coef!r}): the first argument is the coefficient, a number. "
                f"Write SampledKL(estimator={self.coef!r})."
            )
        if self.estimator not in ("k2", "k3"):
            raise RecipeError(
                f"SampledKL(estimator={self.estimator!r}): as a loss k1 has gradient zero on average, and no other "
                "name is known. Use k2 (reverse KL's gradient), k3 (forward KL's), or SampledReverseKL: k1 as reward."
            )

    def coefficient(self, stats: TokenStats) -> Tensor:
        """u_t = log p_T - log p_S for k2, p_T / p_S - 1 for k3."""
        assert stats.teacher_logp is not None, "a recipe with this term has a teacher"
        ratio = stats.teacher_logp - stats.student_logp
        return ratio if self.estimator == "k2" else torch.expm1(ratio)


@dataclass(frozen=True)
class PolicyGradient(_Sampled):
    """-A_t log p_S(y_t): REINFORCE with the rollout's advantage, or the one a plan gave the token.

    `correction` answers that somebody else wrote the token, rho = p_S(y_t) / p_B(y_t), p_B the behaviour's:
    "none" takes rho as 1; "importance" multiplies by rho, cut at `ceiling` (token-level importance sampling; Thinking
    Machines without ceiling, G-OPD at 5); "clipped" is PPO's max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), without
    gradient where the clip binds; there `ceiling` is what bounds A < 0 (TRL's delta). `clip_above` is another bound
    upwards (DAPO, 0.28); None: `clip`.
    With `teacher_weight` w the ratio is taken against p_B^(1 - w) p_T^w, and so towards the teacher (RLAD,
    arXiv:2602.22495): 0 is the behaviour alone.
    """

    where: Where = by_student
    correction: Literal["none", "importance", "clipped"] = "none"
    clip: float = 0.2
    ceiling: float = math.inf
    clip_above: float | None = None
    teacher_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a ratio that nobody reads. Raises RecipeError."""
        if not 0.0 <= self.teacher_weight <= 1.0 or (self.teacher_weight and self.correction == "none"):
            raise RecipeError(
                f"PolicyGradient(teacher_weight={self.teacher_weight}, correction={self.correction!r}): a weight lies "
                "in [0, 1] and is a part of the ratio. Use correction='clipped' or 'importance'."
            )

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        """The writer's log-probs where rho counts, and the teacher's where it is a part of it."""
        ratio: set[Need] = {"advantage"} if self.correction == "none" else {"advantage", "behaviour"}
        return frozenset(ratio | {"teacher_logp"} if self.teacher_weight else ratio)

    def coefficient(self, stats: TokenStats) -> Tensor:
        """u_t = A_t, times rho where it counts."""
        if self.correction == "none":
            return stats.advantage
        ratio = (stats.student_logp - self._against(stats)).exp()
        if self.correction == "importance":
            return stats.advantage * ratio.clamp(max=self.ceiling)
        above = self.clip if self.clip_above is None else self.clip_above
        below = (ratio < 1.0 - self.clip) | (ratio > self.ceiling)
        outside = torch.where(stats.advantage > 0, ratio > 1.0 + above, below)
        return stats.advantage * ratio * ~outside

    def _against(self, stats: TokenStats) -> Tensor:
        """What rho is divided by: log of p_B^(1 - w) p_T^w."""
        if not self.teacher_weight:
            return stats.behaviour
        assert stats.teacher_logp is not None, "a recipe with this term has a teacher"
        return torch.lerp(stats.behaviour, stats.teacher_logp.to(stats.behaviour), self.teacher_weight)
