"""What this package says and what libraries warn of, in a run's own file: for the developer, not for the terminal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from workbench.text import printable


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


class _Handler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk must not fill the terminal too."""


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Everything this package says, and what libraries warn of, goes to a file in ASCII."""
    handler = _Handler(path, encoding="ascii", errors="backslashreplace", delay=True)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours, root = logging.getLogger("workbench"), logging.getLogger()
    level = ours.level
    ours.setLevel(min(level or logging.INFO, logging.INFO))
    root.addHandler(handler)
    logging.captureWarnings(True)  # what libraries deprecate is not for the user's terminal
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()
        ours.setLevel(level)
