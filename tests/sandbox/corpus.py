"""Judges the hostile corpus in a sandbox, with listeners and canaries on the host to be hit.

python -m tests.sandbox.corpus LEVEL CORPUS [ID ...]
"""

from __future__ import annotations

import ast
import dataclasses
import glob
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from verifiers.sandbox import Calls, Checked, Limits, Raised, Sandbox, Script, Value, equal

CANARY = Path("/tmp/sdw_canary")
SECONDS = 3.0


def judge(box: Sandbox, row: dict, seconds: float = SECONDS) -> tuple[str, set[str]]:
    """A verdict in the corpus's words, and the levels seen."""
    limits = Limits(seconds=seconds)
    kind = {"check": checked, "stdin": scripts, "function": calls}[row["kind"]]
    levels = set()
    said = "pass"
    for outcome, right in kind(box, row, limits):
        levels.add(outcome.level)
        if outcome.ended != "returned" or not right:
            said = ended(outcome)
            break
    return said, levels


def checked(box: Sandbox, row: dict, limits: Limits):
    prompt = row.get("prompt", row["task"])
    outcome = box.run(Checked(row["candidate_code"], prompt, row["tests"]["check"], row["entry_point"]), limits)
    yield outcome, outcome.passed


def scripts(box: Sandbox, row: dict, limits: Limits):
    for test in row["tests"]:
        outcome = box.run(Script(row["candidate_code"], test["input"]), limits)
        yield outcome, lines(outcome.stdout) == lines(test["output"])


def calls(box: Sandbox, row: dict, limits: Limits):
    arguments = tuple(ast.literal_eval(test["args"]) for test in row["tests"])
    outcome = box.run(Calls(row["candidate_code"], row["entry_point"], arguments), limits)
    expected = [ast.literal_eval(test["expected"]) for test in row["tests"]]
    if any(isinstance(value, Raised) for value in outcome.values):
        outcome = dataclasses.replace(outcome, ended="raised")
    right = [isinstance(v, Value) and equal(v.data, e) for v, e in zip(outcome.values, expected, strict=False)]
    yield outcome, right == [True] * len(expected)


def ended(outcome) -> str:
    return {"raised": "error", "returned": "wrong"}.get(outcome.ended, outcome.ended)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


class Host:
    """What a program could reach or leave behind."""

    def __init__(self) -> None:
        self.hits: list[str] = []
        self.over = threading.Event()
        self.children = processes()

    def broken(self, row: dict, said: str) -> list[str]:
        """The row's invariants that do not hold now."""
        found = [f"connection: {hit}" for hit in self.hits]
        self.hits.clear()
        for text in row.get("invariants", []):
            name, _, path = text.partition(":")
            if (name == "no_file" and os.path.exists(path)) or (name == "no_glob" and glob.glob(path)):
                found.append(text)
        until = time.monotonic() + 2  # a jail that is being dropped is its kernel's for a moment
        while (left := processes() - self.children) and time.monotonic() < until:
            time.sleep(0.05)
        if left:
            found.append(f"processes: {sorted(left)}")
        if (CANARY / "secret").read_text() != "untouched":
            found.append("canary")
        return found


def processes() -> set[str]:
    """Sleeping strangers: processes that no worker of ours holds."""
    shown = subprocess.run(["ps", "-eo", "ppid=,comm=,args="], capture_output=True, text=True, check=True).stdout
    return {line.strip() for line in shown.splitlines() if line.split()[0] == "1" and "python" in line and "-I" in line}


@contextmanager
def host() -> Iterator[Host]:
    """Listeners on the corpus's ports and sockets, a secret in the environment, a canary folder."""
    CANARY.mkdir(exist_ok=True)
    (CANARY / "secret").write_text("untouched")
    os.environ["SDW_SECRET"] = "SDW-CANARY-" + "SECRET"
    seen = Host()
    threads = []
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 47391)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 47392)),
        (socket.AF_UNIX, socket.SOCK_STREAM, str(CANARY / "sock")),
        (socket.AF_UNIX, socket.SOCK_DGRAM, str(CANARY / "datagrams")),
        (socket.AF_UNIX, socket.SOCK_STREAM, "\0sdw_canary"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "\0sdw_canary_datagrams"),
    ):
        if isinstance(address, str) and not address.startswith("\0"):
            Path(address).unlink(missing_ok=True)
        server = socket.socket(family, kind)
        server.bind(address)
        if isinstance(address, str) and not address.startswith("\0"):
            os.chmod(address, 0o777)
        if kind == socket.SOCK_STREAM:
            server.listen(8)
        threads.append(threading.Thread(target=_listen, args=(server, kind, str(address), seen), daemon=True))
        threads[-1].start()
    CANARY.chmod(0o777)
    try:
        yield seen
    finally:
        seen.over.set()
        for thread in threads:
            thread.join()
        os.environ.pop("SDW_SECRET", None)
        shutil.rmtree(CANARY)


def _listen(server: socket.socket, kind: int, name: str, seen: Host) -> None:
    server.settimeout(0.05)
    while not seen.over.is_set():
        try:
            server.accept()[0].close() if kind == socket.SOCK_STREAM else server.recv(100)
        except TimeoutError:
            continue
        seen.hits.append(name)
    server.close()


def problems(level: str, rows: list[dict]) -> list[str]:
    """What went otherwise than the corpus expects."""
    found = []
    terminated: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(number))
    try:
        with host() as seen, Sandbox.open(level) as box:
            for row in rows:
                said, levels = judge(box, row)
                expected = ["error"] if row["id"] == "h_tempfile" and level == "landlock" else row["acceptable"]
                if said not in expected or levels != {level}:
                    found.append(f"{row['id']}: {said} at {levels}, not in {expected}")
                found += [f"{row['id']}: {text}" for text in seen.broken(row, said)]
            time.sleep(0.5)
            late = [text for row in rows for text in row.get("invariants", []) if text.startswith("no_file_later")]
            found += [text for text in late if os.path.exists(text.partition(":")[2])]
    finally:
        signal.signal(signal.SIGTERM, before)
    return found + (["SIGTERM arrived"] if terminated else [])


def read(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


if __name__ == "__main__":
    rows = read(Path(sys.argv[2]))
    wanted = set(sys.argv[3:])
    started = time.monotonic()
    found = problems(sys.argv[1], [row for row in rows if not wanted or row["id"] in wanted])
    print("\n".join(found))
    print(f"{len(rows)} programs, {len(found)} problems, {time.monotonic() - started:.1f} s")
    sys.exit(bool(found))
