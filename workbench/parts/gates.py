"""Which rollouts may teach. A gate maps one problem's group to a part of it; the empty list teaches nothing.

Gates are pure: they neither sample nor edit, applying one twice is applying it once, and the order of the group
does not matter. They run after advantages, since a baseline over survivors is a different estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from verifiers import consensus
from workbench.records import Author, Judged


class Gate(Protocol):
    """One problem's group -> the part of it that may teach."""

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """A sub-list of `group`."""
        ...


@dataclass(frozen=True)
class Correct:
    """Only completions the verifier found right (rejection sampling)."""

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """The right ones."""
        return [j for j in group if j.verdict.correct]


@dataclass(frozen=True)
class Consensus:
    """Majority answer or nothing, GATES (arXiv:2602.20574, section 3): no label is looked at.

    The rollouts of `author` vote with their extracted answers, equivalent answers counting as one. With at least
    `votes` for the most frequent answer the voters for it stay, and so do the rollouts of other authors; a tie at
    the top or fewer votes rejects the whole group.
    """

    votes: int = 4
    author: Author = "teacher"

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """The majority's rollouts and the other authors', or []."""
        voters = [j for j in group if j.rollout.author == self.author]
        vote = consensus([j.verdict.extracted for j in voters])
        if vote.majority is None or len(vote.members) < self.votes:
            return []
        chosen = {id(voters[i]) for i in vote.members}
        return [j for j in group if j.rollout.author != self.author or id(j) in chosen]
