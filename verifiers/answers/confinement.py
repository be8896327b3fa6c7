"""The worker's own walls, put up before it reads its first question: no file, no socket, no process, no signal.

It is sent trees of numbers and known operations, never text of a model, so these stand behind a promise that already
holds. They are the jail's own: Landlock without a single rule and both of its system-call filters. Where the packages
or the kernel for them are missing the worker goes without, and says so.
"""

from __future__ import annotations

import ctypes.util
import os
import sys
import types
from contextlib import suppress
from importlib import import_module
from pathlib import Path


def confine() -> list[str]:
    """Put up what this machine has; the names of what stands, in order. Cannot be undone: for the worker alone."""
    walls: list[str] = []
    if sys.platform != "linux":
        return walls
    with suppress(Exception):  # a machine without them judges answers all the same
        # Its modules without the package around them, whose imports cost more than the worker itself.
        jail = types.ModuleType("verifiers.sandbox")
        jail.__path__ = [str(Path(__file__).resolve().parents[1] / "sandbox")]
        sys.modules.setdefault("verifiers.sandbox", jail)
        server, policy = import_module("verifiers.sandbox.server"), import_module("verifiers.sandbox.policy")
        ctypes.util.find_library = server.find_library
        landlock, seccomp = import_module("landlockpy"), import_module("pyseccomp")
        if server.works(landlock):
            landlock.Ruleset(scoped=landlock.Scope.ABSTRACT_UNIX_SOCKET | landlock.Scope.SIGNAL).restrict()
            walls.append("landlock")
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # no_new_privs, without which a filter needs rights
        policy.filter_a(seccomp, private_files=False).load()
        policy.filter_b(seccomp, os.getpid()).load()
        walls.append("seccomp")
    return walls
