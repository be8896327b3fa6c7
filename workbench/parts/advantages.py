"""How good a rollout was beside its group. Runs over the problem's whole group, before any gate.

Rollouts that were not judged (score None) leave the mean and get advantage 0: not judged is not wrong.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from typing import Protocol

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
        centred = {}
        for author in {j.rollout.author for j in group}:
            scores = [j.verdict.score for j in group if j.rollout.author == author]
            judged = [s for s in scores if s is not None]
            mean = statistics.fmean(judged) if judged else 0.0
            spread = statistics.stdev(judged) + 1e-4 if self.normalised and len(judged) > 1 else 1.0
            centred[author] = (mean, spread)
        out = []
        for j in group:
            mean, spread = centred[j.rollout.author]
            score = j.verdict.score
            out.append(replace(j, advantage=0.0 if score is None else (score - mean) / spread))
        return out


group_centred = GroupCentred()
