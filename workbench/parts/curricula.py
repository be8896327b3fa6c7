"""Which problems come next. Pure: the batch is a function of the seed and of how many problems went before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from workbench.records import Problem


class Curriculum(Protocol):
    """The order in which problems are met; resuming at `cursor` meets the same ones."""

    def batch(self, problems: Sequence[Problem], n: int, cursor: int, seed: int) -> list[Problem]:
        """The `n` problems after the first `cursor`."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """A fresh permutation an epoch, from (seed, epoch).

    A batch across an epoch's end holds no problem twice unless it is larger than the set.
    """

    def batch(self, problems: Sequence[Problem], n: int, cursor: int, seed: int) -> list[Problem]:
        """The `n` problems after the first `cursor`; raises ValueError for an empty set."""
        if not problems:
            raise ValueError("no problems to draw from.")
        out: list[Problem] = []
        for position in range(cursor, cursor + n):
            epoch, offset = divmod(position, len(problems))
            out.append(problems[self._order(len(problems), epoch, seed)[offset]])
        return _distinct_first(out, problems) if n <= len(problems) else out

    @staticmethod
    def _order(size: int, epoch: int, seed: int) -> list[int]:
        order = list(range(size))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        return order


def _distinct_first(batch: list[Problem], problems: Sequence[Problem]) -> list[Problem]:
    """Replace a repeat inside the batch by the first problem of the set that is not in it."""
    seen: set[str] = set()
    spare = iter([p for p in problems if p.id not in {b.id for b in batch}])
    out = []
    for problem in batch:
        chosen = next(spare, problem) if problem.id in seen else problem
        seen.add(chosen.id)
        out.append(chosen)
    return out
