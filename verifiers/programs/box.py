"""What judging asks of a jail: three ways to run a program, and how each came to its end.

Nothing here runs anything. The jail behind it compares nothing and knows no test: what comes back is plain data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Ended = Literal["returned", "raised", "timeout", "died", "limit", "protocol", "infra_error"]
"""How a run ended; `infra_error` says nothing about the program."""


@dataclass(frozen=True)
class Returned:
    """What one call gave back: plain data in the jail's own form, hostile until compared."""

    data: Any
    arguments: Any = ("none", None)
    """The arguments as the call left them, a sequence in the same form."""


@dataclass(frozen=True)
class Raised:
    """What one call raised instead; all three may be the program's invention."""

    name: str
    message: str = ""
    line: int | None = None


@dataclass(frozen=True)
class Ran:
    """One run."""

    ended: Ended
    level: str
    """The isolation it ran under."""
    values: tuple[Returned | Raised, ...] = ()
    """Of the calls that came to an end, in order."""
    stdout: str = ""
    exit_status: int | None = None
    passed: bool = False
    """Of a check: whether it ran to its end without an exception."""
    raised: Raised | None = None
    """What ended the run, where an exception did."""


class Box(Protocol):
    """A jail that is open."""

    def call(
        self, source: str, entry_point: str, arguments: tuple[tuple[Any, ...], ...], seconds: float, after: bool = False
    ) -> Ran:
        """Define the program once and call its entry point with each tuple of arguments; `after` reports those too."""
        ...

    def script(self, source: str, stdin: str, seconds: float) -> Ran:
        """Run the program as a script."""
        ...

    def check(self, source: str, entry_point: str, prompt: str, check: str, seconds: float) -> Ran:
        """Run `check(candidate)` in one jail while the program runs in another."""
        ...

    def equal(self, found: Any, expected: Any) -> bool:
        """Whether `Returned.data` equals plain data of ours, by the jail's policy of comparison."""
        ...

    def show(self, found: Any) -> str:
        """`Returned.data` for a person; never calls anything of the program's."""
        ...

    def stated(self, found: Any) -> str | None:
        """`Returned.data` as one text, the same for all data that is the same; None where it states nothing."""
        ...
