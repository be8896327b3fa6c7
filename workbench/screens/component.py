"""A component of our own: constant markup, script and style from files beside this one, a JSON string between."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import component_meta

# gradio would write a stub beside the file of every subclass, which mypy then reads instead of the code.
component_meta.create_or_modify_pyi = lambda *_: None


@functools.cache
def packaged(name: str) -> str:
    """A script or style of this folder."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


class Drawn(gr.HTML):
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

    def get_block_name(self) -> str:
        """The front end's name of it."""
        return "html"
