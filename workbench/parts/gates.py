"""Which rollouts may teach. A gate maps one problem's group to a part of it; the empty list teaches nothing.

Gates are pure: they neither sample nor edit, applying one twice is applying it once, and the order of the group
does not matter. They run after advantages, since a baseline over survivors is a different estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from verifiers import consensus
from workbench.errors import RecipeError
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
class Mixed:
    """Groups in which the verifier found both right and wrong; others have nothing to compare. DAPO (arXiv:2503.14476).

    The filter of its dynamic sampling. The paper draws other problems until the batch is full again; here the step is
    as much smaller.
    """

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """All or []."""
        return list(group) if len({s for j in group if (s := j.verdict.score) is not None}) > 1 else []


@dataclass(frozen=True)
class Consensus:
    """Majority answer or nothing, GATES (arXiv:2602.20574, section 3): no label is looked at.

    The rollouts of `author` vote with their extracted answers, equivalent answers counting as one, or, where they are
    programs, with what these do on the inputs of the visible tests (`verifiers.programs.behaviour`). With at least
    `votes` for the most frequent answer the voters for it stay, and so do the rollouts of other authors; a tie at
    the top or fewer votes rejects the whole group.
    """

    votes: int = 4
    author: Author = "teacher"

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """The majority's rollouts and the other authors', or []."""
        voters = [j for j in group if j.rollout.author == self.author]
        vote = consensus([j.verdict.vote for j in voters])
        if vote.majority is None or len(vote.members) < self.votes:
            return []
        chosen = {id(voters[i]) for i in vote.members}
        return [j for j in group if j.rollout.author != self.author or id(j) in chosen]


@dataclass(frozen=True)
class TeacherReliable:
    """The teacher teaches where it was seen to be right. TGOPD (arXiv:2609.02998): 2 of 3 verified probes.

    Probes are the teacher's own rollouts of the problem, judged like any other; what nobody judged was not verified.
    At `share` of them right or above, the group stays as it is; below, and without probes, nothing of it teaches. How
    sure the teacher is says little (AUROC 0.51 on code, 0.73 on maths in the paper), so no confidence is asked.
    Probes stay in the group: terms that count the student's rollouts alone leave them out.
    """

    share: float = 2 / 3

    def __post_init__(self) -> None:
        """Refuse what is always open. Raises RecipeError."""
        if not 0.0 < self.share <= 1.0:
            raise RecipeError(f"TeacherReliable(share={self.share}) opens always or never. A share lies in (0, 1].")

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """All or []."""
        probes = [j for j in group if j.rollout.author == "teacher"]
        right = sum(j.verdict.correct for j in probes)
        return list(group) if probes and right >= self.share * len(probes) - 1e-9 else []


@dataclass(frozen=True)
class Shorter:
    """Right, and shorter than the median of its group (per author, counted over all that was drawn, right or wrong).

    The median is that of the group before any gate (`Judged.median_tokens`), so that gates in a row agree on it.
    """

    def __call__(self, group: list[Judged]) -> list[Judged]:
        """The short right ones."""
        return [j for j in group if j.verdict.correct and len(j.rollout.tokens) < _median(j)]


def _median(judged: Judged) -> float:
    assert judged.median_tokens is not None, "`by_problem` sets it for every group"
    return judged.median_tokens
