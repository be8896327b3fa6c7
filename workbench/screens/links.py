"""Where a reader is, as a link to send: `?run=&rollout=&tok=&view=`. Names and numbers, never a path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from workbench.errors import UsageError, nearest
from workbench.text import printable

VIEWS = ("live", "compare", "runs", "rollouts", "train", "data")
"""The screens, as tab ids."""
LONGEST = 300
"""Characters a name in a link may have."""


@dataclass(frozen=True, order=True)
class RolloutKey:
    """Which rollout of a run: `step/problem/author/index`, as its row in rollouts.jsonl says. Ids may hold a slash."""

    step: int
    problem: str
    author: str
    index: int

    @property
    def text(self) -> str:
        """The key as it stands in a link."""
        return f"{self.step}/{self.problem}/{self.author}/{self.index}"

    @classmethod
    def of_row(cls, row: Mapping[str, object]) -> RolloutKey:
        """The key of a row of rollouts.jsonl; what is missing is empty or 0."""
        step, index = row.get("step"), row.get("index")
        numbers = [value if isinstance(value, int) else 0 for value in (step, index)]
        return cls(numbers[0], str(row.get("problem", "")), str(row.get("author", "")), numbers[1])

    @classmethod
    def parse(cls, text: str) -> RolloutKey:
        """The key that a link names. Raises UsageError."""
        found = re.fullmatch(r"([0-9]{1,9})/(.*)/([a-z_]{1,20})/([0-9]{1,9})", text, re.DOTALL)
        if found is None or len(text) > LONGEST:
            raise UsageError(
                f"'{printable(text[:60])}' names no rollout. A link says step/problem/author/index. Copy it again."
            )
        step, problem, author, index = found.groups()
        return cls(int(step), problem, author, int(index))


@dataclass(frozen=True)
class Link:
    """A place in the app; empty fields say nothing."""

    run: str = ""
    """A run's name. Beside a rollout written on Live: the run that other screens stay on, and no part of the link."""
    rollout: str = ""
    """`RolloutKey.text`, or the id of a rollout written on Live, which the app holds while it can."""
    tok: int | None = None
    """Position from 0 at the first completion token."""
    view: str = ""
    """One of `VIEWS`."""

    def __post_init__(self) -> None:
        """Refuse what no link of ours says. Raises UsageError."""
        check_run_name(self.run)
        if self.rollout and not self.live:
            RolloutKey.parse(self.rollout)
        if self.view and self.view not in VIEWS:
            raise UsageError(f"this link names no screen: '{printable(self.view[:60])}'. {nearest(self.view, VIEWS)}")
        if self.tok is not None and self.tok < 0:
            raise UsageError("this link names a token before the first. Positions count from 0.")

    @property
    def live(self) -> bool:
        """Whether it names a rollout that was written on the screen Live; `Store.name` makes such ids."""
        return re.fullmatch("live-[A-Za-z0-9_-]{12}", self.rollout) is not None

    @property
    def recorded(self) -> bool:
        """Whether it names a rollout of a run."""
        return bool(self.rollout) and not self.live

    @classmethod
    def parse(cls, params: Mapping[str, str]) -> Link:
        """The link of a page's query; other parameters are ignored. Raises UsageError."""
        token = params.get("tok", "")
        if token and not re.fullmatch("[0-9]{1,9}", token):
            raise UsageError(
                f"'{printable(token[:60])}' is no token's position. Positions count from 0. Copy it again."
            )
        texts = {name: params.get(name, "") for name in ("run", "rollout", "view")}
        return cls(**texts, tok=int(token) if token else None)

    @property
    def query(self) -> str:
        """`?run=...`, or nothing."""
        said = {"run": "" if self.live else self.run, "rollout": self.rollout, "tok": self.tok, "view": self.view}
        pairs = {name: str(value) for name, value in said.items() if value not in ("", None)}
        return f"?{urlencode(pairs)}" if pairs else ""


def check_run_name(name: str) -> None:
    """A run in a link is one directory's name. Raises UsageError for a path, an option or what cannot be read."""
    if name and not linkable(name):
        raise UsageError(
            f"'{printable(name[:60])}' names no run. A link names a run, never a path. Choose one on the screen Runs."
        )


def linkable(name: str) -> bool:
    """Whether a run's name can stand in a link; those that the commands make can."""
    return (
        bool(name)
        and name[0] not in ".-"
        and not re.search(r"[/\\]", name)
        and printable(name) == name
        and len(name) <= 100
    )
