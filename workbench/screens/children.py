"""Training started from the app: a process of its own that outlives the app, spoken to through files and signals."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.config import HINTS, RunConfig, flag
from workbench.config_files import build, from_text
from workbench.config_files import flags as flags
from workbench.errors import UsageError
from workbench.text import printable
from workbench.train.interrupts import alive
from workbench.train.reporting import RunView, resume_command, view
from workbench.train.run_directory import check_name, made_up_name

CONSOLES = ".consoles"
"""Folder below the output in which what a run says on its terminal is kept: NAME.log."""
SHOWN = 24_000
"""Bytes of a log that a page shows."""

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""Run directory -> the process this app started for it; kept so that it is reaped."""
_guard = threading.Lock()


def configured(values: Mapping[str, Any]) -> RunConfig:
    """The configuration of a form: texts and booleans by field; empty leaves the default. Raises UsageError."""
    layer: dict[str, Any] = {}
    for name, value in values.items():
        default = RunConfig.__dataclass_fields__[name].default
        if isinstance(default, tuple):
            layer[name] = tuple(part for line in str(value or "").splitlines() if (part := line.strip()))
        elif HINTS[name] is bool:
            layer[name] = bool(value)
        elif value not in (None, ""):
            layer[name] = from_text(name, str(value).strip())
    return build(
        {name: value for name, value in layer.items() if value != RunConfig.__dataclass_fields__[name].default}
    )


def command(config: RunConfig) -> str:
    """The line that does the same in a terminal."""
    return shlex.join(["python", "-m", "workbench.opsd", *flags(config)])


def named(config: RunConfig) -> RunConfig:
    """With a name, made up where none was given: what is started must be found again."""
    from dataclasses import replace

    if config.name is not None:
        check_name(config.name)
        return config
    return replace(config, name=made_up_name(Path(config.output), config.recipe, config.model))


def start(config: RunConfig) -> tuple[RunConfig, bool]:
    """Start a run, or find it running: the configuration with its name, and whether a process was started.

    Idempotent by name: a second click, a second page or a reload starts nothing. Raises UsageError where the name
    belongs to a run that is over.
    """
    with _guard:
        config = named(config)
        path = Path(config.output) / str(config.name)
        if running(path):
            return config, False
        found = view(path)
        if found is not None and not (config.resume or config.fresh):
            raise UsageError(
                f"{path} exists ({found.state}, step {found.step}). Two runs cannot share a directory. "
                "Resume it, or give another name."
            )
        _spawn(path, flags(config))
        return config, True


def resume(run: RunView, steps: int | None) -> bool:
    """Go on with a run, up to `steps` in all where given; False where it runs already."""
    with _guard:
        if running(run.path):
            return False
        more = [] if steps is None else [flag("steps"), str(steps)]
        _spawn(run.path, shlex.split(resume_command(run.path, more))[3:])
        return True


def _spawn(path: Path, said: Sequence[str]) -> None:
    console = path.parent / CONSOLES / f"{path.name}.log"
    console.parent.mkdir(parents=True, exist_ok=True)
    with open(console, "ab") as out:
        out.write(f"$ {shlex.join(['python', '-m', 'workbench.opsd', *said])}\n".encode("utf-8", "backslashreplace"))
        out.flush()
        # A session of its own: Ctrl-C in the app's terminal, its closing and its death do not reach the training.
        _children[path.absolute()] = subprocess.Popen(
            [sys.executable, "-m", "workbench.opsd", *said],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "119"},
        )


def running(path: Path) -> bool:
    """Whether a process writes the run, or was started to."""
    child = _children.get(path.absolute())
    if child is not None and child.poll() is None:
        return True
    run = view(path)
    return run is not None and run.state in ("running", "stalled") and alive(run.status) is not False


def stop(path: Path) -> bool:
    """Ask a run to stop as Ctrl-C does; False where nothing runs. A second time stops it at once."""
    child, run = _children.get(path.absolute()), view(path)
    number = None
    if child is not None and child.poll() is None:
        number = child.pid
    elif run is not None and alive(run.status) is True and run.state in ("running", "stalled"):
        number = run.status["pid"]
    if number is None:
        return False
    os.kill(number, signal.SIGINT)
    return True


def exit_code(path: Path) -> int | None:
    """Of the process that this app started for a run; None while it runs, or where there was none."""
    child = _children.get(path.absolute())
    return None if child is None else child.poll()


def said(path: Path) -> str:
    """The end of what a run said: on the terminal it was started with here, else in its log."""
    for file in (path.parent / CONSOLES / f"{path.name}.log", path / "run.log"):
        try:
            with open(file, "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                stream.seek(max(0, size - SHOWN))
                text = stream.read().decode("utf-8", "replace")
        except OSError:
            continue
        return printable(text.partition("\n")[2] if size > SHOWN else text, lines=True)
    return ""


def dry_run(config: RunConfig) -> Iterator[str]:
    """What `--dry-run` says, growing; the process ends with the reader."""
    from dataclasses import replace

    said = [sys.executable, "-m", "workbench.opsd", *flags(replace(config, dry_run=True, progress="plain"))]
    child = subprocess.Popen(
        said,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "119"},
    )
    assert child.stdout is not None
    text = ""
    try:
        for line in child.stdout:
            text += printable(line.decode("utf-8", "replace"), lines=True)
            yield text
        code = child.wait()
        yield f"{text}\n{'nothing stands in the way' if code == 0 else f'exit code {code}: this would not run'}\n"
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        child.stdout.close()
