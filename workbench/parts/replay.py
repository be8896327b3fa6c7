"""Rollouts that are learnt from again: a bounded memory of the newest, part of the run's state."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench.records import Problem, Rollout


class Replay:
    """The newest rollouts of the student, oldest first; the oldest goes when it is full.

    Rollouts keep the log-probs and the weights they were written with, so that staleness can be measured.
    """

    def __init__(self, kept: Iterable[Rollout] = ()) -> None:
        """Empty, or what a checkpoint held."""
        self._kept: deque[Rollout] = deque(kept)

    def __len__(self) -> int:
        """Rollouts at hand."""
        return len(self._kept)

    def __getitem__(self, index: int) -> Rollout:
        """The rollout at `index`, 0 the oldest."""
        return self._kept[index]

    def admit(self, rollouts: Sequence[Rollout], capacity: int) -> None:
        """Take up the non-empty ones; keep the newest `capacity`."""
        self._kept.extend(r for r in rollouts if r.tokens)
        while len(self._kept) > capacity:
            self._kept.popleft()

    def state_dict(self) -> list[dict[str, Any]]:
        """Plain JSON, a row a rollout; the problem by its id."""
        names = ("author", "tokens", "text", "logprobs", "stop", "weights_version", "index")
        return [{"problem": r.problem.id, **{name: getattr(r, name) for name in names}} for r in self._kept]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], problems: Sequence[Problem]) -> Replay:
        """What `state_dict` gave; rollouts of problems the run no longer has are left out."""
        known = {p.id: p for p in problems}
        return cls(
            Rollout(
                **{
                    **row,
                    "problem": known[row["problem"]],
                    "tokens": tuple(row["tokens"]),
                    "logprobs": None if row["logprobs"] is None else tuple(row["logprobs"]),
                }
            )
            for row in rows
            if row["problem"] in known
        )
