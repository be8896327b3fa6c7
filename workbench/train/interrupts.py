"""What breaks in on a run from outside: a signal, a second process on the same directory, a full disk.

Each is answered with a saved state and one sentence, and none is answered with a half-written file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from workbench.disk import write_file
from workbench.errors import Interrupted, ResourceError, UsageError

STOPPING = "stopping after this rollout, saving; again to stop at once"
_Handler = Callable[[int, FrameType | None], Any] | int | None


class Interrupts:
    """SIGINT and SIGTERM as a question the loops ask: `with Interrupts() as stopped: ... if stopped(): ...`.

    The first signal says so on stderr and sets the flag; the second raises Interrupted where the program
    stands. Handlers that were there before are called too and come back at the end. Outside the main thread,
    where Python allows no handlers, it never reports anything. An inherited "ignore" is overridden: a run
    started from a background script can still be stopped by whoever sends the signal.
    """

    def __init__(self) -> None:
        """Nothing is installed before `with`."""
        self.signal_number: int | None = None
        """The first signal received."""
        self._previous: dict[int, _Handler] = {}

    def __call__(self) -> bool:
        """Whether to stop: poll it at every token, problem and verdict."""
        return self.signal_number is not None

    def __enter__(self) -> Interrupts:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Put the previous handlers back."""
        for number, handler in self._previous.items():
            # None: installed by C code, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.signal_number = self.signal_number is None, self.signal_number or number
        if first:
            _say(STOPPING)
        previous = self._previous.get(number)
        # Python's own SIGINT handler would raise KeyboardInterrupt on the first signal already.
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)
        if not first:
            raise Interrupted(
                f"stopped at once by a second {signal.Signals(number).name}. Nothing after the last "
                "checkpoint was saved, and that one is intact. Continue from it with --resume.",
                number,
            )


def _say(text: str) -> None:
    # Not print: a handler may run in the middle of another write to the same stream, which Python refuses.
    with contextlib.suppress(OSError, ValueError):
        os.write(2 if sys.__stderr__ is None else sys.__stderr__.fileno(), f"{text}\n".encode("ascii"))


def identity() -> dict[str, Any]:
    """This process, so that another can later tell whether it still lives: pid, host, boot, start time."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": _boot(),
        "born": _born(os.getpid()),
    }


def alive(process: Mapping[str, Any]) -> bool | None:
    """Whether the process that wrote `identity()` still runs; None where this machine cannot know."""
    pid = process.get("pid")
    if process.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return None
    if process.get("boot") != _boot():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    # The number may belong to a later process by now; a start time of None also covers a zombie.
    return _boot() == "" or _born(pid) == process.get("born")


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _born(pid: int) -> str | None:
    """Start time in clock ticks since boot; None for a process that is gone or only waits to be reaped."""
    with contextlib.suppress(OSError, IndexError):
        # The command's name stands in brackets and may hold anything, brackets too.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    return None


_held: set[int] = set()


def _release_in_child() -> None:
    """A forked worker would keep its parent's lock after the parent was killed."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Be the only writer in `folder`. Raises UsageError naming the process that already is.

    The kernel drops the lock with its process. Where a server keeps it beyond that (a network file system
    after a reboot of this machine), the recorded boot tells that its owner is gone: the lock is taken over.
    """
    path = folder / ".lock"
    descriptor = _take(path)
    if descriptor is None:
        _set_aside(path)
        descriptor = _take(path)
        if descriptor is None:
            raise _in_use(path)
    _held.add(descriptor)
    try:
        with contextlib.suppress(OSError):  # on a full disk the lock still holds, only without a name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(identity()).encode("ascii"), 0)
        # Between taking the lock and signing it, another may have read the signature of a dead owner.
        if not _is(descriptor, path):
            raise _in_use(path)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _set_aside(path: Path) -> None:
    """Remove a lock file whose owner is gone; refuse otherwise.

    Moved first and read again after: whoever signs it in between is either seen here or sees that it moved.
    """
    if alive(read_json(path)) is not False:
        raise _in_use(path)
    aside = path.with_name(f".lock-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if alive(read_json(aside)) is not False:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
            aside.unlink()
            raise _in_use(path)
        aside.unlink()


def _in_use(path: Path) -> UsageError:
    owner = read_json(path)
    who = f"process {owner.get('pid', '(unknown)')} on {owner.get('host', 'this machine')}"
    return UsageError(
        f"{path.parent} is in use by {who}. Two writers would spoil each other's files. "
        "Wait for it, stop it, or choose another --name."
    )


def _is(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _take(path: Path) -> int | None:
    """A descriptor that holds the lock, or None where somebody else does."""
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise disk_error("no lock can be taken", path.parent, error, 0) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or broken."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def disk_error(what: str, path: Path, error: BaseException, needed: int) -> ResourceError:
    """The message for a disk that is full or fails: path, needed, free, and that nothing was lost."""
    free = free_space(path)
    # The tensor library passes the number on as text.
    codes = (errno.ENOSPC, errno.EDQUOT)
    full = getattr(error, "errno", None) in codes or any(f"(os error {code})" in str(error) for code in codes)
    full = full or (free is not None and free < needed)
    why = "disk full" if full else f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
    room = "unknown" if free is None else amount(free)
    return ResourceError(
        f"{what} in {path}: {why}. Needed {amount(needed)}, free {room}. "
        "Earlier checkpoints are intact: make room or repair the disk, then --resume."
    )


def amount(size: int) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 // 100 else f"{size} bytes"


def free_space(path: Path) -> int | None:
    """Bytes free where `path` is or will be; None where the file system does not say."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(place)
            return usage.free if usage.total else None  # some network file systems report zeros
    return None


def writable(folder: Path) -> None:
    """Refuse before the work starts what would fail at the first save. Raises ResourceError."""
    probe = folder / f".probe-{os.getpid()}"
    moved = probe.with_suffix(".moved")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(probe, b"can this directory hold a checkpoint?")
        probe.rename(moved)
        moved.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        raise disk_error("output cannot be written", folder, error, 0) from error
