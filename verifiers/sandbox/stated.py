"""What a value states, as one text: programs are compared by it where nobody knows what is right.

>>> from verifiers.sandbox.data import read, write
>>> stated(read(write([0.1 + 0.2, True]))) == stated(read(write((0.3, 1))))
True
"""

from __future__ import annotations

import math

from verifiers.sandbox.data import Data, canonical

DIGITS = 9
"""Significant digits of a float that are told apart: two orders of computation differ by less."""
MOST = 200_000
"""Parts and characters of a value that is read: a text of everything would keep the caller busy."""


def stated(node: Data) -> str | None:
    """One text for all values that are the same by `data.equal`, but with floats to `DIGITS` significant digits.

    A tolerance would not do: of three values the outer two may differ. None for what states nothing: not-a-number and
    what is no plain data equal nothing, and more than `MOST` is not read.
    """
    try:
        return canonical(_rounded(node, [MOST]))
    except (ArithmeticError, ValueError, RecursionError):
        return None


def _rounded(node: Data, left: list[int]) -> Data:
    tag, payload = node
    left[0] -= 1 + (len(payload) if isinstance(payload, str | bytes) else 0)
    left[0] -= payload.bit_length() // 4 if isinstance(payload, int) else 0
    if left[0] < 0:
        raise ValueError("too much")
    if isinstance(payload, tuple):
        return tag, tuple([_rounded(part, left) for part in payload])
    if tag == "opaque" or payload != payload:
        raise ValueError("equals nothing")
    if tag == "float":
        return tag, _round(payload)
    return (tag, complex(_round(payload.real), _round(payload.imag))) if tag == "complex" else node


def _round(x: float) -> float:
    """To `DIGITS` significant digits, and never coarser than whole numbers."""
    if not math.isfinite(x):
        return x
    return float(f"{x:.{DIGITS}g}" if abs(x) < 10**DIGITS else round(x))
