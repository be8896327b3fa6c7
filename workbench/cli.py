"""From the command line to a `RunConfig`, and from an exception to a message and an exit code.

Nothing here imports torch: a wrong flag is answered before anything is loaded. Precedence is class default < stored
configuration of a resumed run < files left to right < flags; a flag that equals the default still wins.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from workbench.config import ALIASES, HINTS, RunConfig, flag
from workbench.config_files import Layer, build, from_text, merge, read_layer
from workbench.errors import InputError, Interrupted, UsageError, WorkbenchError, nearest
from workbench.text import printable

logger = logging.getLogger("workbench")
logger.addHandler(logging.NullHandler())  # a command adds the file; without one nothing leaks to the terminal

_LISTS = frozenset({"config"} | {name for name, hint in HINTS.items() if typing.get_origin(hint) is tuple})
_FLAGS = (*(flag(name) for name in (*HINTS, "config", *ALIASES)), "--help")
WIDTH = 119
"""Longest first line of a message."""


@dataclass(frozen=True, kw_only=True)
class _Command(RunConfig):
    """Distil a model against its own privileged view, and see whether it worked.

    Precedence: defaults < files from left to right < flags. `-` and `_` both work in flags. What is None here is the
    recipe's to say: `python -m workbench NAME` shows what it says.
    """

    config: tuple[str, ...] = ()
    """TOML or JSON files with these fields as keys; a run's run.json works too."""

    def __post_init__(self) -> None:
        """Checked when the layers are merged, so that messages do not pass through tyro."""


def parse(argv: Sequence[str]) -> RunConfig:
    """The configuration of a command line. Raises UsageError; `--help` prints and raises SystemExit(0)."""
    given = read_flags(argv)
    files = [read_layer(path) for path in given.pop("config", ())]
    said = merge([*files, given])
    if said.get("resume"):
        if said.get("fork"):
            raise UsageError(
                "--resume and --fork contradict each other. --resume goes on with a run, --fork starts another from "
                "its weights. Give one of them."
            )
        files = [_stored(said), *files]
    return build(merge([*files, given]))


def read_flags(argv: Sequence[str]) -> Layer:
    """The flags alone, typed: only what was said. Raises UsageError; `--help` prints and raises SystemExit(0)."""
    said: dict[str, list[str]] = {}
    for name, texts in _flags(argv):
        if name in _LISTS:
            said.setdefault(name, []).extend(_items(name, texts))
        else:
            said[name] = texts
    checked = {name: _value(name, texts) for name, texts in said.items()}
    parsed = _by_tyro([token for name, texts in said.items() for token in _canonical(name, texts)])
    return {name: getattr(parsed, name) for name in checked}


def _flags(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag's field with its values; `no_x` never appears, `--no-x` is x with the text `false`."""
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token in ("-h", "--help"):
            _by_tyro(["--help"])
        if not token.startswith("--"):
            raise UsageError(
                f"'{token}' is not a flag and no flag before it takes it. Flags start with --, see --help."
            )
        text, equals, value = token.partition("=")
        name, negated = _field(text)
        if HINTS.get(name) is bool:
            if equals:
                raise UsageError(f"{flag(name)} takes no value. Write {flag(name)} or --no-{flag(name)[2:]}")
            yield name, ["false" if negated else "true"]
        else:
            yield name, [value] if equals else _values(name, rest)


def _values(name: str, rest: list[str]) -> list[str]:
    """Take a flag's values off the front of `rest`: one, or for a list all up to the next flag."""
    values: list[str] = []
    while rest and not _is_flag(rest[0]) and (name in _LISTS or not values):
        values.append(rest.pop(0))
    if not values:
        raise UsageError(f"{flag(name)} needs a value. See --help for what it takes.")
    return values


def _items(name: str, texts: list[str]) -> list[str]:
    return [part for text in texts for part in text.split(",") if part] if name == "require" else texts


def _is_flag(token: str) -> bool:
    return token.startswith("--") or token == "-h"


def _field(text: str) -> tuple[str, bool]:
    """The field a flag names and whether it is negated. Raises UsageError with the nearest flag."""
    name = text[2:].replace("-", "_")
    name = ALIASES.get(name, name)
    if name in HINTS or name == "config":
        return name, False
    if name.startswith("no_") and HINTS.get(name[3:]) is bool:
        return name[3:], True
    raise UsageError(f"no flag {text}. {nearest(flag(name), _FLAGS)}")


def _value(name: str, texts: list[str]) -> Any:
    return tuple(texts) if name in _LISTS else from_text(name, texts[0])


def _canonical(name: str, texts: list[str]) -> list[str]:
    if HINTS.get(name) is bool:
        return [flag(name) if texts == ["true"] else f"--no-{flag(name)[2:]}"]
    # With `=`, a value may start with a dash.
    return [flag(name), *texts] if name in _LISTS else [f"{flag(name)}={texts[0]}"]


def _by_tyro(tokens: list[str]) -> _Command:
    """Let tyro parse what was checked. Raises UsageError for what it still refuses."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(_Command, prog="python -m workbench.opsd", args=tokens)
    except SystemExit as stop:
        if not stop.code:
            raise
        words = " ".join(re.sub(r"[│╭╮╰╯─|]+", " ", printable(complaint.getvalue(), lines=True)).split())
        raise UsageError(f"{words}. See --help.") from stop


def _stored(said: Layer) -> Layer:
    """The configuration that the run to resume was started with. Raises UsageError if there is no such run."""
    output, name = Path(said.get("output", RunConfig.output)), said.get("name")
    if name is None:
        runs = sorted(output.glob("*/run.json"), key=lambda p: p.stat().st_mtime)
        known = (
            f"The newest is {runs[-1].parent}: --resume --name {runs[-1].parent.name}" if runs else "There is none yet."
        )
        raise UsageError(f"--resume needs --name, the run to go on with. {known}")
    if not (output / name / "run.json").is_file():
        names = [p.parent.name for p in output.glob("*/run.json")]
        known = nearest(name, names) if names else f"{output} holds no runs. Leave --resume out to start one."
        raise UsageError(f"no run {output / name} to resume. {known}")
    stored = read_layer(output / name / "run.json")
    return {key: value for key, value in stored.items() if key not in ("name", "output")}


def run_command(body: Callable[[], int], *, debug: bool = False) -> int:
    """Run a command's body and return its exit code; what is raised on purpose becomes a message."""
    try:
        return body()
    except Interrupted as stop:  # asked for, so no error
        print(printable(str(stop)), file=sys.stderr)
        return stop.exit_code
    except WorkbenchError as error:
        logger.error("%s", error, exc_info=True)
        if not _said_elsewhere(error):
            _say_error(str(error), debug)
        return error.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `| head` does: not an error, but not done either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # the last line of defence: whatever it is, the user gets a sentence
        logger.error("bug", exc_info=True)
        _say_error(_bug(error), debug)
        return 1


def _said_elsewhere(error: WorkbenchError) -> bool:
    """Whether the first process of a run says the same: what is wrong with a command is wrong in each of them."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return False
    # What is wrong with a command may be so on one host alone: its own first process says it.
    told = "RANK" if error.shared else "LOCAL_RANK" if isinstance(error, (UsageError, InputError)) else None
    return told is not None and os.environ.get(told, "0") != "0"


def _bug(error: Exception) -> str:
    what = f"this is a bug in workbench ({type(error).__name__}: {_first_line(error)})."
    where = f"Details: {_log_file()}" if _log_file() else "Details: run it again with --debug"
    return f"{what} {where}; add the output of python -m workbench.doctor."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def _log_file() -> str | None:
    """The run's own log, if a run has got as far as opening it on the `workbench` logger."""
    files = [h.baseFilename for h in logger.handlers if isinstance(h, logging.FileHandler)]
    return os.path.relpath(files[-1]) if files else None


def _say_error(text: str, debug: bool) -> None:
    if debug:
        print(printable(traceback.format_exc(), lines=True), file=sys.stderr)
    print(fold(printable(f"error: {text}", lines=True)), file=sys.stderr)


def fold(text: str) -> str:
    """The text with its first line broken at a sentence's end (else a space) where it is longer than `WIDTH`."""
    first, newline, rest = text.partition("\n")
    if len(first) <= WIDTH:
        return text
    cut = max((m.end() for m in re.finditer(r"[.?;] ", first[: WIDTH + 1])), default=0)
    cut = cut or first.rfind(" ", 0, WIDTH + 1) + 1
    return f"{first[:cut].rstrip()}\n{first[cut:]}{newline}{rest}" if cut > 0 else text


class Arguments(argparse.ArgumentParser):
    """For the commands with two or three arguments: the standard parser, complaining in our words."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing usage."""
        raise UsageError(f"{message}. See {self.prog} --help")
