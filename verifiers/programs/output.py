"""Whether what a program wrote is what was expected.

| policy | reason |
|---|---|
| blanks at the end of lines and of the whole text do not count | editors and print differ in them |
| as many lines as expected | a correct prefix is not an answer |
| tokens of a line are compared one by one | the width of a gap carries nothing |
| two tokens are equal as texts, or as numbers where both are numbers | 0.50 is 0.5 |
| whole numbers are compared exactly | 10**20 + 1 is not 10**20 |
| otherwise to a relative 1e-6, at least 1e-9 absolute | the last digits of a division are the machine's |
"""

from __future__ import annotations

import re
from decimal import Context, Decimal

RELATIVE, ABSOLUTE = Decimal("1e-6"), Decimal("1e-9")

DIGITS = 9
"""Significant digits of a number that `stated_output` tells apart."""
FARTHEST = 28
"""Digits before the point up to which a number of this many and more is a whole one."""
LONGEST_STATED = 200_000
"""Characters of an output that is read for what it states."""

_NUMBER = re.compile(r"[+-]?(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})(?:[eE][+-]?\d{1,3})?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,400}", re.ASCII)


def same_output(found: str, expected: str) -> bool:
    """Whether the two texts agree by the table above. Linear in their lengths."""
    one, two = _lines(found), _lines(expected)
    return len(one) == len(two) and all(map(_same_line, one, two))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().replace("\r\n", "\n").split("\n")]


def _same_line(one: str, two: str) -> bool:
    if one == two:
        return True
    left, right = one.split(), two.split()
    return len(left) == len(right) and all(map(_same_token, left, right))


def _same_token(one: str, two: str) -> bool:
    if one == two:
        return True
    if not (_NUMBER.fullmatch(one) and _NUMBER.fullmatch(two)):
        return False
    left, right = Decimal(one), Decimal(two)
    if _WHOLE.fullmatch(one) and _WHOLE.fullmatch(two):
        return left.compare(right) == 0 if max(len(one), len(two)) <= 28 else int(one) == int(two)
    return abs(left - right) <= max(ABSOLUTE, RELATIVE * abs(right))


def stated_output(found: str) -> str | None:
    """One text for all outputs that are the same by the table above, but with numbers to `DIGITS` significant digits.

    None where nothing was written, or more than `LONGEST_STATED` characters. Linear.
    """
    if not found.strip() or len(found) > LONGEST_STATED:
        return None
    return "\n".join(" ".join(map(_stated_token, line.split())) for line in _lines(found))


def _stated_token(token: str) -> str:
    if not _NUMBER.fullmatch(token):
        return token
    if _WHOLE.fullmatch(token):
        return str(int(token))
    number = Decimal(token)
    if abs(number) <= ABSOLUTE:
        return "0"
    if abs(number) >= 10**FARTHEST:
        return str(number.normalize(_SHORT))
    number = number.normalize(_SHORT) if abs(number) < 10**DIGITS else number.to_integral_value()
    return str(int(number)) if number == number.to_integral_value() else str(number)


_SHORT = Context(prec=DIGITS)
