"""A real Chromium, and pages that remember everything they said, asked for and opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def absent(reason: str) -> None:
    """Skip with the reason; where continuous integration promises a browser its lack is a failure."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser a session."""
    sync_api = pytest.importorskip("playwright.sync_api") if not os.environ.get("CI") else None
    if sync_api is None:
        from playwright import sync_api
    if not Path(CHROMIUM).exists():
        absent(f"no browser at {CHROMIUM}: install chromium, or set CHROMIUM")
    with sync_api.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield found
        found.close()


@dataclass
class Watched:
    """A page and what it did: console lines, uncaught errors, addresses asked for, dialogs, new windows."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    def strangers(self, *known: str) -> list[str]:
        """Addresses asked for that begin with none of the known ones."""
        return [url for url in self.asked if not url.startswith((*known, "data:", "blob:", "about:"))]


@pytest.fixture
def page_watched(browser: Any) -> Iterator[Any]:
    """A maker of fresh pages: `page_watched(width, height, dark)` in a profile of its own."""
    contexts: list[Any] = []

    def made(width: int = 1280, height: int = 900, *, dark: bool = False, **others: Any) -> Watched:
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **others)
        contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.on("console", lambda message: watched.said.append(f"{message.type}: {message.text}"))
        watched.page.on("pageerror", lambda error: watched.said.append(f"uncaught: {error}"))
        watched.page.on("request", lambda request: watched.asked.append(request.url))
        watched.page.on("popup", lambda other: watched.opened.append(other.url))

        def dismissed(dialog: Any) -> None:
            watched.opened.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        watched.page.on("dialog", dismissed)
        return watched

    yield made
    for context in contexts:
        context.close()
