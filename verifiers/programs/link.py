"""The jail of this process: opened once at a level, used by every judgement, closed at the end.

The only module of this room that knows how `verifiers.sandbox` names things; judging sees a `Box`. The sandbox is
imported when the first program is to be run: nothing else pays for it, and machines without one can judge answers.
"""

from __future__ import annotations

import atexit
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from verifiers.programs.box import Box, Raised, Ran, Returned

if TYPE_CHECKING:
    from verifiers import sandbox

LEVELS = ("auto", "bwrap", "landlock", "external", "unsafe")
"""What may be asked for; `auto` is the strongest that works, and never `external` or `unsafe`."""


class SandboxRefused(Exception):
    """No jail can be opened at the level asked; the text names what failed and what would mend it."""


class Jail:
    """An open sandbox as a `Box`."""

    def __init__(self, level: str, workers: int) -> None:
        """Open it. Raises SandboxRefused."""
        try:
            from verifiers import sandbox
        except ImportError as error:  # no Linux: the modules of a kernel interface are not there
            raise SandboxRefused(f"This machine has no such isolation ({error}); it takes Linux.") from error
        self._api, self.workers = sandbox, workers
        try:
            self._sandbox = sandbox.Sandbox.open(level=level, workers=workers)
        except sandbox.SandboxUnavailable as error:
            raise SandboxRefused(str(error)) from error
        self.level = self._sandbox.level

    def call(
        self, source: str, entry_point: str, arguments: tuple[tuple[Any, ...], ...], seconds: float, after: bool = False
    ) -> Ran:
        """Define the program once and call its entry point with each tuple of arguments; `after` reports those too."""
        if not after:
            return self._run(self._api.Calls(source, entry_point, arguments), seconds)
        source = f"{source}\n\n\n{_REPORTING.format(entry_point)}"
        ran = self._run(self._api.Calls(source, "reporting_entry_point", arguments), seconds)
        return replace(ran, values=tuple(map(_parted, ran.values)))

    def script(self, source: str, stdin: str, seconds: float) -> Ran:
        """Run the program as a script."""
        return self._run(self._api.Script(source, stdin), seconds)

    def check(self, source: str, entry_point: str, prompt: str, check: str, seconds: float) -> Ran:
        """Run `check(candidate)` in one jail while the program runs in another."""
        return self._run(self._api.Checked(source, prompt, check, entry_point), seconds)

    def equal(self, found: Any, expected: Any) -> bool:
        """By the sandbox's policy of comparison."""
        return self._api.equal(found, expected)

    def show(self, found: Any) -> str:
        """As the sandbox writes plain data."""
        return self._api.show(found)

    def stated(self, found: Any) -> str | None:
        """As the sandbox tells plain data apart."""
        return self._api.stated(found)

    def close(self) -> None:
        """End its workers."""
        self._sandbox.close()

    def _run(self, program: sandbox.Program, seconds: float) -> Ran:
        try:
            outcome = self._sandbox.run(program, self._api.Limits(seconds=seconds))
        except self._api.SandboxUnavailable as error:  # the level was lost under way: never another one instead
            raise SandboxRefused(str(error)) from error
        values = tuple(
            Returned(value.data) if isinstance(value, self._api.Value) else _raised(value) for value in outcome.values
        )
        raised = None if outcome.raised is None else _raised(outcome.raised)
        return Ran(
            outcome.ended, outcome.level, values, outcome.stdout, outcome.exit_status, outcome.passed is True, raised
        )


_REPORTING = """def reporting_entry_point(*arguments):
    returned = {}(*arguments)
    return [returned, [*arguments]]
"""


def _parted(value: Returned | Raised) -> Returned | Raised:
    """What was returned and the arguments, out of the pair above; whatever is no pair has no arguments."""
    if isinstance(value, Returned):
        tag, payload = value.data
        if tag == "list" and len(payload) == 2:
            return Returned(*payload)
    return value


def _raised(value: sandbox.Raised) -> Raised:
    return Raised(value.name, value.message, value.line)


_lock = threading.Lock()
_open: Box | None = None
_level = "auto"
"""At which a jail is opened again: never below the one that stood."""
_workers = 1


MOST_AT_ONCE = 8
"""Programs that run at once, if there are as many cores: each may take its gigabyte."""


def open_sandbox(level: str = "auto", workers: int | None = None) -> str:
    """Open this process's jail and say at which level it stands; one that is open already is closed.

    Args:
        level: one of `LEVELS`.
        workers: programs that run at once; None: one a core, up to `MOST_AT_ONCE`.

    Raises:
        SandboxRefused: naming every primitive that failed and its remedy.
        ValueError: if the level is unknown.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown sandbox level {level!r}; known: {', '.join(LEVELS)}.")
    global _level, _workers
    jail = Jail(level, min(MOST_AT_ONCE, _cores()) if workers is None else workers)
    install(jail)
    _level, _workers = jail.level, jail.workers
    return jail.level


def at_once() -> int:
    """How many programs the open jail runs at once: more threads than this gain nothing. 1 without one."""
    box = _open
    return box.workers if isinstance(box, Jail) else 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def install(box: Box | None) -> None:
    """Judge in this box from now on; the one before is closed. None: open one when it is needed."""
    global _open
    with _lock:
        before, _open = _open, box
    if isinstance(before, Jail):
        before.close()


def current() -> Box:
    """The open box, or one opened now at the level that stood before. Raises SandboxRefused."""
    global _open
    with _lock:
        if _open is None:
            _open = Jail(_level, _workers)
        return _open


# Workers die with this process in any case; closing them here keeps its end quiet.
atexit.register(install, None)
