"""Fresh pages that remember everything they said, asked for and opened: for pages that are not the app's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Visit:
    """A page and what it did: console lines and uncaught errors, addresses asked for, dialogs and windows."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    def strangers(self, *known: str) -> list[str]:
        """Addresses asked for that begin with none of the known ones."""
        return [url for url in self.asked if not url.startswith((*known, "data:", "blob:", "about:"))]


@contextmanager
def pages(browser: Any) -> Iterator[Callable[..., Visit]]:
    """A maker of pages, each in a profile of its own; all are closed at the end."""
    contexts: list[Any] = []

    def made(width: int = 1280, height: int = 900, *, dark: bool = False, **others: Any) -> Visit:
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **others)
        context.set_default_timeout(60_000)
        contexts.append(context)
        watched = Visit(context.new_page())

        def dismissed(dialog: Any) -> None:
            watched.opened.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page = watched.page
        page.on("dialog", dismissed)
        page.on("console", lambda message: watched.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: watched.said.append(f"uncaught: {error}"))
        page.on("request", lambda request: watched.asked.append(request.url))
        page.on("popup", lambda other: watched.opened.append(other.url))
        return watched

    yield made
    for context in contexts:
        context.close()
