"""Components of our own: constant markup, script and style from files of the package, a JSON string between."""

from __future__ import annotations

import functools
from abc import ABCMeta
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta, updateable


class _Meta(ComponentMeta):
    """Gradio's without the .pyi file beside every file that defines a component: mypy would read it for the code."""

    def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> Any:
        if "__init__" in attrs:
            attrs["__init__"] = updateable(attrs["__init__"])  # type: ignore[no-untyped-call]
        return ABCMeta.__new__(cls, name, bases, attrs)


class Component(gr.HTML, metaclass=_Meta):
    """`gr.HTML` whose value is data that its script draws."""

    def postprocess(self, value: str | None) -> str | None:
        """The value as it is: a tag in what a model wrote is nothing that gradio should warn about."""
        return value

    def get_block_name(self) -> str:
        """The front end's name of it."""
        return "html"


@functools.cache
def packaged(name: str) -> str:
    """A script or style of this folder."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


class Drawn(Component):
    """Markup that never changes, filled by `NAME.js` with text from a JSON value: nothing in a value becomes markup."""

    def __init__(self, value: str, name: str, **settings: Any) -> None:
        """`name` is that of the script, the style and the one element the script fills."""
        super().__init__(
            value=value,
            html_template='<div class="' + name + '"></div>',
            css_template=packaged(f"{name}.css"),
            js_on_load=packaged(f"{name}.js"),
            apply_default_css=False,
            padding=False,
            **settings,
        )


def machine_text(value: str | None = None, *, copy: bool = True, **settings: Any) -> gr.Textbox:
    """A box with text of a machine's, to be read, and with `copy` to be taken along: a command, a log, a file."""
    more: dict[str, Any] = {"buttons": ["copy"]} if copy else {}
    return gr.Textbox(value, interactive=False, elem_classes="app-mono", **more, **settings)
