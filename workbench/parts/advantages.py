"""How good a rollout was beside its group. Runs over the problem's whole group, before any gate.

Rollouts that were not judged (score None) leave the mean and get advantage 0: not judged is not wrong.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from workbench.errors import RecipeError
from workbench.records import Judged


class Advantage(Protocol):
    """One problem's group -> the same group with advantages set."""

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """The group in the same order."""
        ...


@dataclass(frozen=True)
class GroupCentred:
    """A_i = r_i - mean(r), optionally / (std(r) + 1e-4) with the unbiased std, per author.

    `normalised=True` is GRPO as TRL 1.16 computes it; `False` is Dr. GRPO (arXiv:2503.20783, eq. 3).
    """

    normalised: bool = False

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """Centre each author's rollouts on their own mean."""
        return _centred(group, lambda j: j.verdict.score, self.normalised)


def _centred(group: list[Judged], reward: Callable[[Judged], float | None], normalised: bool) -> list[Judged]:
    centred = {}
    for author in {j.rollout.author for j in group}:
        judged = [r for j in group if j.rollout.author == author and (r := reward(j)) is not None]
        mean = statistics.fmean(judged) if judged else 0.0
        spread = statistics.stdev(judged) + 1e-4 if normalised and len(judged) > 1 else 1.0
        centred[author] = (mean, spread)
    out = []
    for j in group:
        mean, spread = centred[j.rollout.author]
        own = reward(j)
        out.append(replace(j, advantage=0.0 if own is None else (own - mean) / spread))
    return out


@dataclass(frozen=True)
class SoftOverlong:
    """`GroupCentred` over r_i - weight p_i, where p_i is what a completion of n tokens pays for its length.

    p = 0 up to limit - cache, (n - (limit - cache)) / cache up to the limit, 1 beyond: DAPO's soft overlong punishment
    (arXiv:2503.14476). Its rewards are 1 and -1, ours 1 and 0, hence half of its p.
    """

    limit: int = 512
    cache: int = 128
    weight: float = 0.5
    normalised: bool = True

    def __post_init__(self) -> None:
        """Refuse a slope that has no room. Raises RecipeError."""
        if not 0 < self.cache <= self.limit:
            raise RecipeError(
                f"SoftOverlong(limit={self.limit}, cache={self.cache}) has no length from which it grows. "
                "Use a cache from 1 to the limit, and the limit of sampling.max_new_tokens."
            )

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """Centre each author's rollouts on their own mean, after their lengths are paid for."""
        return _centred(group, self._reward, self.normalised)

    def _reward(self, judged: Judged) -> float | None:
        score, over = judged.verdict.score, len(judged.rollout.tokens) - (self.limit - self.cache)
        return None if score is None else score - self.weight * min(1.0, max(0.0, over / self.cache))


@dataclass(frozen=True)
class LeaveOneOut:
    """A_i = r_i - mean of the other judged rollouts of its author. RLOO (arXiv:2402.14740).

    n / (n - 1) times the centred one: a baseline that does not hold the rollout itself leaves the gradient unbiased.
    A rollout without others has no baseline and advantage 0.
    """

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """Each against the rest of its author's."""
        out = []
        for j in group:
            judged = [s for o in group if o.rollout.author == j.rollout.author and (s := o.verdict.score) is not None]
            score = j.verdict.score
            if score is None or len(judged) < 2:
                out.append(replace(j, advantage=0.0))
            else:
                others = (sum(judged) - score) / (len(judged) - 1)
                out.append(replace(j, advantage=score - others))
        return out


@dataclass(frozen=True)
class NoBaseline:
    """A_i = r_i: the score itself, as REINFORCE has it. Right rollouts are learnt from, others are not."""

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """The scores; 0 where nobody judged."""
        return [replace(j, advantage=j.verdict.score or 0.0) for j in group]


@dataclass(frozen=True)
class LengthPenalised:
    """The group's advantage of a reward that counts tokens. L1 / LCPO (arXiv:2503.04697), at one target for all.

    With n tokens, right answers 1[c] and a = `per_token`:

        "exact":  r = 1[c] - a |n - target|                        wrong rollouts too learn to keep to the target
        "max":    r = 1[c] clip(a (target - n) + 1/2, 0, 1)        only right ones are rewarded, shorter ones more

    Then as GRPO: (r - mean) / (std + 1e-4) over its author's judged rollouts (`normalised`), or centred alone. The
    paper draws the target a problem and tells the model; here nobody tells it. `per_token` is the paper's 0.0003 for
    chains of up to 4,096 tokens; shorter ones need more of it. Raises RecipeError for what is no penalty.
    """

    target: int
    per_token: float = 0.0003
    form: Literal["exact", "max"] = "exact"
    normalised: bool = True

    def __post_init__(self) -> None:
        """Refuse what would reward length. Raises RecipeError."""
        if self.target < 0 or not self.per_token > 0 or self.form not in ("exact", "max"):
            raise RecipeError(f"{self!r} is no length penalty. Use target >= 0, per_token > 0, form exact or max.")

    def reward(self, judged: Judged) -> float | None:
        """What one rollout earns; None where nobody judged it."""
        score, over = judged.verdict.score, len(judged.rollout.tokens) - self.target
        if score is None:
            return None
        if self.form == "exact":
            return score - self.per_token * abs(over)
        return score * min(max(0.5 - self.per_token * over, 0.0), 1.0)

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """Each against its author's."""
        return _centred(group, self.reward, self.normalised)


group_centred = GroupCentred()
leave_one_out = LeaveOneOut()
no_baseline = NoBaseline()
