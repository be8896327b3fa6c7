"""Where a completion first goes wrong: the first false statement about numbers, or else the wrong answer itself."""

from __future__ import annotations

import re
from fractions import Fraction

from workbench.inspector.diagnostics.answers import answer_positions
from workbench.inspector.diagnostics.record import TokenRecord, touching

_NUMBER = r"-?\d{1,15}(?:\.\d{1,9})?"
_SIGN = r"\s*(?:[+\-*/×÷−]|\\times|\\cdot|\\div)\s*"
_EQUATION = re.compile(
    rf"(?<![\w.+\-*/×÷−^=])({_NUMBER}(?:{_SIGN}{_NUMBER}){{1,8}})\s*=\s*({_NUMBER})(?![\w^]|\s*{_SIGN.strip()}?\d)"
)
_PIECE = re.compile(rf"{_SIGN.replace('(?:', '(')}({_NUMBER})")
_TIMES, _OVER, _MINUS = {"*", "×", "\\times", "\\cdot"}, {"/", "÷", "\\div"}, {"-", "−"}


def first_error(record: TokenRecord) -> tuple[int, int] | None:
    """[start, end) in tokens of the first error of a completion judged wrong; None where none can be placed.

    The first equation `a op b = c` of plain numbers that is false, else the last place where the wrong answer stands.
    A mistake in words is not seen, so this is the first error that a machine can prove, not the first there is.
    Source: own measure.
    """
    if record.verdict is None or record.verdict.status != "wrong":
        return None
    whole = "".join(record.text)
    for found in _EQUATION.finditer(whole):
        value = _value(found[1])
        if value is not None and value != Fraction(found[2]):
            at = touching(record.text, found.start(2), found.end(2))
            return (int(at[0]), int(at[-1]) + 1)
    at = answer_positions(record)
    return (int(at[0]), int(at[-1]) + 1) if len(at) else None


def _value(text: str) -> Fraction | None:
    """A chain of numbers and signs, products first; None for a division by zero."""
    first = re.match(_NUMBER, text)
    assert first is not None, "an equation begins with a number"
    terms = [Fraction(first[0])]
    for sign, digits in _PIECE.findall(text[first.end() :]):
        value = Fraction(digits)
        if sign in _TIMES:
            terms[-1] *= value
        elif sign in _OVER:
            if value == 0:
                return None
            terms[-1] /= value
        else:
            terms.append(-value if sign in _MINUS else value)
    return sum(terms, Fraction(0))
