"""What a judge says about one completion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Status = Literal["correct", "wrong", "unparsed", "no_answer", "truncated", "timeout", "error", "unjudged"]
"""The eight things that can happen; `STATUSES` lists them in the order reports print them."""

STATUSES: tuple[Status, ...] = get_args(Status)

LONGEST_REASON = 200
"""Characters of a verdict's reason."""

_JUDGED: frozenset[Status] = frozenset({"correct", "wrong", "unparsed", "no_answer", "truncated", "timeout"})


@dataclass(frozen=True)
class Behaviour:
    """What a program votes with: equal for programs that did the same on the same inputs."""

    digest: str


@dataclass(frozen=True)
class Verdict:
    """One judgement, complete enough to be shown, counted and stored.

    `correct` and `wrong` mean that an answer was read and compared. `unparsed`: an answer was marked but no
    comparison could read it. `no_answer`: nothing marked as an answer. `truncated`: the completion was cut before
    an answer. `timeout`: the comparison ran out of time (counts as not correct). `error`: the judge itself failed;
    `unjudged`: there is nothing to compare with. The last two say nothing about the completion, so their score is
    None and they leave every denominator.
    """

    status: Status
    extracted: str | None = None
    """The text taken for the answer, as written."""
    reason: str = ""
    """One line for a person: which rule decided."""
    level: str = "plain"
    """How it was decided: `plain` (exact forms, here), `worker` (many digits, in the killable process), or a jail level
    for programs."""
    feedback: str = ""
    """What its writer may be told, for programs: free of hidden tests, capped, neutral. Empty where all is right."""

    behaviour: str | None = None
    """For programs: digest of what it did on the visible inputs, empty where that states nothing; None: no program."""

    @property
    def vote(self) -> str | Behaviour | None:
        """What `consensus` counts: the answer as written, or what a program does; None where it has no vote."""
        if self.behaviour is None:
            return self.extracted
        return Behaviour(self.behaviour) if self.behaviour else None

    @property
    def score(self) -> float | None:
        """1.0 or 0.0; None where the completion was not judged, which is not zero and is counted apart."""
        if self.status not in _JUDGED:
            return None
        return 1.0 if self.status == "correct" else 0.0

    @property
    def correct(self) -> bool:
        """Whether the answer was judged right."""
        return self.status == "correct"


def one_line(reason: str) -> str:
    """A reason that can be printed: it may quote what a model wrote."""
    shown = "".join(sign if sign.isprintable() else " " for sign in reason[: 4 * LONGEST_REASON])
    return shown if len(shown) <= LONGEST_REASON else f"{shown[: LONGEST_REASON - 3]}..."
