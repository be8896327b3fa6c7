"""Answers that are recognised whole, by how they are spelled: times of day and bare choice letters."""

from __future__ import annotations

import re
from fractions import Fraction

from verifiers.answers.notation.units import Unit
from verifiers.answers.statements.forms import Choice, Form, Quantity

_CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))?\s?(?:([AaPp])\.?\s?[Mm]\.?)?", re.ASCII)
_UPRIGHT = re.compile(r"\\(?:text|mathrm|mbox)\s?\{\s?([^{}]{0,16})\}")
_LETTER = re.compile(r"([A-J])\s?[).:]")


def spelled(text: str) -> Form | None:
    """The form of a tidied answer that is a time of day (`7:30 p.m.`, `7:00`) or a marked letter (`B)`).

    Args:
        text: what `tidy` returned, without the full stop of its sentence.

    Returns:
        A quantity whose unit is the half of the day, a choice, or None for everything else. `7:30` alone is left to
        be the ratio that it may be; it equals `7:30 p.m.` as any number equals itself with a unit.
    """
    letter = _LETTER.fullmatch(text)
    if letter is not None:
        return Choice(letter[1])
    clock = _CLOCK.fullmatch(_UPRIGHT.sub(r"\1", text).strip())
    if clock is None or not (clock[3] or clock[2] == "00"):
        return None
    hours, minutes = int(clock[1]), int(clock[2] or 0)
    if hours > 24 or minutes > 59:
        return None
    node = ("num", Fraction(hours), 0)
    unit = Unit(frozenset({f"{clock[3].lower()}m"}) if clock[3] else frozenset())
    if not minutes:
        return Quantity(node, Fraction(hours), unit=unit)
    return Quantity(("div", node, ("num", Fraction(minutes), 0)), Fraction(hours, minutes), unit=unit)
