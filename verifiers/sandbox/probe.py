"""Does a jail hold? Asked of a real worker, by programs that try what they must not be able to do."""

from __future__ import annotations

import os
from typing import Any

from verifiers.sandbox.exchange import Run
from verifiers.sandbox.jail import Jail, StartError
from verifiers.sandbox.programs import Calls, Limits, Value

SHORT = """
import os, socket
def probe(parent, files):
    held = []
    def refused(name, action, *arguments):
        try:
            action(*arguments)
        except OSError:
            held.append(name)
    refused("fork", os.fork)
    refused("socket", socket.socket)
    refused("kill", os.kill, parent, 0)
    refused("kill the server", os.kill, os.getppid(), 0)
    return sorted(held)
"""

LONG = """
import fcntl, os, socket, sys
def probe(parent, files):
    held = []
    def refused(name, action, *arguments):
        try:
            action(*arguments)
        except (OSError, ValueError):
            held.append(name)
    refused("fork", os.fork)
    refused("socket", socket.socket)
    refused("kill", os.kill, parent, 0)
    refused("kill the server", os.kill, os.getppid(), 0)
    for name, path, how in files:
        refused(name, os.open, path, how)
    refused("datagram pair", socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)
    refused("exec", os.execv, sys.executable or "/bin/true", ["x"])
    refused("owner by fcntl", fcntl.fcntl, 1, 8, os.getppid())
    refused("owner by ioctl", fcntl.ioctl, 3, 0x8901, os.getppid().to_bytes(4, "little"))
    if not [name for name in os.environ if name not in ("LANG", "HOME", "LC_CTYPE", "PWD")]:
        held.append("environment")
    if not [fd for fd in range(4, 64) if exists(fd)]:
        held.append("descriptors")
    import sched, wave, xmlrpc.client  # not preloaded
    held.append("import")
    return sorted(held)
def exists(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
"""
REMEDIES = (
    ("bwrap: No such file", "Install the package `bubblewrap`"),
    ("No permissions to create", "This container's profile forbids namespaces: `landlock` is used where it works"),
    ("setting up uid map: Permission denied", "Load the AppArmor profile bwrap-userns-restrict (apparmor-profiles)"),
    ("RTM_NEWADDR", "Load the AppArmor profile bwrap-userns-restrict (apparmor-profiles)"),
    ("nesting depth or /proc/sys/user/max_", "Set the sysctl user.max_user_namespaces above 0"),
    ("max_*_namespaces exceeded", "Set the sysctl user.max_user_namespaces above 0"),
    ("Can't find source path", "Use an interpreter in a folder that every user may enter"),
    ("disable-userns", "Install bubblewrap 0.8 or newer"),
    ("pyseccomp", "pip install 'opsd-workbench[sandbox]'"),
    ("landlockpy", "pip install 'opsd-workbench[sandbox]'"),
    ("libseccomp", "Install the package `libseccomp2`"),
    ("Function not implemented", "Landlock needs Linux 5.13 or newer"),
    ("Operation not supported", "Add landlock to the kernel's list of security modules (lsm=)"),
    ("Operation not permitted", "This container's profile refuses Landlock or seccomp: allow them"),
)


FILTERED = frozenset(
    {"socket", "kill", "kill the server", "fork", "datagram pair", "exec", "owner by fcntl", "owner by ioctl"}
)
"""What the system-call filters refuse: at every level but `unsafe`."""
FILES = (
    ("write outside", "/usr/lib/probe", os.O_WRONLY | os.O_CREAT),
    ("write at the root", "/probe", os.O_WRONLY | os.O_CREAT),
    ("read /etc/passwd", "/etc/passwd", os.O_RDONLY),
)
"""What namespaces or Landlock refuse; at `external` that is for the isolation around us, and nothing is tried."""
TIDY = frozenset({"environment", "descriptors", "import"})


def prove(jail: Jail) -> None:
    """The whole self-test. Raises StartError naming what was not refused."""
    files = () if jail.level == "external" else FILES
    _prove(jail, LONG, FILTERED | TIDY | {name for name, *_ in files}, files)


def short_proof(jail: Jail) -> None:
    """What is asked again of every restarted jail."""
    _prove(jail, SHORT, frozenset({"socket", "kill", "kill the server", "fork"}))


def _prove(jail: Jail, source: str, names: frozenset[str], files: tuple[tuple[str, str, int], ...] = ()) -> None:
    arguments: tuple[Any, ...] = (os.getpid(), files)
    if jail.level == "unsafe":  # nothing is refused there, and what is not refused would be done
        names, source, arguments = frozenset(), "def probe():\n    return []\n", ()
    run = Run(Calls(source, "probe", (arguments,)), Limits(seconds=10.0))
    outcome = run.go([jail])
    found = outcome.values[0] if outcome.values else outcome.raised
    if not isinstance(found, Value) or found.data[0] != "list":
        told = f"{outcome.ended} {outcome.reason} {found or ''} {outcome.stderr[-300:]}"
        raise StartError(f"self-test: {told.strip()}")
    missing = sorted(names - {text for _, text in found.data[1]})
    if missing:
        raise StartError(f"self-test: not refused: {', '.join(missing)}")


def refusal(failures: list[tuple[str, str]]) -> str:
    """One paragraph per level tried: what failed, its message, what to do."""
    lines = ["No jail for programs at the level asked."]
    for level, message in failures:
        shown = " ".join(message.split())[-400:]
        advice = next((remedy for part, remedy in REMEDIES if part.lower() in shown.lower()), "")
        if not advice and level == "bwrap" and "bwrap" in shown and "not found" in shown:
            advice = "Install the package `bubblewrap`"
        lines.append(f"{level}: {shown}. {advice or 'See what the kernel allows this user'}.")
    lines.append("Nothing ran.")
    return " ".join(lines)
