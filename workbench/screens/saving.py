"""Files of a rollout: text that the server sends and the browser saves. Nothing is written on the server's disk."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from workbench.errors import UsageError
from workbench.inspector.seen import Seen

SAVE = """(file) => {
  if (!file) { return; }
  const { name, type, text } = JSON.parse(file);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""


@dataclass(frozen=True)
class Buttons:
    """One a format; the picture of the strip is saved where the strip is, in the token view."""

    html: gr.Button
    csv: gr.Button
    json: gr.Button
    file: gr.Textbox
    """Where the text passes through, unseen."""


def buttons(screen: str) -> Buttons:
    """Lay them out."""
    with gr.Row(elem_id=f"{screen}-exports"):
        page, table, data = (
            gr.Button(text, size="sm", elem_id=f"{screen}-save-{kind}", min_width=110)
            for kind, text in (("html", "Page (HTML)"), ("csv", "Table (CSV)"), ("json", "Data (JSON)"))
        )
    return Buttons(page, table, data, gr.Textbox(visible="hidden", show_label=False, elem_id=f"{screen}-file"))


def file_of(seen: Seen | None, kind: str) -> str:
    """`{name, type, text}` as JSON. Raises UsageError where there is nothing to save."""
    from workbench.inspector.page import static, tables

    if seen is None or not len(seen):
        raise UsageError("there is no rollout to save. Nothing was written here yet. Roll out first.")
    makers: dict[str, tuple[str, Callable[[Seen], str]]] = {
        "html": ("text/html", static.page),
        "csv": ("text/csv", tables.table),
        "json": ("application/json", lambda one: tables.documents([one])),
    }
    mime, make = makers[kind]
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{seen.run or 'live'}-{seen.problem}-{seen.index}")[:80].strip("-.")
    return json.dumps({"name": f"{stem}.{kind}", "type": mime, "text": make(seen)})


def connect(made: Buttons, seat: Any, find: Callable[[Any], Seen | None], quiet: dict[str, Any]) -> None:
    """Wire the buttons: `find` is given what `seat` holds."""
    from workbench.screens import notify

    def maker(kind: str) -> Callable[[Any], str]:
        def make(held: Any) -> str:
            with notify.told():
                return file_of(find(held), kind)

        return make

    for kind, button in (("html", made.html), ("csv", made.csv), ("json", made.json)):
        button.click(maker(kind), seat, made.file, **quiet).success(None, made.file, js=SAVE, api_visibility="private")
