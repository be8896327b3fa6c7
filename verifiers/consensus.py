"""What several completions of one problem agree on, without knowing whether it is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verifiers.answers.equivalence import is_placeholder, judge
from verifiers.verdict import Behaviour


@dataclass(frozen=True)
class Vote:
    """The most frequent answer of a group.

    A tie at the top has no majority: the gate that asks for it should reject, not choose by spelling.
    """

    majority: str | Behaviour | None
    """The winning answer as its first voter wrote it, or what the winning programs do; None without voters and on a
    tie at the top."""
    members: tuple[int, ...]
    """Indexes of the votes that state the majority answer, in order; empty when there is none."""
    clusters: tuple[tuple[int, ...], ...]
    """Indexes of equivalent votes, largest cluster first, earlier first vote first among equals."""
    n_voters: int
    """Votes that hold an answer."""
    total: int
    """All votes, those without an answer too."""

    @property
    def agreement(self) -> float:
        """Share of all votes that state the majority answer; a vote without an answer counts as a dissent."""
        return len(self.members) / self.total if self.total else 0.0

    @property
    def tied(self) -> bool:
        """Whether two or more answers share the top."""
        return len(self.clusters) > 1 and len(self.clusters[0]) == len(self.clusters[1])


def consensus(answers: Sequence[str | Behaviour | None]) -> Vote:
    """Cluster answers by equivalence and find the majority.

    A vote joins the first cluster whose first member it is equivalent to, so a bare `5` and `5 cm` vote together
    while `5 cm` and `5 m` do not. Answers that cannot be compared vote alone. Programs vote with what they do, and
    never with an answer.

    Args:
        answers: one a completion (`Verdict.vote`), None or empty where there was none.

    Returns:
        The vote. Never raises on any text.
    """
    clusters: list[list[int]] = []
    n_voters = 0
    for index, answer in enumerate(answers):
        if answer is None or (isinstance(answer, str) and is_placeholder(answer)):
            continue
        n_voters += 1
        for cluster in clusters:
            if _agree(answers[cluster[0]], answer):
                cluster.append(index)
                break
        else:
            clusters.append([index])
    ordered = tuple(tuple(cluster) for cluster in sorted(clusters, key=lambda cluster: (-len(cluster), cluster[0])))
    won = bool(ordered) and (len(ordered) == 1 or len(ordered[0]) > len(ordered[1]))
    return Vote(
        majority=answers[ordered[0][0]] if won else None,
        members=ordered[0] if won else (),
        clusters=ordered,
        n_voters=n_voters,
        total=len(answers),
    )


def _agree(one: str | Behaviour | None, other: str | Behaviour) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one == other or judge(one, other).status == "correct"
    return one == other
