"""When two numbers or expressions count as equal: exactly, by rounding, or by asking the worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from verifiers.answers.notation.trees import Node, symbols
from verifiers.answers.statements.forms import INFINITY, MINUS_INFINITY, Quantity
from verifiers.answers.values.evaluation import FLOATS
from verifiers.answers.values.exact import last_place, rational, terminates
from verifiers.answers.values.numeric import Finding, equal, near
from verifiers.answers.values.polynomial import normal_form

ENOUGH_DIGITS = 6
"""Significant digits from which a decimal may stand for a number that has no finite expansion."""


@dataclass(frozen=True)
class Question:
    """What plain forms leave open, for the worker: see `numeric.equal`, `proportional` and `near`."""

    kind: Literal["equal", "proportional", "same_direction", "near"]
    a: Node
    b: Node
    bound: Fraction = Fraction(0)
    """For `near`: how far the number `b` may be from `a`."""


class Undecided(Exception):
    """The comparison came to no result; `status` is the verdict's."""

    def __init__(self, status: Literal["unparsed", "timeout", "error"], reason: str) -> None:
        super().__init__(reason)
        self.status = status


Oracle = Callable[[Question], bool]
"""Answers a question or raises `Undecided`."""


def values_agree(a: Quantity, b: Quantity, ask: Oracle) -> bool:
    """Whether two quantities have the same value, units aside; the rule about decimals is here."""
    if a.value is not None and b.value is not None:
        return a.value == b.value or _rounds_to(a, b) or _rounds_to(b, a)
    if nodes_agree(a.node, b.node, ask):
        return True
    for decimal, exact in ((a, b), (b, a)):
        if decimal.digits >= ENOUGH_DIGITS and decimal.value and not symbols(exact.node) and not exact.digits:
            centre, radius = _rounding_window(decimal.value, decimal.digits)
            question = Question("near", exact.node, ("num", centre, 0), radius)
            return settled(near(exact.node, centre, radius, FLOATS), question, ask)
    return False


def _rounding_window(value: Fraction, digits: int) -> tuple[Fraction, Fraction]:
    """Centre and radius of the numbers that a decimal is the rounded or the truncated form of."""
    unit = last_place(value, digits)
    return value + (unit if value > 0 else -unit) / 4, 3 * unit / 4


def _rounds_to(decimal: Quantity, exact: Quantity) -> bool:
    if decimal.digits < ENOUGH_DIGITS or not decimal.value or exact.value is None or terminates(exact.value):
        return False
    centre, radius = _rounding_window(decimal.value, decimal.digits)
    return abs(exact.value - centre) < radius


def nodes_agree(a: Node, b: Node, ask: Oracle) -> bool:
    """Whether two expressions are equal almost everywhere: by normal form, by floats if they differ, else asked."""
    if a == b:
        return True
    if _infinite(a) or _infinite(b):
        return False
    x, y = rational(a), rational(b)
    if x is not None and y is not None:
        return x == y
    one, other = normal_form(a), normal_form(b)
    if one is not None and other is not None:
        return one == other
    return settled(equal(a, b, FLOATS), Question("equal", a, b), ask)


def _infinite(node: Node) -> bool:
    return node in (INFINITY, MINUS_INFINITY)


def settled(seen: Finding, question: Question, ask: Oracle) -> bool:
    """What floats have shown, or the worker's answer where they have not."""
    return False if seen == "different" else ask(question)
