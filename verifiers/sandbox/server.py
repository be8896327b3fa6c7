"""The fork server: one process per worker jail, one child per run. Runs inside the jail, as a script.

Security-critical: the order of the child's setup is the design. Any failure in it is exit status 70 before a line of
the candidate has run. The server holds no data of any task: sources and arguments reach the child over its own socket.

    python -I -S -E server.py CONTROL_FD LEVEL MODULES PATHS
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import json
import os
import signal
import socket
import sys
import types
from typing import Any

SETUP_FAILED = 70
# ruff: noqa: SIM905
CONTROL, RULES = 3, 4
"""Descriptors of the server; in a child 3 is the run's socket and 4 closed."""
SONAMES = {"c": "libc.so.6", "seccomp": "libseccomp.so.2"}
PRELOAD = """
abc array ast atexit base64 bisect calendar cmath collections collections.abc contextlib copy csv dataclasses datetime
decimal enum fractions functools heapq io itertools json math numbers operator os pprint queue random re signal
statistics string struct tempfile textwrap threading time traceback types typing unicodedata
""".split()


def find_library(name: str) -> str | None:
    """In place of ctypes.util's, which starts ldconfig: impossible here."""
    return SONAMES.get(name)


def rules_for(level: str, paths: list[str]) -> Any:
    """A Landlock ruleset that reads the runtime and writes /tmp where it is private; None where there is none."""
    import landlockpy
    from landlockpy import AccessFS, Scope

    if level in ("external", "unsafe") or (level == "bwrap" and not works(landlockpy)):
        return None
    rules = landlockpy.Ruleset(scoped=Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL)
    reading = AccessFS.READ_FILE | AccessFS.READ_DIR
    for path in paths:
        rules.allow_path(path, reading if os.path.isdir(path) else AccessFS.READ_FILE)
    for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
        if os.path.exists(path):
            rules.allow_path(path, AccessFS.READ_FILE | AccessFS.WRITE_FILE)
    if level == "bwrap":
        # Only what makes no device: mknod is refused by the filter as well.
        rules.allow_path("/tmp", landlockpy.fs_for_abi(landlockpy.abi_version()) & ~AccessFS.EXECUTE)
    return rules


def works(landlockpy: Any) -> bool:
    try:
        return bool(landlockpy.supported())
    except OSError:
        return False


def set_limits(asked: dict[str, Any]) -> None:
    import resource

    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: asked["memory"],
        resource.RLIMIT_CPU: int(asked["seconds"]) + 2,
        resource.RLIMIT_FSIZE: asked["file"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if asked["processes"]:
        limits[resource.RLIMIT_NPROC] = asked["processes"]
    for which, most in limits.items():
        _, hard = resource.getrlimit(which)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def become_child(fds: list[int], asked: dict[str, Any], kit: dict[str, Any]) -> None:
    """From a copy of the server to a process that may run a candidate. The order matters."""
    libc = kit["libc"]
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PDEATHSIG: no child outlives its server
    for place, fd in enumerate(fds):  # all received above RULES, so none is overwritten
        os.dup2(fd, place)
    os.closerange(RULES + 1, 1 << 20)
    set_limits(asked)
    if kit["rules"] is not None:
        kit["rules"].restrict()
    os.closerange(RULES, RULES + 1)
    if kit["seccomp"] is not None:
        kit["policy"].filter_b(kit["seccomp"], os.getpid()).load()


def prepare(level: str, modules: str, paths: list[str]) -> dict[str, Any]:
    """Everything children share, made once: imports, ruleset, filter A."""
    ctypes.util.find_library = find_library
    for name in ("verifiers", "verifiers.sandbox"):  # only the jail's own files, not the package around them
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [modules]
    sys.path[:0] = [path for path in paths[:2] if path]
    for name in [*PRELOAD, "resource"]:
        __import__(name)
    from verifiers.sandbox import child, policy

    libc = ctypes.CDLL(None, use_errno=True)
    kit: dict[str, Any] = {"libc": libc, "child": child, "policy": policy, "rules": None, "seccomp": None}
    if level != "unsafe":
        import pyseccomp

        kit["rules"], kit["seccomp"] = rules_for(level, paths[2:]), pyseccomp
        place_rules(kit["rules"])
    del sys.path[: len([path for path in paths[:2] if path])]
    # Nothing of the host's is left to inherit: as uid 0 in the landlock level this drops every capability.
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if level != "unsafe" and libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    if libc.prctl(38, 1, 0, 0, 0) != 0:  # no_new_privs
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if level != "bwrap" and libc.prctl(1, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PDEATHSIG")
    if kit["seccomp"] is not None:
        policy.filter_a(kit["seccomp"], private_files=level == "bwrap").load()
    return kit


def place_rules(rules: Any) -> None:
    """Move the ruleset to descriptor 4, clear of the four that a child fills."""
    if rules is not None and rules.fileno() != RULES:
        old = rules.fileno()
        os.dup2(old, RULES, inheritable=False)
        os.close(old)
        rules._fd = RULES


def clean() -> bool:
    """Whether /tmp is empty; one that cannot be listed is not."""
    try:
        return not os.listdir("/tmp")
    except OSError:
        return False


def serve(control: socket.socket, level: str, kit: dict[str, Any]) -> None:
    """One request at a time: fork, hand out the child's pidfd, wait, report."""
    while True:
        request, fds, _, _ = socket.recv_fds(control, 4096, 4)
        if not request:
            return
        asked = json.loads(request)
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                become_child(fds, asked, kit)
            except BaseException as error:
                os.write(2, f"setup failed: {type(error).__name__}: {error}\n".encode())
                os._exit(SETUP_FAILED)
            kit["child"].main(3)
            os._exit(0)
        for fd in fds:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        socket.send_fds(control, [b"started"], [pidfd])
        os.close(pidfd)
        _, status, usage = os.wait4(pid, 0)
        report = {
            "status": os.waitstatus_to_exitcode(status),
            "cpu": usage.ru_utime + usage.ru_stime,
            "peak": usage.ru_maxrss * 1024,
            "clean": clean() if level == "bwrap" else True,
        }
        control.send(json.dumps(report).encode())


def main() -> None:
    """Set up, say so, serve until the parent hangs up."""
    given, level, modules, paths = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
    os.dup2(given, CONTROL, inheritable=False)
    if given != CONTROL:
        os.close(given)
    os.dup2(2, RULES)  # keeps the place until the ruleset takes it
    control = socket.socket(fileno=CONTROL)
    os.environ.pop("LD_LIBRARY_PATH", None)
    sys.argv[:] = [""]
    try:
        kit = prepare(level, modules, paths)
    except BaseException as error:
        control.send(json.dumps({"ready": False, "why": f"{type(error).__name__}: {error}"}).encode())
        raise SystemExit(SETUP_FAILED) from error
    for number in (signal.SIGIO, signal.SIGURG):
        signal.signal(number, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    control.send(json.dumps({"ready": True, "landlock": kit["rules"] is not None}).encode())
    serve(control, level, kit)


if __name__ == "__main__":
    main()
