"""The jail of this process: opened once at a level, used by every judgement, closed at the end.

The only module that knows how `verifiers.sandbox` names things; judging sees a `Box`.
"""

from __future__ import annotations

import importlib
import threading
from typing import Any

from verifiers.programs.box import Box, Ended, Raised, Ran, Returned

LEVELS = ("auto", "bwrap", "landlock", "unsafe")
"""What may be asked for; `auto` is the strongest that works, and never `unsafe`."""


class SandboxRefused(Exception):
    """No jail can be opened at the level asked; the text names what failed and what would mend it."""


class Jail:
    """An open sandbox as a `Box`."""

    def __init__(self, level: str, workers: int) -> None:
        """Open it. Raises SandboxRefused."""
        try:
            self._api: Any = importlib.import_module("verifiers.sandbox")
            self._data: Any = importlib.import_module("verifiers.sandbox.data")
            self._programs: Any = importlib.import_module("verifiers.sandbox.programs")
        except ImportError as error:
            raise SandboxRefused(f"verifiers.sandbox cannot be imported ({error})") from error
        try:
            self._sandbox = self._api.Sandbox.open(level=level, workers=workers)
        except self._api.SandboxUnavailable as error:
            raise SandboxRefused(str(error)) from error

    def call(self, source: str, entry_point: str, arguments: tuple[tuple[Any, ...], ...], seconds: float) -> Ran:
        """Define the program once and call its entry point with each tuple of arguments."""
        return self._run(self._programs.Calls(source, entry_point, arguments), seconds)

    def script(self, source: str, stdin: str, seconds: float) -> Ran:
        """Run the program as a script."""
        return self._run(self._programs.Script(source, stdin), seconds)

    def check(self, source: str, entry_point: str, prompt: str, check: str, seconds: float) -> Ran:
        """Run `check(candidate)` in one jail while the program runs in another."""
        return self._run(self._programs.Checked(source, prompt, check, entry_point), seconds)

    def equal(self, found: Any, expected: Any) -> bool:
        """By the sandbox's policy of comparison."""
        return bool(self._data.equal(found, expected))

    def show(self, found: Any) -> str:
        """As the sandbox writes plain data."""
        return str(self._data.show(found))

    def close(self) -> None:
        """End its workers."""
        self._sandbox.close()

    def _run(self, program: Any, seconds: float) -> Ran:
        outcome = self._sandbox.run(program, self._programs.Limits(seconds=seconds))
        ended: Ended = outcome.ended
        values = tuple(
            Returned(value.data, value.arguments) if isinstance(value, self._programs.Value) else _raised(value)
            for value in outcome.values
        )
        return Ran(
            ended,
            outcome.level,
            values,
            outcome.stdout,
            outcome.exit_status,
            bool(outcome.passed),
            _raised(outcome.raised) if outcome.raised is not None else None,
        )


def _raised(value: Any) -> Raised:
    return Raised(value.type, value.message, value.line)


_lock = threading.Lock()
_open: Box | None = None


def open_sandbox(level: str = "auto", workers: int = 1) -> str:
    """Open this process's jail and say at which level it stands; an open one is closed first.

    Raises:
        SandboxRefused: naming every primitive that failed and its remedy.
        ValueError: if the level is unknown.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown sandbox level {level!r}; known: {', '.join(LEVELS)}.")
    jail = Jail(level, workers)
    install(jail)
    ran = jail.call("def f():\n    return 1\n", "f", ((),), 10.0)
    return ran.level


def install(box: Box | None) -> None:
    """Judge in this box from now on; the one before is closed. None: open one when it is needed."""
    global _open
    with _lock:
        before, _open = _open, box
    if isinstance(before, Jail):
        before.close()


def current() -> Box:
    """The open box, or one opened now at the strongest level. Raises SandboxRefused."""
    global _open
    with _lock:
        if _open is None:
            _open = Jail("auto", 1)
        return _open
