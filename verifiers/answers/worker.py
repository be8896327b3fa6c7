"""The process that settles equalities at hundreds of digits; started by `link`, replaced when it takes too long.

It reads one JSON line a question from standard input and writes one a reply. It never evaluates text: questions are
trees of numbers, names and known operations, so nothing a model wrote is ever parsed or executed here. Limits are the
kernel's (memory, processor seconds a question, no files); the wall clock belongs to the parent.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from importlib import import_module
from typing import Any

from verifiers.answers.confinement import confine
from verifiers.answers.notation.trees import Node
from verifiers.answers.values.evaluation import LARGEST, Field
from verifiers.answers.values.numeric import Finding, equal, near, proportional

DIGITS = (60, 240)
"""A first look that most differences do not survive, and the one that an equality must pass."""

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 4
PARENT_CHECK_S = 5.0


def encode(node: Node) -> list[Any]:
    """A tree as JSON: fractions become strings."""
    return [
        encode(part) if isinstance(part, tuple) else str(part) if isinstance(part, Fraction) else part for part in node
    ]


def decode(node: list[Any]) -> Node:
    """The tree again."""
    if node[0] == "num":
        return ("num", Fraction(node[1]), node[2])
    return tuple(decode(part) if isinstance(part, list) else part for part in node)


def field(mp: Any, digits: int) -> Field:
    """Complex numbers of mpmath; the context's precision must be set to the same number of digits."""
    rounding = mp.mpf(10) ** (5 - digits)
    return Field(
        number=lambda value: mp.mpc(mp.mpf(value.numerator) / value.denominator),
        real=lambda value: mp.mpc(value.real),
        floor=lambda value: int(mp.floor(value)),
        constants={"pi": mp.mpc(mp.pi), "e": mp.mpc(mp.e), "i": mp.mpc(0, 1)},
        functions={
            "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "asin": mp.asin, "acos": mp.acos, "atan": mp.atan,
            "sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh, "ln": mp.ln, "gamma": mp.gamma,
        },
        rounding=rounding,
        least=mp.mpf(0),
        largest=mp.mpf(LARGEST),
        trust=mp.mpf(10) ** (-digits // 2),
    )  # fmt: skip


def settle(request: dict[str, Any], mp: Any) -> Finding:
    """Answer one question, first at few digits and, if they agree, at many.

    Args:
        request: `kind`, `a`, `b` and, for `near`, `bound`.
        mp: an mpmath context.

    Returns:
        `different` is certain up to rounding bounds; `agree` means agreement to more than a hundred digits at every
        point looked at; `unclear` is neither.
    """
    a, b = decode(request["a"]), decode(request["b"])
    found: Finding = "unclear"
    for digits in DIGITS:
        mp.dps = digits
        found = _KINDS[request["kind"]](a, b, Fraction(request["bound"]), field(mp, digits))
        if found == "different":
            break
    return found


_KINDS: dict[str, Callable[[Node, Node, Fraction, Field], Finding]] = {
    "equal": lambda a, b, _, numbers: equal(a, b, numbers),
    "proportional": lambda a, b, _, numbers: proportional(a, b, numbers),
    "same_direction": lambda a, b, _, numbers: proportional(a, b, numbers, positive=True),
    "near": lambda a, b, bound, numbers: near(a, b[1], bound, numbers),
}


def _restrict() -> None:
    """Bound memory, files and core dumps; where the platform has no such limits the parent's clock remains."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _allow_seconds(seconds: int) -> None:
    """Let the kernel end this process after so many more processor seconds, also when no parent is left to do it."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _watch(parent: int) -> None:
    """End in the middle of a question whose parent is gone; counted in processor time, so an idle worker sleeps.

    The parent's death signal (PR_SET_PDEATHSIG) would fire when the thread that started us ends.
    """
    with suppress(ImportError, AttributeError):
        import signal

        signal.signal(signal.SIGVTALRM, lambda *_: os.getppid() == parent or os._exit(0))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.1, 0.1)


def _lines() -> Any:
    """Lines of standard input; ends at its end, or when the parent is gone while others hold the pipe open."""
    parent, kept = os.getppid(), b""
    _watch(parent)
    while True:
        if os.name == "posix":
            import select

            while not select.select([0], [], [], PARENT_CHECK_S)[0]:
                if os.getppid() != parent:
                    return
        piece = os.read(0, 1 << 16)
        if not piece:
            return
        *whole, kept = (kept + piece).split(b"\n")
        yield from whole


_FUNCTIONS = ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "ln")
_EVERYTHING: dict[str, Any] = {
    "kind": "equal",
    "a": [
        "add",
        *(["fn", name, ["num", "1/3", 0]] for name in _FUNCTIONS),
        ["fact", ["root", ["num", "2", 0], ["num", "2", 0]]],
    ],
    "b": ["pow", ["const", "pi"], ["num", "1/2", 0]],
    "bound": "0",
}


def main() -> None:
    """Answer until standard input ends."""
    mp = import_module("mpmath").mp
    _restrict()
    sys.setrecursionlimit(4_000)
    settle(_EVERYTHING, mp)  # whatever is imported on first use
    ready = {"ready": True, "walls": confine()}
    os.write(1, json.dumps(ready).encode() + b"\n")
    for line in _lines():
        _allow_seconds(CPU_SECONDS)
        try:
            request = json.loads(line)
            reply: dict[str, Any] = {"id": request["id"], "found": settle(request, mp)}
        except Exception as reason:  # whatever happens becomes a reply: silence would cost the parent its deadline
            reply = {"id": request.get("id", -1), "error": f"{type(reason).__name__}: {reason}"[:200]}
        os.write(1, json.dumps(reply).encode() + b"\n")
