"""What surrounds the screens: the header, links, and where a page opens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import gradio as gr

from workbench.errors import UsageError
from workbench.screens import notify
from workbench.screens.links import Link
from workbench.screens.look import THEME
from workbench.screens.polling import LIVELY, PLACED, TOLD
from workbench.screens.stage import Opening, Stage, opening

if TYPE_CHECKING:
    from workbench.train.reporting import RunView

COPY = """(query) => {
  const link = location.origin + location.pathname + query;
  history.replaceState(null, "", link);
  if (navigator.clipboard) { navigator.clipboard.writeText(link).catch(() => {}); }
}"""
LISTEN = """() => {
  document.addEventListener("click", (event) => {
    if (event.isTrusted && event.target.closest("[role=tab]")) { window.opsdChose = true; }
  }, true);
}"""
OPEN = """(view) => {
  const tab = document.getElementById(`tab-${view}-button`);
  if (tab && !window.opsdChose) { tab.click(); }
}"""
"""Whoever chose a screen while the page's first answer was on its way is not called back from it."""


@dataclass(frozen=True)
class Header:
    """The components of the header."""

    copy: gr.Button
    query: gr.Textbox
    wish: gr.Textbox
    """The screen that a page would open on."""


def header() -> Header:
    """The title and two buttons; a line high."""
    with gr.Row(elem_id="app-header", equal_height=True):
        gr.Markdown("# OPSD workbench", elem_id="app-title", container=False)
        copy = gr.Button("Copy link", size="sm", elem_id="app-copy", scale=0, min_width=96)
        theme = gr.Button("Light / dark", size="sm", elem_id="app-theme", scale=0, min_width=104)
    query = gr.Textbox(visible="hidden", elem_id="app-query", show_label=False)
    wish = gr.Textbox(visible="hidden", elem_id="app-wish", show_label=False)
    theme.click(None, js=THEME, api_visibility="private")
    return Header(copy, query, wish)


def connect(demo: gr.Blocks, header: Header, stage: Stage) -> None:
    """The events between the header, the address of the page, and the screens."""

    def arrive(place: Link, request: gr.Request) -> tuple[Link, Opening, str]:
        link, wish = start(dict(request.query_params), stage)
        chosen = place.view not in ("", "live")  # before this answer began
        return replace(link, view=place.view) if chosen else link, wish, "" if chosen else link.view

    demo.load(None, js=LISTEN, api_visibility="private")
    arrived = demo.load(arrive, stage.place, [stage.place, stage.opened, header.wish], **PLACED)
    arrived.then(None, header.wish, js=OPEN, api_visibility="private")
    header.copy.click(lambda place: place.query, stage.place, header.query, **LIVELY).then(
        None, header.query, js=COPY, api_visibility="private"
    ).then(_copied, **TOLD)


def start(params: dict[str, str], stage: Stage) -> tuple[Link, Opening]:
    """Where a page opens: at its link; else on the newest run; else on Live, whose empty screen says what to do."""
    try:
        link = Link.parse(params)
    except UsageError as error:
        notify.warn(error)
        link = Link()
    run = stage.find(link.run) if link.run else None
    if link.run and run is None:
        notify.warn(f"no run '{link.run}' here. The link may be of another machine. Choose one on the screen Runs.")
        link = Link(view="runs")
    link = link if link.run or link.rollout or link.view else default_place(stage.runs())
    return link, opening(link) if link.rollout else Opening()


def default_place(runs: list[RunView]) -> Link:
    """The newest run, among the curves; without any, Live."""
    return Link(run=runs[0].name, view="runs") if runs else Link(view="live")


def moved(view: str, place: Link) -> Link:
    """The page's place after a tab was chosen."""
    return replace(place, view=view)


def _copied() -> None:
    notify.info("The link is copied, and stands in the address bar.")
