"""A box without walls, for programs this repository wrote: plain subprocesses behind the interface of a jail."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from typing import Any

from verifiers.programs import Raised, Ran, Returned

_CALLS = """
import sys, json, ast, io
source, name, arguments = ast.literal_eval(sys.stdin.read())
out, sys.stdout = sys.stdout, io.StringIO()
def raised(error):
    line, at = None, error.__traceback__
    while at is not None:
        line = at.tb_lineno if at.tb_frame.f_code.co_filename == "program" else line
        at = at.tb_next
    return ["raised", type(error).__name__, str(error), line]
values = []
try:
    scope = {"__name__": "program"}
    exec(compile(source, "program", "exec"), scope)
    function = scope[name]
except BaseException as error:
    print(repr([raised(error), []]), file=out)
else:
    for given in arguments:
        try:
            values.append(["returned", function(*given), given])
        except BaseException as error:
            values.append(raised(error))
    print(repr([None, values]), file=out)
"""

_CHECK = """
import sys, ast
source, name, prompt, check = ast.literal_eval(sys.stdin.read())
program = {"__name__": "program"}
exec(compile(source, "program", "exec"), program)
tests = {"__name__": "check"}
exec(compile(prompt, "prompt", "exec"), tests)
exec(compile(check, "check", "exec"), tests)
try:
    tests["check"](program[name])
except BaseException as error:
    line, at = None, error.__traceback__
    while at is not None:
        line = at.tb_lineno if at.tb_frame.f_code.co_filename == "check" else line
        at = at.tb_next
    print(repr([type(error).__name__, str(error), line]))
else:
    print("None")
"""


class PlainBox:
    """Counts its runs; `given` keeps what each one was shown."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []

    def call(
        self, source: str, entry_point: str, arguments: tuple[tuple[Any, ...], ...], seconds: float, after: bool = False
    ) -> Ran:
        self.given.append(arguments)
        done = self._python(_CALLS, repr((source, entry_point, arguments)), seconds)
        if done is None:
            return Ran("timeout", "plain")
        if not done.stdout:
            return Ran("died", "plain")
        failed, values = ast.literal_eval(done.stdout)
        found = tuple(Returned(v[1], v[2]) if v[0] == "returned" else Raised(*v[1:]) for v in values)
        return Ran("raised" if failed else "returned", "plain", found, raised=Raised(*failed[1:]) if failed else None)

    def script(self, source: str, stdin: str, seconds: float) -> Ran:
        self.given.append((stdin,))
        done = self._python(source, stdin, seconds)
        if done is None:
            return Ran("timeout", "plain")
        last = (done.stderr.strip().splitlines() or [""])[-1].partition(": ")
        raised = Raised(last[0], last[2]) if done.returncode else None
        return Ran("returned", "plain", stdout=done.stdout, exit_status=done.returncode, raised=raised)

    def check(self, source: str, entry_point: str, prompt: str, check: str, seconds: float) -> Ran:
        self.given.append((check,))
        done = self._python(_CHECK, repr((source, entry_point, prompt, check)), seconds)
        if done is None:
            return Ran("timeout", "plain")
        if not done.stdout:
            return Ran("raised", "plain", raised=Raised("SyntaxError"))
        found = ast.literal_eval(done.stdout)
        return Ran("returned", "plain", passed=found is None, raised=Raised(*found) if found else None)

    def equal(self, found: Any, expected: Any) -> bool:
        if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
            return len(found) == len(expected) and all(map(self.equal, found, expected))
        if isinstance(found, float) or isinstance(expected, float):
            both = isinstance(found, int | float) and isinstance(expected, int | float)
            return both and abs(found - expected) <= 1e-6 * abs(expected)
        return bool(found == expected)

    def show(self, found: Any) -> str:
        return repr(found)

    def stated(self, found: Any) -> str | None:
        from verifiers import sandbox  # on Linux alone; the rest of this box runs anywhere

        return sandbox.stated(sandbox.read(sandbox.write(found)))

    def _python(self, source: str, stdin: str, seconds: float) -> subprocess.CompletedProcess[str] | None:
        try:
            return subprocess.run(
                [sys.executable, "-I", "-S", "-E", "-c", source],
                input=stdin, capture_output=True, text=True, timeout=seconds,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None


def column_of(*rows: dict[str, Any]) -> list[str]:
    return [json.dumps(row) for row in rows]
