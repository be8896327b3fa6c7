"""The only way to a toast. Gradio renders a toast as HTML and lets an image's address through: text is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from workbench.errors import WorkbenchError
from workbench.text import printable

LONGEST = 600
"""Characters of a message; the rest is in a file."""


def escaped(text: object) -> str:
    """Text that a toast shows as it is."""
    return html.escape(printable(text)[:LONGEST])


def info(text: object) -> None:
    """Say something that was done."""
    gr.Info(escaped(text), duration=4)


def warn(text: object) -> None:
    """Say something that needs a look."""
    gr.Warning(escaped(text), duration=8)


def error(text: object) -> gr.Error:
    """What a handler raises to end with a message: `raise notify.error(...)`."""
    return gr.Error(escaped(text), duration=10, print_exception=False)


@contextmanager
def told() -> Iterator[None]:
    """What is raised on purpose becomes a toast; a bug stays a bug, and the terminal has its traceback."""
    try:
        yield
    except WorkbenchError as problem:
        raise error(problem) from problem
