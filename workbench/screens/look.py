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


THEME = """() => {
  const dark = document.body.classList.toggle("dark");
  try { localStorage.setItem("opsd-theme", dark ? "dark" : "light"); } catch {}
  const here = new URL(location);
  here.searchParams.delete("__theme");
  history.replaceState(null, "", here);
}"""
"""The other theme, from now on in this browser; a theme in the address, gradio's own way, no longer speaks."""
KEPT = """<script>(() => {
  let kept = null;
  try { kept = localStorage.getItem("opsd-theme"); } catch {}
  if (!["light", "dark"].includes(kept) || new URL(location).searchParams.has("__theme")) return;
  const ground = document.createElement("style");
  ground.textContent = `body { background: var(--bg${kept === "dark" ? "-dark" : ""}); }`;
  document.head.append(ground);
  document.addEventListener("readystatechange", () => {
    document.querySelector("gradio-app").setAttribute("theme_mode", kept);
  }, { once: true });
})();</script>"""
"""In the head of the page, before anything is painted: what was chosen there stands, or else the system's theme."""


def themed(page: str) -> str:
    """The page as gradio serves it, with the theme that was chosen before; gradio itself forgets it."""
    return page.replace("</head>", KEPT + "</head>", 1)
