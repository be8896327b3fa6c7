"""Text in tables, lists and bars, with buttons in them: a tree of elements that the browser builds node by node.

Gradio's Markdown and HTML components parse markup, and everything shown here comes from models, files and users. A
sheet gets JSON; tags and attributes come from a closed list, text stays text.
"""

from __future__ import annotations

import json
import math
from typing import Any

from workbench.screens.component import Drawn
from workbench.text import printable

Node = str | list[Any]
"""A text, or [tag, {attribute: value}, *children]. Attributes of our own: `act` makes a button that fires the event
`act` with the value, `share` (0 to 1) is the length of a bar."""


class Sheet(Drawn):
    """A tree, drawn. `act` is its event: `event._data["act"]` says which button."""

    def __init__(self, tree: list[Node] | None = None, **settings: Any) -> None:
        """`elem_id` and the like, as every component takes them."""
        super().__init__(shown(tree or []), "sheet", **settings)


def shown(tree: list[Node]) -> str:
    """The value of a sheet. ASCII, since lone surrogates cannot travel as UTF-8."""
    return json.dumps(tree, ensure_ascii=True, allow_nan=False)


def node(tag: str, *children: Node | None, **attributes: object) -> Node:
    """An element; `kind` is its class, `aria_label` becomes `aria-label`, what is None is left out."""
    named = {("class" if k == "kind" else k.replace("_", "-")): v for k, v in attributes.items() if v is not None}
    return [tag, named, *(child for child in children if child is not None)]


def table(head: list[Node], rows: list[list[Node]], caption: str = "", kind: str = "") -> Node:
    """A table whose first column names its rows."""
    return node(
        "table",
        node("caption", caption) if caption else None,
        node("thead", node("tr", *(node("th", cell, scope="col") for cell in head))),
        node(
            "tbody", *(node("tr", node("th", row[0], scope="row"), *(node("td", c) for c in row[1:])) for row in rows)
        ),
        kind=kind or None,
    )


def visible(text: str) -> str:
    """A token as text that can be seen: line feed, tab and outer spaces as signs, the rest as `printable` has it."""
    if not text:
        return "(nothing)"
    body = printable(text.replace("\n", "\u21b5").replace("\t", "\u21e5"))
    left, right = len(body) - len(body.lstrip(" ")), len(body) - len(body.rstrip(" "))
    return (
        body
        if not (left or right)
        else "\u2423" * left + body.strip(" ") + "\u2423" * (right if body.strip(" ") else 0)
    )


def number(value: float, digits: int = 3) -> str:
    """A number for a table; `not known` for NaN."""
    if math.isnan(value):
        return "not known"
    if math.isinf(value):
        return "-inf" if value < 0 else "inf"
    return f"{value:.{digits}f}".replace("-0.000", "0.000") if abs(value) < 10**-digits else f"{value:.{digits}f}"


def percent(logp: float) -> str:
    """A probability from its log, for a list of alternatives."""
    if math.isnan(logp):
        return "?"
    share = 100.0 * math.exp(min(logp, 0.0))
    return f"{share:.1f} %" if share >= 0.05 else "< 0.1 %" if share > 0 else "0 %"


def said(text: object, kind: str = "note") -> Node:
    """A line of prose."""
    return node("p", printable(text, lines=True), kind=kind)
