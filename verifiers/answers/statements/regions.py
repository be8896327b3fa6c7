"""Sets of reals as sorted, disjoint intervals."""

from __future__ import annotations

import math
from itertools import pairwise

from verifiers.answers.notation.tokens import Unreadable
from verifiers.answers.notation.trees import Node
from verifiers.answers.statements.forms import INFINITY, MINUS_INFINITY, Form, Group, Many, Piece, Quantity, Region
from verifiers.answers.values.evaluation import FLOATS, Evaluation, Undefined
from verifiers.answers.values.exact import rational
from verifiers.answers.values.polynomial import normal_form


def pieces_of(form: Form) -> tuple[Piece, ...]:
    """The intervals of a form that can be part of a union.

    Args:
        form: an interval, a set of numbers, or a union.

    Returns:
        Its intervals; single numbers as closed intervals of no length.

    Raises:
        Unreadable: for anything else.
    """
    if isinstance(form, Region):
        return form.pieces
    if isinstance(form, Group) and len(form.items) == 2 and form.left in "([":
        low, high = form.items
        if isinstance(low, Quantity) and isinstance(high, Quantity):
            return (Piece(low.node, high.node, form.left == "[", form.right == "]"),)
    if isinstance(form, Many) and form.braces and all(isinstance(item, Quantity) for item in form.items):
        nodes = [item.node for item in form.items if isinstance(item, Quantity)]
        return tuple(Piece(node, node, True, True) for node in nodes)
    raise Unreadable("a union of something else than intervals and sets of numbers")


def place(node: Node) -> float:
    """Where a number stands on the line, for sorting only.

    Raises:
        Unreadable: when it is not a real number floats can hold.
    """
    if node == INFINITY:
        return math.inf
    if node == MINUS_INFINITY:
        return -math.inf
    try:
        value, error = Evaluation(FLOATS, {}).of(node)
    except Undefined:
        raise Unreadable("an end of an interval that is no plain number") from None
    if abs(value.imag) > error:
        raise Unreadable("an end of an interval that is not real")
    return float(value.real)


def merged(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """The same set as sorted intervals that neither overlap nor touch.

    Raises:
        Unreadable: when an end cannot be placed, or an interval ends before it begins.
    """
    ordered = sorted(pieces, key=lambda piece: (place(piece.low), not piece.closed_low))
    result: list[Piece] = []
    for piece in ordered:
        low, high = place(piece.low), place(piece.high)
        if low > high or (low == high and not (piece.closed_low and piece.closed_high)):
            raise Unreadable("an interval that ends before it begins")
        if result and _joins(result[-1], piece):
            result[-1] = _joined(result[-1], piece)
        else:
            result.append(piece)
    return tuple(result)


def _joins(left: Piece, right: Piece) -> bool:
    if same_place(left.high, right.low):
        return left.closed_high or right.closed_low
    return place(left.high) > place(right.low)


def _joined(left: Piece, right: Piece) -> Piece:
    if same_place(left.high, right.high):
        high, closed = left.high, left.closed_high or right.closed_high
    elif place(left.high) > place(right.high):
        high, closed = left.high, left.closed_high
    else:
        high, closed = right.high, right.closed_high
    closed_low = left.closed_low or (right.closed_low and same_place(left.low, right.low))
    return Piece(left.low, high, closed_low, closed)


def without(points: tuple[Node, ...]) -> Region:
    """All reals but some numbers.

    Raises:
        Unreadable: when a number cannot be placed on the line.
    """
    ends = [MINUS_INFINITY, *sorted(points, key=place), INFINITY]
    return Region(tuple(Piece(low, high, False, False) for low, high in pairwise(ends)))


def same_place(a: Node, b: Node) -> bool:
    """Whether two ends are one number, as far as exact forms tell."""
    if a == b:
        return True
    x, y = rational(a), rational(b)
    if x is not None and y is not None:
        return x == y
    one, other = normal_form(a), normal_form(b)
    return one is not None and one == other
