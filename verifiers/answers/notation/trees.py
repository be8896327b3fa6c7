"""Trees of expressions.

A tree is a nested tuple whose first item names the node:

    ("num", Fraction, significant digits of a decimal or 0)   ("sym", name)   ("const", "pi" | "e" | "i" | "inf")
    ("add", node, ...)  ("mul", node, ...)  ("div", a, b)  ("pow", a, b)  ("neg", a)  ("root", n, a)
    ("fn", name, a)  ("log", base, a)  ("fact", a)  ("binom", n, k)  ("abs", a)  ("floor", a)  ("ceil", a)
    ("deg", a)  ("pm", a)  ("mp", a): plus or minus, to be expanded by `branches`
"""

from __future__ import annotations

from typing import Any

Node = tuple[Any, ...]


def signed(sign: str, node: Node) -> Node:
    """A tree under one of the signs + - pm mp."""
    if sign == "+":
        return node
    if sign == "-":
        return ("num", -node[1], node[2]) if node[0] == "num" else ("neg", node)
    return (sign, node)


def product(factors: list[Node]) -> Node:
    """The product of one or more trees."""
    return factors[0] if len(factors) == 1 else ("mul", *factors)


def branches(node: Node) -> list[Node]:
    """The one or two expressions that a tree with plus-minus signs stands for; all its signs move together."""
    if not _has_choice(node):
        return [node]
    return [_choose(node, upper=True), _choose(node, upper=False)]


def _has_choice(node: Node) -> bool:
    return node[0] in ("pm", "mp") or any(isinstance(part, tuple) and _has_choice(part) for part in node)


def _choose(node: Node, upper: bool) -> Node:
    if node[0] in ("pm", "mp"):
        inner = _choose(node[1], upper)
        return inner if (node[0] == "pm") == upper else signed("-", inner)
    return tuple(_choose(part, upper) if isinstance(part, tuple) else part for part in node)


def symbols(node: Node) -> frozenset[str]:
    """Names of the variables in a tree."""
    if node[0] == "sym":
        return frozenset({node[1]})
    found: frozenset[str] = frozenset()
    for part in node:
        if isinstance(part, tuple):
            found |= symbols(part)
    return found
