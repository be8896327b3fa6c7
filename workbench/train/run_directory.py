"""The run directory: what a run says about itself while it runs, and how viewers read it dead or alive.

    run.json        command, versions, config, recipe; written once
    status.json     process, phase, step, heartbeat, error; replaced by rename
    metrics.jsonl   rollouts.jsonl   append-only, one record a line, NaN as null plus "bad": [names]
    run.log         this attempt's log; those before are in logs/

One process writes (the lock is part of opening). Readers never lock and never fail on what a kill left behind.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import secrets
import shlex
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from workbench.disk import sync, write_file
from workbench.errors import Interrupted, UsageError, nearest
from workbench.text import printable
from workbench.train.interrupts import disk_error, identity, lock, read_json, writable
from workbench.train.log_file import logging_to
from workbench.train.reporting import ENDINGS
from workbench.train.reporting import RunView as RunView
from workbench.train.reporting import list_runs as list_runs
from workbench.train.reporting import newest_run as newest_run
from workbench.train.reporting import resume_command as resume_command
from workbench.train.reporting import view as view

BEAT = 4.0
"""Seconds between heartbeats."""
PATIENCE = 10
"""Failed appends in a row after which a full disk stops the run; until then lines wait in memory."""

_log = logging.getLogger(__name__)


def utc_now() -> str:
    """ISO-8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def encode(record: Mapping[str, Any]) -> str:
    """One line of pure ASCII JSON: non-finite numbers become null and are named in `bad`."""
    bad: list[str] = []
    clean = {str(key): _plain(value, str(key), bad) for key, value in record.items()}
    # Escaped as ASCII, lone surrogates of a model's broken text survive the file and come back as they were.
    return json.dumps(clean | ({"bad": bad} if bad else {}), allow_nan=False)


def _plain(node: Any, name: str, bad: list[str]) -> Any:
    if hasattr(node, "tolist"):  # numpy and torch, without importing either
        node = node.tolist()
    if isinstance(node, float) and not math.isfinite(node):
        bad.append(name)
        return None
    if isinstance(node, Mapping):
        return {str(key): _plain(value, f"{name}.{key}", bad) for key, value in node.items()}
    if isinstance(node, (list, tuple, set, frozenset)):
        return [_plain(value, f"{name}.{i}", bad) for i, value in enumerate(node)]
    return node if node is None or isinstance(node, (str, int, float)) else str(node)


def follow(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Records from byte `offset` on, and where to go on next time. A torn last line waits for its end."""
    try:
        with open(path, "rb") as file:
            if offset > os.fstat(file.fileno()).st_size:
                offset = 0  # a resumed run has cut the file back
            file.seek(offset)
            content = file.read()
    except OSError:
        return [], offset
    end = content.rfind(b"\n") + 1
    records = []
    for line in content[:end].splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(record := json.loads(line), dict):
                records.append(record)
    return records, offset + end


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every whole record of a file; none where it does not exist."""
    return follow(path)[0]


class JsonLines:
    """An append-only file of records. A line is written by one call, so a reader sees it whole or not at all."""

    def __init__(self, path: Path) -> None:
        """Open for appending; a line torn by a kill is cut off."""
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._waiting: list[bytes] = []
        self._failures = 0
        os.ftruncate(self._file, self._sound_end())

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record, with the time. Raises ResourceError only when the disk stays full."""
        self._waiting.append(encode({"time": utc_now(), **record}).encode("ascii") + b"\n")
        try:
            self._flush()
        except OSError as error:
            self._failures += 1
            if self._failures == 1:
                _log.warning("%s", disk_error("records wait in memory", self.path, error, self._needed()))
            if self._failures >= PATIENCE:
                raise disk_error("records not written", self.path, error, self._needed()) from error

    def size(self) -> int:
        """Bytes that are safely on the disk. Raises ResourceError when lines still wait."""
        try:
            self._flush()
            os.fsync(self._file)
        except OSError as error:
            raise disk_error("records not written", self.path, error, self._needed()) from error
        return os.fstat(self._file).st_size

    def truncate_to(self, size: int) -> int:
        """Cut back to `size` bytes (to a whole line); returns how many bytes are missing below it."""
        self._waiting.clear()
        there = os.fstat(self._file).st_size
        os.ftruncate(self._file, min(size, there))
        os.ftruncate(self._file, self._sound_end())
        return max(0, size - there)

    def close(self) -> None:
        """Write what waits, if the disk lets it."""
        with contextlib.suppress(OSError):
            self._flush()
        os.close(self._file)

    def _needed(self) -> int:
        return sum(map(len, self._waiting))

    def _flush(self) -> None:
        while self._waiting:
            start, rest = os.fstat(self._file).st_size, memoryview(self._waiting[0])
            try:
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                with contextlib.suppress(OSError):  # or the next line would be glued to half of this one
                    os.ftruncate(self._file, start)
                raise
            self._waiting.pop(0)
            self._failures = 0

    def _sound_end(self) -> int:
        end = os.fstat(self._file).st_size
        while end > 0:
            start = max(0, end - 65536)
            if (at := os.pread(self._file, end - start, start).rfind(b"\n")) >= 0:
                return start + at + 1
            end = start
        return 0


class RunDirectory:
    """A run directory opened by the one process that writes it. A context manager; `create` or `open` makes it."""

    def __init__(self, path: Path) -> None:
        """Take the lock, repair what a kill left, start log and heartbeat. Raises UsageError if it is in use."""
        self.path = path
        self._status: dict[str, Any] = {"phase": "start", "step": 0, "error": None}
        self.standing: dict[str, Any] = {}
        """What status.json says beside the phase, whatever the phase is."""
        self._mutex, self._closing = threading.Lock(), threading.Event()
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock(path))
            _keep_log(path)
            stack.enter_context(logging_to(path / "run.log"))
            self.metrics = stack.enter_context(contextlib.closing(JsonLines(path / "metrics.jsonl")))
            self.rollouts = stack.enter_context(contextlib.closing(JsonLines(path / "rollouts.jsonl")))
            self._open = stack.pop_all()
        self._beat()
        self._heart = threading.Thread(target=self._beats, name="heartbeat", daemon=True)
        self._heart.start()

    @classmethod
    def create(cls, path: Path, *, fresh: bool = False) -> RunDirectory:
        """A new run. An existing one is refused, or with `fresh` moved aside. Raises UsageError, ResourceError."""
        check_name(path.name)
        if path.is_symlink() or path.exists():
            if not path.is_dir():
                raise UsageError(f"{path} is a file. A run needs a directory of its own: choose another --name.")
            if any(not p.name.startswith(".") for p in path.iterdir()):
                if not fresh:
                    raise UsageError(_ways_on(path))
                with lock(path):  # refuses to move a run from under its process
                    path.rename(next(p for i in range(1, 10**6) if not (p := _old(path, i)).exists()))
        writable(path)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """A run to go on with. Raises UsageError where there is none."""
        if not read_json(path / "run.json"):
            names = [run.name for run in list_runs(path.parent)]
            hint = nearest(path.name, names) if names else f"{path.parent} holds no runs."
            raise UsageError(f"no run {path} to resume. It has no run.json. {hint}")
        writable(path)
        return cls(path)

    @property
    def run_json(self) -> dict[str, Any]:
        """What `write_run_json` wrote."""
        return read_json(self.path / "run.json")

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints go."""
        return self.path / "checkpoints"

    def write_run_json(self, facts: Mapping[str, Any]) -> None:
        """Record how the run was started, durably and at once."""
        temporary = self.path / ".run.json.tmp"
        text = json.dumps(json.loads(encode({"created": utc_now(), **facts})), indent=1)
        write_file(temporary, text.encode("ascii"))
        temporary.replace(self.path / "run.json")
        sync(self.path)

    def status(self, phase: str, step: int, error: str | None = None, **more: object) -> None:
        """Say what is being done; `finished`, `failed` and `interrupted` are the endings."""
        with self._mutex:
            self._status = {"phase": phase, "step": step, "error": error, **self.standing, **more}
        self._beat()

    def offsets(self) -> dict[str, int]:
        """How long the record files are: goes into a checkpoint."""
        return {"metrics": self.metrics.size(), "rollouts": self.rollouts.size()}

    def truncate_to(self, offsets: Mapping[str, int]) -> list[str]:
        """Drop what was recorded after a checkpoint, for it will be recorded again. Returns what was lost."""
        notes = []
        for name, lines in (("metrics", self.metrics), ("rollouts", self.rollouts)):
            if missing := lines.truncate_to(offsets.get(name, 0)):
                notes.append(f"{lines.path.name} lacks {missing} bytes that the checkpoint knew of")
        return notes

    def close(self) -> None:
        """Stop the heartbeat and let go of the directory."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._heart.join()
        self._beat()
        self._open.close()

    def __enter__(self) -> RunDirectory:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close; an exception that nobody recorded becomes the ending."""
        if error is not None and self._status["phase"] not in ENDINGS:
            ending = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
            self.status(ending, self._status["step"], str(error) or type(error).__name__)
        self.close()

    def _beats(self) -> None:
        while not self._closing.wait(BEAT):
            self._beat()

    def _beat(self) -> None:
        temporary = self.path / ".status.json.tmp"
        with self._mutex:
            try:
                temporary.write_text(encode({**identity(), "heartbeat": utc_now(), **self._status}) + "\n")
                temporary.replace(self.path / "status.json")
            except OSError as error:  # a viewer's file: never a reason to stop training
                _log.info("status.json not written: %s", error)


def made_up_name(output: Path, recipe: str, model: str) -> str:
    """`opsd-smollm2-7f3a`: new below `output`."""
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1].removesuffix(".gguf")
    stem = re.sub(r"[^a-z0-9.]+", "-", f"{recipe}-{last}".lower())[:60].strip("-.") or "run"
    while True:
        name = f"{stem}-{secrets.token_hex(2)}"
        if not (output / name).exists():
            return name


def check_name(name: str) -> None:
    """Refuse a name that is a path, an option or unreadable. Raises UsageError."""
    wrong = not name or name[0] in ".-" or re.search(r"[/\\]", name) or printable(name) != name or len(name) > 100
    if wrong:
        raise UsageError(
            f"'{printable(name)}' cannot name a run. It is one directory below --output: no slashes, no control "
            "characters, no leading dot or dash, at most 100 characters. Choose another --name."
        )


def _ways_on(path: Path) -> str:
    run = view(path)
    what = f"{run.state}, step {run.step}" if run else "not a run"
    go_on = f" Continue: --resume{f' --steps {2 * run.step}' if run.state == 'finished' else ''}." if run else ""
    new = next(n for i in range(2, 10**6) if not path.with_name(n := f"{path.name}-{i}").exists())
    fork = f" From its weights: --fork {shlex.quote(str(path))}." if run else ""
    return f"{path} exists ({what}).{go_on} New: --name {shlex.quote(new)}.{fork}"


def _old(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.old-{number}")


def _keep_log(path: Path) -> None:
    """Move the log of the attempt before into logs/: run.log is always the current one."""
    if (path / "run.log").exists():
        (path / "logs").mkdir(exist_ok=True)
        taken = (path / "logs" / f"attempt-{i}.log" for i in range(1, 10**6))
        (path / "run.log").rename(next(p for p in taken if not p.exists()))
