"""A base for components of our own: gradio's metaclass writes a .pyi file beside every source that defines one."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

import gradio as gr
from gradio.component_meta import updateable


class Plain(type(gr.HTML)):  # type: ignore[misc]
    """The metaclass without the file."""

    def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> Any:
        """As gradio's, but for the file."""
        attrs["__init__"] = updateable(attrs["__init__"])
        return ABCMeta.__new__(cls, name, bases, attrs)
