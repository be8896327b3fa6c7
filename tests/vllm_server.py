"""A real vLLM server on the embedded model, in its own environment: started here, or named by WORKBENCH_SERVER."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from workbench.engine.serving.client import Replica
from workbench.errors import ServerError

PYTHON = os.environ.get("WORKBENCH_SERVER_PYTHON", ".venv-serve/bin/python")
PATIENCE = 300.0


@contextlib.contextmanager
def running(folder: Path, port: int, *flags: str) -> Iterator[str]:
    """Its address, once it answers; its whole process group is gone afterwards."""
    log = folder.with_name(f"{folder.name}-{port}.log")
    line = [sys.executable, "-m", "workbench.serve", "--python", PYTHON, "--folder", str(folder), "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen([*line, *flags], stdout=out, stderr=out, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process, log)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers. Raises AssertionError with the end of its log when it does not."""
    end, replica = time.monotonic() + PATIENCE, Replica(url, patience=5)
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(ServerError):
            replica.get("/version")
            return
        time.sleep(1)
    raise AssertionError(f"no server at {url}:\n" + log.read_text(errors="replace")[-3000:])
