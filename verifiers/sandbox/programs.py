"""What may be run in a jail, what bounds it, and what came of it: plain frozen data, no judgement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from verifiers.sandbox.data import Data

Ended = Literal["returned", "raised", "timeout", "died", "limit", "protocol", "infra_error"]
"""How a run ended. `infra_error` says nothing about the program: it was not judged."""


@dataclass(frozen=True)
class Calls:
    """Load a source, then call one function of it once per tuple of arguments, in order, in one process."""

    source: str
    entry_point: str
    arguments: tuple[tuple[Any, ...], ...]
    """Plain data. Every call receives its own copy."""


@dataclass(frozen=True)
class Script:
    """Run a source as a main program, with real descriptors as its standard streams."""

    source: str
    stdin: str = ""


@dataclass(frozen=True)
class Checked:
    """Run a check in a second jail, where `candidate` (and the entry point's name) is a stub for the source's function.

    `prompt` is loaded before the check for the helpers it defines; one that is no Python is left out. A check that
    defines `check` has it called with the candidate. One that never calls the candidate does not pass.
    """

    source: str
    prompt: str
    check: str
    entry_point: str


Program = Calls | Script | Checked


@dataclass(frozen=True)
class Limits:
    """What one run may use."""

    seconds: float = 5.0
    """Wall clock, from the moment a jail is at hand."""
    memory_bytes: int = 1 << 30
    """Address space of the process."""
    file_bytes: int = 16 << 20
    output_bytes: int = 16 << 20
    """Of standard output and error, each: more ends the run."""
    result_bytes: int = 8 << 20
    """Of one returned value, encoded: more ends the run."""


@dataclass(frozen=True)
class Value:
    """What a call returned, as read outside: see `data.equal` and `data.show`."""

    data: Data


@dataclass(frozen=True)
class Raised:
    """What was raised: texts of the candidate's, to be escaped before they are shown."""

    name: str
    """Of the exception's type."""
    message: str
    line: int | None
    """In the candidate's source, where known."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended and what it left."""

    ended: Ended
    level: str
    values: tuple[Value | Raised, ...] = ()
    """Of `Calls`: one per call that came back, a prefix of the calls."""
    passed: bool | None = None
    """Of `Checked`: what the check said; None where it did not get to the end."""
    raised: Raised | None = None
    """What kept the source from loading, or a check from passing: then with the check's own failing line."""
    stdout: str = ""
    stderr: str = ""
    exit_status: int | None = None
    """Of the process; the negative signal number where one ended it (ours too)."""
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    reason: str = ""
    """For `limit`, `protocol` and `infra_error`: which."""
