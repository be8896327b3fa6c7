"""What an answer can be once it is read: a number, a text, a tuple, a set of reals, an equation, ..."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from verifiers.answers.notation.trees import Node
from verifiers.answers.notation.units import NO_UNIT, Unit


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or an expression, with what it is counted in."""

    node: Node
    value: Fraction | None = None
    """Its exact value where it is rational; percent not yet divided out."""
    digits: int = 0
    """Significant digits when it is written as a decimal, else 0: a decimal may stand for a rounded value."""
    unit: Unit = NO_UNIT
    percent: bool = False
    base: str = ""
    """The base it is written in, as text; then `node` holds its digits read as decimal ones."""
    listed: tuple[Fraction, ...] = ()
    """The numbers between the commas of `1,234`, should it be a list after all."""


@dataclass(frozen=True, slots=True)
class Text:
    """Words, in one case and without punctuation."""

    words: str


@dataclass(frozen=True, slots=True)
class Choice:
    """A letter of a multiple-choice question, and what was written behind it."""

    letter: str
    rest: Form | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Items in brackets, in order: a tuple, a point, an interval, a vector."""

    left: str
    right: str
    items: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Many:
    """Items in no order: a set when written in braces, else the values of a bare list."""

    items: tuple[Form, ...]
    braces: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval of reals; a point when both ends are one node."""

    low: Node
    high: Node
    closed_low: bool
    closed_high: bool


@dataclass(frozen=True, slots=True)
class Region:
    """A union of intervals, and the variable it was written for, if one was."""

    pieces: tuple[Piece, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries."""

    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True, slots=True)
class Named:
    """`name = value`."""

    name: str
    value: Form


@dataclass(frozen=True, slots=True)
class Relation:
    """An equation or inequality that no single name solves: `difference` is left minus right."""

    sign: str
    """`=`, `ne`, `<` or `le`; the others are turned round."""
    difference: Node


@dataclass(frozen=True, slots=True)
class Literal:
    """A statement in no form of ours; it equals only the same text. `why` says what could not be read."""

    text: str
    why: str


Form = Quantity | Text | Choice | Group | Many | Region | Matrix | Named | Relation | Literal

INFINITY: Node = ("const", "inf")
MINUS_INFINITY: Node = ("neg", INFINITY)
EVERYTHING = Region((Piece(MINUS_INFINITY, INFINITY, False, False),))
NOTHING = Many((), braces=True)
