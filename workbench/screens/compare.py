"""The screen Compare."""

from __future__ import annotations

import gradio as gr

from workbench.screens.stage import Stage


def build(stage: Stage) -> None:
    """Lay the screen out, inside its tab."""
    gr.Markdown("This screen is empty.", elem_id="compare-empty")
