"""How progress looks: live on a wide terminal, else a line a step, or JSON, or nothing. Results go to stdout.

Text of models, data and exceptions reaches a stream only through `printable`; rich gets `Text`, never markup.
A terminal that went away (a closed pipe) silences the reporter and does not stop the run.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from workbench.errors import UsageError, nearest
from workbench.text import printable
from workbench.train.reporting import StepLine, plain
from workbench.train.run_directory import encode

if TYPE_CHECKING:
    from rich.console import Group

    from workbench.records import Judged

NARROWEST = 80
REDRAWS = 4
"""A second."""
STEPS, ROLLOUT_LINES = 8, 8
"""What the live screen shows."""


class Reporter(Protocol):
    """Somebody to tell. A context manager: leaving it gives the terminal back."""

    def header(self, lines: Sequence[str]) -> None:
        """What will be done, before it is done: prompts, counts, where files go."""

    def phase(self, text: str) -> None:
        """What is being done right now."""

    def step(self, line: StepLine) -> None:
        """A step is done."""

    def rollout(self, judged: Judged, before: Sequence[str] = ()) -> None:
        """A rollout worth a look, beside what was written for its problem the last time it came."""

    def note(self, text: str) -> None:
        """An alarm, a warning, a fallback: shown by every reporter."""

    def result(self, name: str, text: str, data: Mapping[str, Any] | None = None) -> None:
        """What the user came for: `before`, `after`, `verdict`, `saved`."""

    def __enter__(self) -> Reporter:
        """Take the terminal."""
        ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give it back."""


class _Stream(io.TextIOBase):
    """A stream whose death is nobody's problem: writes to a closed pipe or terminal vanish."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "ascii"

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None
        return len(text)

    def lines(self, text: str) -> None:
        """ASCII, obeying nothing but the text's own line breaks."""
        self.write("".join(f"{plain(line)}\n" for line in text.split("\n")))


class Quiet:
    """Warnings and results only."""

    def __init__(self, stderr: TextIO, stdout: TextIO) -> None:
        """Progress goes to the first, results to the second."""
        self._progress, self._results = _Stream(stderr), _Stream(stdout)

    def header(self, lines: Sequence[str]) -> None:
        """Nothing."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def step(self, line: StepLine) -> None:
        """Nothing."""

    def rollout(self, judged: Judged, before: Sequence[str] = ()) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """A line on stderr."""
        self._progress.lines(f"note: {text}")

    def result(self, name: str, text: str, data: Mapping[str, Any] | None = None) -> None:
        """On stdout: the name in a column of its own; without a name (a table) as it stands."""
        self._results.lines(f"{name:<14} {text}".replace("\n", "\n" + " " * 15) if name else text)

    def __enter__(self) -> Quiet:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing to give back."""


class Plain(Quiet):
    """One line a step: for logs, pipes, narrow terminals and CI."""

    def header(self, lines: Sequence[str]) -> None:
        """All of it."""
        for line in lines:
            self._progress.lines(line)

    def step(self, line: StepLine) -> None:
        """One line."""
        self._progress.lines(line.text())


class Json(Quiet):
    """One JSON object a line on stdout, `event` first."""

    def header(self, lines: Sequence[str]) -> None:
        """Event `header`."""
        self._event("header", lines=list(lines))

    def phase(self, text: str) -> None:
        """Event `phase`."""
        self._event("phase", text=text)

    def step(self, line: StepLine) -> None:
        """Event `step`."""
        self._event("step", **line.as_dict())

    def rollout(self, judged: Judged, before: Sequence[str] = ()) -> None:
        """Event `rollout`."""
        self._event("rollout", **_rollout(judged), before=list(before))

    def note(self, text: str) -> None:
        """Event `note`."""
        self._event("note", text=text)

    def result(self, name: str, text: str, data: Mapping[str, Any] | None = None) -> None:
        """Event `result`, with the numbers behind the text."""
        self._event("result", name=name, text=text, data=dict(data or {}))

    def _event(self, event: str, **fields: Any) -> None:
        self._results.lines(encode({"event": event, **fields}))


class Live(Quiet):
    """A screen of the run: title, last steps, one rollout with its verdict; notes scroll above it."""

    def __init__(self, stderr: TextIO, stdout: TextIO, *, colour: bool = True, width: int | None = None) -> None:
        """Draws nothing before `with`."""
        from rich.console import Console
        from rich.live import Live as Screen

        super().__init__(stderr, stdout)
        self._console = Console(
            file=cast("TextIO", self._progress),
            force_terminal=True,
            no_color=not colour,
            width=width,
            highlight=False,
            emoji=False,
        )
        self._title, self._phase, self._shown = "", "", ""
        self._steps: deque[str] = deque(maxlen=STEPS)
        self._screen = Screen(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=REDRAWS,
            redirect_stdout=False,
        )

    def header(self, lines: Sequence[str]) -> None:
        """Printed once in full; its first line stays as the title."""
        self._title = printable(lines[0])[: 2 * NARROWEST] if lines else ""
        self._print("\n".join(lines))

    def phase(self, text: str) -> None:
        """The screen's last line."""
        self._phase = text

    def step(self, line: StepLine) -> None:
        """One more row."""
        self._steps.append(line.text())

    def rollout(self, judged: Judged, before: Sequence[str] = ()) -> None:
        """Replaces the one shown."""
        shown = _rollout(judged)
        lines = shown["text"].split("\n")
        more = [f"... {len(lines) - ROLLOUT_LINES} more lines"] if len(lines) > ROLLOUT_LINES else []
        head = f"{shown['status']}  problem {shown['problem']}  {shown['tokens']} tokens  {shown['reason']}"
        # A line of a thousand words would push the steps off the screen.
        body = [line[: 2 * NARROWEST] for line in (printable(head), *lines[:ROLLOUT_LINES])]
        earlier = [f"before: {text}"[: 2 * NARROWEST] for text in map(_one_line, before[:1])]
        self._shown = "\n".join([*body, *more, *earlier])

    def note(self, text: str) -> None:
        """Above the screen."""
        self._print(f"note: {text}", "bold")

    def result(self, name: str, text: str, data: Mapping[str, Any] | None = None) -> None:
        """On stdout, with the screen out of the way: both may be the same terminal."""
        drawing = self._screen.is_started
        if drawing:
            self._screen.transient = True
            self._screen.stop()
            self._screen.transient = False
        super().result(name, text, data)
        if drawing:
            self._screen.start()

    def __enter__(self) -> Live:
        """Start drawing."""
        self._screen.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Draw a last time and show the cursor again."""
        self._screen.stop()

    def _print(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text(self._safe(text), style=style))

    def _render(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        rows = [Text(self._safe(self._title), style="bold"), *(Text(self._safe(row)) for row in tuple(self._steps))]
        if self._shown:
            rows.append(Text(self._safe(self._shown), style="dim"))
        return Group(*rows, Text(self._safe(self._phase)))

    def _safe(self, text: str) -> str:
        """Printable, and within what the terminal's encoding can say (LANG=C)."""
        encoding = self._progress.encoding
        return printable(text, lines=True).encode(encoding, "backslashreplace").decode(encoding)


def choose(
    progress: str = "auto",
    stderr: TextIO | None = None,
    stdout: TextIO | None = None,
    environment: Mapping[str, str] | None = None,
) -> Reporter:
    """The reporter for `--progress`. Live needs a terminal of 80 columns that is not CI's; colour, no NO_COLOR."""
    err, out = stderr or sys.stderr, stdout or sys.stdout
    env = os.environ if environment is None else environment
    kinds = {"plain": Plain, "json": Json, "quiet": Quiet}
    if progress in kinds:
        return kinds[progress](err, out)
    if progress not in ("auto", "live"):
        raise UsageError(f"--progress {printable(progress)} is unknown. {nearest(progress, [*kinds, 'auto', 'live'])}")
    width = _width(err, env)
    able = err.isatty() and env.get("TERM", "") not in ("", "dumb")
    wanted = progress == "live" or (width >= NARROWEST and env.get("CI", "") in ("", "0", "false"))
    if able and wanted:
        return Live(err, out, colour=not env.get("NO_COLOR"), width=width)
    return Plain(err, out)


def silent() -> Reporter:
    """Of a process that another one speaks for."""
    return Quiet(io.StringIO(), io.StringIO())


def _width(stream: TextIO, environment: Mapping[str, str]) -> int:
    if (columns := environment.get("COLUMNS", "")).isdigit() and int(columns) > 0:
        return int(columns)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(stream.fileno()).columns
    return NARROWEST


def _one_line(text: str) -> str:
    return printable(text.replace("\n", " / "))


def _rollout(judged: Judged) -> dict[str, Any]:
    rollout, verdict = judged.rollout, judged.verdict
    return {
        "problem": rollout.problem.id,
        "text": rollout.text,
        "tokens": len(rollout.tokens),
        "stop": rollout.stop,
        "status": verdict.status,
        "extracted": verdict.extracted,
        "reason": verdict.reason,
    }
