"""Whether expressions are equal, as numbers tell.

Equality is looked at where it can fail: at fixed pseudo-random points for every variable. A difference beyond the
rounding bounds is certain. Agreement of floats proves nothing: the worker settles it at hundreds of digits.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from verifiers.answers.notation.trees import Node, symbols
from verifiers.answers.values.evaluation import Evaluation, Field, Undefined, Value

Finding = Literal["different", "agree", "unclear"]

N_POINTS = 8
NEEDED_POINTS = 3
"""Points that must agree before expressions with variables count as equal."""

_SLACK = 16
"""Bounds are first order: only a difference of more than this many of them counts."""


@lru_cache(maxsize=256)
def _coordinate(name: str, k: int) -> Fraction:
    """A fixed value for a variable at the k-th point: positive at even points, of either sign at odd ones."""
    source = random.Random(f"{name}/{k}")
    value = Fraction(source.randrange(1 << 18, 9 << 18), 1 << 20)
    return -value if k % 2 and source.random() < 0.7 else value


def points(names: Iterable[str]) -> Iterator[dict[str, Fraction]]:
    """Where expressions in these variables are looked at; one empty point when there is none."""
    ordered = sorted(names)
    for k in range(N_POINTS if ordered else 1):
        yield {name: _coordinate(name, k) for name in ordered}


def has_i(node: Node) -> bool:
    """Whether the imaginary unit is written in an expression."""
    return node == ("const", "i") or any(isinstance(part, tuple) and has_i(part) for part in node)


def equal(a: Node, b: Node, field: Field) -> Finding:
    """Whether two expressions have the same value wherever both are defined.

    Over the reals unless one of them writes i: where only one side is real a point says nothing (`ln x^2` and
    `2 ln x`); where both leave the reals it counts only if no real point is left.

    Args:
        a: an expression.
        b: another.
        field: the numbers to evaluate over.

    Returns:
        `different` (shown), `agree` (at enough points, as well as the field can tell), or `unclear`.
    """
    names = symbols(a) | symbols(b)
    anywhere = has_i(a) or has_i(b) or not names
    needed = NEEDED_POINTS if names else 1
    real, elsewhere = 0, []
    for point in points(names):
        found, n_real = _look(a, b, Evaluation(field, point))
        if found == "unclear":
            continue
        if anywhere or n_real == 2:
            if found == "different":
                return "different"
            real += 1
        elif n_real == 0:
            elsewhere.append(found)
    if real >= needed:
        return "agree"
    if not real and len(elsewhere) >= needed:
        return "different" if "different" in elsewhere else "agree"
    return "unclear"


def _look(a: Node, b: Node, at: Evaluation) -> tuple[Finding, int]:
    """How two expressions compare at a point, and how many of them are real there."""
    try:
        (x, error_x), (y, error_y) = at.of(a), at.of(b)
    except Undefined:
        return "unclear", 0
    bound = _SLACK * (error_x + error_y)
    n_real = sum(abs(value.imag) <= bound for value in (x, y))
    if abs(x - y) > bound:
        return "different", n_real
    # Values that cancelled to nothing are measured by what cancelled.
    size = max(abs(x), abs(y))
    return ("agree" if _tells(bound, size if size > bound else at.scale, at.field) else "unclear"), n_real


def _tells(bound: Any, size: Any, field: Field) -> bool:
    """Whether an error bound is small beside a size, and small at all: sin(10^300) is near everything or nothing."""
    return bool(bound <= field.trust * min(size, 1))


def proportional(a: Node, b: Node, field: Field, positive: bool = False) -> Finding:
    """Whether a = c * b at all points for one constant c, positive if asked: then `a = 0` is the equation `b = 0`.

    Args:
        a: left minus right of one relation.
        b: left minus right of the other.
        field: the numbers to evaluate over.
        positive: whether the factor must be positive, as for inequalities.

    Returns:
        As `equal`.
    """
    first: tuple[Value, Value] | None = None
    agreeing = 0
    for point in points(symbols(a) | symbols(b)):
        at = Evaluation(field, point)
        try:
            x, y = at.of(a), at.of(b)
        except Undefined:
            continue
        if first is None:
            if abs(y[0]) <= _SLACK * y[1] or abs(x[0]) <= _SLACK * x[1]:
                continue
            first = (x, y)
            if positive and (x[0] / y[0]).real <= 0:
                return "different"
            continue
        # x / y = x0 / y0, written without division
        left, right = at.multiply(x, first[1]), at.multiply(y, first[0])
        if abs(left[0] - right[0]) > _SLACK * (left[1] + right[1]):
            return "different"
        agreeing += _tells(left[1] + right[1], max(abs(left[0]), abs(right[0])), field)
    return "agree" if agreeing >= NEEDED_POINTS else "unclear"


def near(node: Node, value: Fraction, bound: Fraction, field: Field) -> Finding:
    """Whether a constant expression lies strictly within `bound` of a number."""
    at = Evaluation(field, {})
    try:
        x, error = at.of(node)
        target, error_target = at.of(("num", value, 0))
    except Undefined:
        return "unclear"
    distance, room = abs(x - target), field.number(bound).real
    doubt = _SLACK * (error + error_target)
    if distance + doubt < room:
        return "agree"
    return "different" if distance - doubt >= room else "unclear"
