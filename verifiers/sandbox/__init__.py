"""A jail for Python that a model wrote.

Every program runs in a process of its own that cannot fork, start programs or open sockets, reads nothing but the
Python runtime and writes nothing but a private /tmp; what it returns comes out as plain data and is judged outside.
`Outcome` says how a run ended and at which isolation level, never whether that was right.

Not promised: safety against a kernel that lets a confined process out; secrecy of the arguments a program is called
with; `multiprocessing` and `subprocess`, which raise PermissionError. Linux only; elsewhere `Sandbox.open` raises
`SandboxUnavailable`. Nothing is downgraded: a level that stops working is an error.

    with Sandbox.open() as box:
        outcome = box.run(Calls("def f(x): return x + 1", "f", ((1,),)))
"""

from __future__ import annotations

from verifiers.sandbox.box import Sandbox
from verifiers.sandbox.data import Data, DataError, equal, read, show, write
from verifiers.sandbox.jail import LEVELS, SandboxUnavailable
from verifiers.sandbox.pool import Pool
from verifiers.sandbox.programs import Calls, Checked, Ended, Limits, Outcome, Program, Raised, Script, Value
from verifiers.sandbox.stated import stated

__all__ = [
    "LEVELS",
    "Calls",
    "Checked",
    "Data",
    "DataError",
    "Ended",
    "Limits",
    "Outcome",
    "Pool",
    "Program",
    "Raised",
    "Sandbox",
    "SandboxUnavailable",
    "Script",
    "Value",
    "equal",
    "read",
    "show",
    "stated",
    "write",
]
