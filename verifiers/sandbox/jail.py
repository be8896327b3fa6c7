"""Starting and ending one worker jail: the arguments of bwrap, the user it runs as, its control socket.

Security-critical: what is bound into the jail and what the fork server inherits is decided here and nowhere else.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import select
import socket
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

LEVELS = ("auto", "bwrap", "landlock", "external", "unsafe")
"""What may be asked for. `auto`: bwrap, else landlock, else refused."""
OWN = ("server.py", "child.py", "policy.py", "data.py")
START_SECONDS = 20.0
SCRATCH_BYTES = 16 << 20


class SandboxUnavailable(Exception):
    """No jail at the level asked: names each primitive that failed, its message and the remedy."""


class StartError(Exception):
    """This jail did not start; the message is the primitive's own."""


@dataclass(frozen=True)
class Runtime:
    """The Python that runs inside, as found on this host."""

    interpreter: str
    library: str
    """The standard library's folder."""
    shared: tuple[str, ...]
    """libpython, where the interpreter needs one."""
    own: str
    """The folder of this module."""
    packages: tuple[str, ...]
    """Where pyseccomp and landlockpy are; () where they are missing."""

    def readable_by_others(self) -> bool:
        """Whether a user without rights can enter every folder on the way."""
        for path in (self.interpreter, self.library, self.own, *self.shared, *self.packages):
            if any(not os.stat(folder).st_mode & 0o001 for folder in Path(path).parents):
                return False
        return True


def runtime() -> Runtime:
    """The base interpreter, not the virtual environment around it."""
    interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    shared = Path(sysconfig.get_config_var("LIBDIR") or "") / (sysconfig.get_config_var("INSTSONAME") or "")
    packages = tuple(
        spec.origin
        for spec in (importlib.util.find_spec(name) for name in ("pyseccomp", "landlockpy"))
        if spec is not None and spec.origin is not None
    )
    return Runtime(
        interpreter,
        os.path.dirname(os.path.realpath(os.__file__)),
        (str(shared),) if ".so" in shared.name and shared.is_file() else (),
        str(Path(__file__).resolve().parent),
        packages if len(packages) == 2 else (),
    )


def bwrap_arguments(found: Runtime, as_root: bool) -> list[str]:
    """A root of its own that holds Python and nothing of the host's users; read-only but for /tmp."""
    inside = f"/opt/python/lib/{Path(found.library).name}"
    arguments = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    arguments += ["--cap-drop", "ALL", "--clearenv", "--setenv", "LANG", "C.UTF-8", "--setenv", "HOME", "/tmp"]
    arguments += ["--setenv", "LD_LIBRARY_PATH", "/opt/python/lib"]
    if as_root:  # the interpreter is only root's to read
        arguments += ["--uid", "65534", "--gid", "65534"]
    arguments += libraries()
    arguments += ["--ro-bind", found.library, inside, "--ro-bind", found.interpreter, "/opt/python/bin/python"]
    for path in found.shared:
        arguments += ["--ro-bind", path, f"/opt/python/lib/{Path(path).name}"]
    for name in OWN:
        arguments += ["--ro-bind", f"{found.own}/{name}", f"/opt/verifier/{name}"]
    if found.packages:
        seccomp, landlock = found.packages
        arguments += ["--ro-bind", seccomp, "/opt/packages/pyseccomp.py"]
        arguments += ["--ro-bind", os.path.dirname(landlock), "/opt/packages/landlockpy"]
    for device in ("null", "zero", "urandom"):
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    arguments += ["--perms", "0700", "--size", str(SCRATCH_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    arguments += ["--remount-ro", "/"]
    return [*arguments, "--", "/opt/python/bin/python"]


def libraries() -> list[str]:
    """The host's folders of shared libraries, or the links that stand for them."""
    arguments: list[str] = []
    for folder in ("/usr/lib", "/usr/lib64", "/lib", "/lib64"):
        if os.path.islink(folder):
            arguments += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            arguments += ["--ro-bind", folder, folder]
    return arguments


def unused_user() -> int | None:
    """A user id that nobody has and no process runs as; None where ids cannot be taken."""
    import pwd

    taken = {entry.pw_uid for entry in pwd.getpwall()}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            taken.add(folder.stat().st_uid)
        except OSError:
            continue
    free = [uid for uid in range(61184, 65520) if uid not in taken]
    return random.choice(free) if free else None


class Jail:
    """One running worker: a fork server that serves one run at a time."""

    def __init__(self, level: str, found: Runtime) -> None:
        """Start it and wait until it is ready. Call from a thread that lives as long as the jail.

        Raises:
            StartError: with what bwrap, the kernel or the server said.
        """
        self.level = level
        self.runs = 0
        self.user = unused_user() if os.geteuid() == 0 and found.readable_by_others() else None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the jail
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self.process = self._start(found, theirs)
            except OSError as error:
                self._forget()
                raise StartError(f"{error.filename or level}: {error.strerror}") from error
        try:
            self._greet()
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> int:
        """RLIMIT_NPROC of a run, or 0: it counts all processes of a user, so the user must be the jail's alone."""
        alone = self.user is not None or (self.level == "bwrap" and os.geteuid() != 0)
        return 256 if alone and self.level != "unsafe" else 0

    def _start(self, found: Runtime, theirs: socket.socket) -> subprocess.Popen[bytes]:
        packages = sorted({os.path.dirname(p.replace("/landlockpy/__init__.py", "/x")) for p in found.packages})
        paths = [*packages, "", ""][:2]
        if self.level == "bwrap":
            command = bwrap_arguments(found, as_root=os.geteuid() == 0 and self.user is None)
            modules, paths, readable = "/opt/verifier", ["/opt/packages", ""], ["/"]
        else:
            command, modules = [found.interpreter], found.own
            folders = [f for f in ("/usr/lib", "/usr/lib64", "/lib", "/lib64") if os.path.isdir(f)]
            readable = [found.library, found.interpreter, *found.shared, *folders]
        arguments = [str(theirs.fileno()), self.level, modules, json.dumps([*paths, *readable])]
        user: dict[str, Any] = {}
        if self.user is not None:
            user = {"user": self.user, "group": self.user, "extra_groups": []}
        return subprocess.Popen(
            [*command, "-I", "-S", "-E", "-B", "-X", "utf8", f"{modules}/server.py", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"} if self.level == "bwrap" else {},
            cwd="/",
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            **user,
        )

    def _greet(self) -> None:
        said = self.receive(START_SECONDS)
        if said is None:
            self.process.poll()
            raise StartError(self.errors() or f"{self.level}: the worker did not start")
        if not said.get("ready"):
            raise StartError(str(said.get("why")))
        self.landlock = bool(said.get("landlock"))

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The server's next message; None where it says nothing in time or is gone."""
        waiting = select.poll()
        waiting.register(self.control, select.POLLIN)
        if not waiting.poll(max(0, int(seconds * 1000))):
            return None
        try:
            message = self.control.recv(65536)
            return dict(json.loads(message)) if message else None
        except (OSError, ValueError):
            return None

    def fork(self, fds: list[int], asked: dict[str, Any]) -> int | None:
        """Start a child on these four descriptors; its pidfd, or None where the server is gone."""
        try:
            socket.send_fds(self.control, [json.dumps(asked).encode()], fds)
            waiting = select.poll()
            waiting.register(self.control, select.POLLIN)
            if not waiting.poll(5000):
                return None
            message, found, _, _ = socket.recv_fds(self.control, 4096, 1)
        except OSError:
            return None
        return found[0] if message == b"started" and found else None

    def errors(self) -> str:
        """The last of what bwrap and the server wrote."""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 2000))
        return self._errors.read().decode("utf-8", "replace").strip()

    def close(self) -> None:
        """Kill it: with bwrap the kernel takes the whole process tree and the files along."""
        self.process.kill()
        self.process.wait()
        # Without namespaces the server's death kills its child through PDEATHSIG.
        self._forget()

    def _forget(self) -> None:
        self.control.close()
        self._errors.close()
