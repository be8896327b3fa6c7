"""How the app looks: one scale of type, calm colours, light and dark alike; nothing fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "DejaVu Sans Mono", "monospace")


def theme() -> gr.themes.Base:
    """Slate on white and on near-black, with one blue; system fonts."""
    made = gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        secondary_hue=gr.themes.colors.slate,
        neutral_hue=gr.themes.colors.slate,
        font=list(SANS),
        font_mono=list(MONO),
        text_size=gr.themes.sizes.text_md,
        spacing_size=gr.themes.sizes.spacing_md,
        radius_size=gr.themes.sizes.radius_sm,
    )
    # Quiet text keeps 4.5:1 on a field's grey too, and so does white on the one blue.
    return made.set(
        **{f"{name}_text_color": "*neutral_600" for name in _QUIET},
        **{f"{name}_text_color_dark": "*neutral_300" for name in _QUIET},
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        color_accent="*primary_600",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )


_QUIET = ("block_info", "block_label", "block_title")


def look() -> dict[str, Any]:
    """What `mount_gradio_app` takes."""
    return {"theme": theme(), "css_paths": [Path(__file__).with_name(name) for name in ("app.css", "live.css")]}
