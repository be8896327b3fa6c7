"""The exception tree. A message says what, why, and what to do; `exit_code` is what the commands return.

| exception | code | meaning |
|---|---|---|
| `WorkbenchError` | 1 | base of all |
| `UsageError` (ValueError) | 2 | wrong flag, key, name or directory |
| `RecipeError` (UsageError) | 2 | a recipe that cannot run |
| `InputError` (ValueError) | 3 | data or model unusable |
| `ResourceError` (RuntimeError) | 4 | memory or disk |
| `TrainingError` (RuntimeError) | 1 | training cannot go on |
| `JudgingError` (TrainingError) | 1 | the jail is lost; saved, to be resumed |
| `ProcessLost` (RuntimeError) | 5 | another process of the run is gone; to be resumed |
| `ServerError` (TrainingError) | 1 | a server that writes is gone or answers wrongly; saved, to be resumed |
| `Interrupted` | 130, 143 | the user stopped; what was done is saved |
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkbenchError(Exception):
    """Base of everything raised on purpose. The text is `WHAT. WHY. DO.`, first line under 120 characters."""

    exit_code = 1
    shared = False
    """Whether every process of the run raised it: then the first one says it."""


class UsageError(WorkbenchError, ValueError):
    """The command cannot mean what it says."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe that constructs is a recipe that runs; this one did not construct."""


class InputError(WorkbenchError, ValueError):
    """A model, data set or prompt that cannot be used as it is."""

    exit_code = 3


class ResourceError(WorkbenchError, RuntimeError):
    """Memory or disk ran out; state on disk is intact."""

    exit_code = 4


class TrainingError(WorkbenchError, RuntimeError):
    """Training cannot honestly go on: nothing kept ten times, non-finite gradients in a row."""


class JudgingError(TrainingError):
    """Programs can no longer be judged in isolation; what was learnt so far is intact."""


class ProcessLost(WorkbenchError, RuntimeError):
    """One of several processes died or cannot be reached; what was saved is intact."""

    exit_code = 5


class ServerError(TrainingError):
    """A server did not do what it was asked, and is named; what was learnt so far is intact."""


class Interrupted(WorkbenchError):
    """The user or the system asked to stop; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int = 2) -> None:
        """`signal_number` 2 for Ctrl-C, 15 for SIGTERM."""
        super().__init__(message)
        self.exit_code = 128 + signal_number


def nearest(name: str, valid: Iterable[str]) -> str:
    """A clause for a message about a wrong name: the nearest valid one, then all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return f"{hint}Valid: {', '.join(names)}."
