"""Equations and inequalities: a value with its name, a set of reals, or a relation in several variables."""

from __future__ import annotations

from typing import Protocol

from verifiers.answers.notation.grammar import parse
from verifiers.answers.notation.tokens import Token, Tokens, Unreadable
from verifiers.answers.notation.trees import Node, symbols
from verifiers.answers.notation.vocabulary import words
from verifiers.answers.statements.forms import INFINITY, MINUS_INFINITY, Form, Named, Piece, Quantity, Region, Relation
from verifiers.answers.values.polynomial import normal_form

_OPERATORS = frozenset({"=", "<", ">"})
_COMMANDS = frozenset({"le", "ge", "ne", "approx"})
_TURNED = {"<": ">", ">": "<", "le": "ge", "ge": "le", "ne": "ne", "=": "="}
# Names that are functions when a bracket follows; x(x+1) = 6 is an equation, not a value of x.
_FUNCTION_NAMES = words("f g h p q F G H P Q T S V N E C")
_NAMING_COMMANDS = words("angle measuredangle triangle overline vec widehat int sum prod lim gcd det arg max min oint")


class Reader(Protocol):
    """What this file needs of the reader of statements."""

    tokens: Tokens

    def form(self, lo: int, hi: int) -> Form:
        """Read a range of tokens."""
        ...


def relates(token: Token) -> bool:
    """Whether a token compares what stands on its sides."""
    return (token.kind == "op" and token.text in _OPERATORS) or (token.kind == "cmd" and token.text in _COMMANDS)


def read_relation(reader: Reader, parts: list[tuple[int, int]], signs: list[str]) -> Form:
    """Read a chain of relations.

    Args:
        reader: reads the sides.
        parts: token ranges of the sides.
        signs: the relations between them.

    Returns:
        A `Named` value, a plain value, a `Region` or a `Relation`.

    Raises:
        Unreadable: when the chain contradicts itself or mixes relations that do not chain.
    """
    if any(lo >= hi for lo, hi in parts):
        raise Unreadable("a relation without a side")
    if set(signs) == {"="}:
        return _equation(reader, parts)
    if signs == ["approx"]:
        # "sqrt(2) ~ 1.414" states the exact value and adds the other; "x ~ 1.414" has only the other.
        name = _label(reader.tokens, *parts[0])
        return Named(name, reader.form(*parts[1])) if name else reader.form(*parts[0])
    if "approx" in signs or "=" in signs:
        raise Unreadable("relations that do not chain")
    sides = [parse(reader.tokens, *part) for part in parts]
    if len(sides) == 2:
        return _one_sided(signs[0], *sides)
    return _between(signs, sides)


def _equation(reader: Reader, parts: list[tuple[int, int]]) -> Form:
    tokens = reader.tokens
    name = _label(tokens, *parts[0])
    if name is None and len(parts) == 2:
        other = _label(tokens, *parts[1])
        if other is not None and not _symbols_in(tokens, parts[0]):
            return Named(other, reader.form(*parts[0]))
    value = reader.form(*parts[-1])
    if name is None:
        return _unnamed(reader, parts, value)
    for part in parts[1:-1]:
        _refuse_contradiction(reader.form(*part), value)
    if isinstance(value, Quantity) and name in symbols(value.node):
        return _as_relation(tokens, parts[0], parts[-1])
    return Named(name, value)


def _unnamed(reader: Reader, parts: list[tuple[int, int]], value: Form) -> Form:
    """An equation whose left side is no name: between numbers, or in variables."""
    sides = [parse(reader.tokens, *part) for part in parts]
    if not any(symbols(side) for side in sides):
        for part in parts[:-1]:
            _refuse_contradiction(reader.form(*part), value, must_agree=True)
        return value
    if len(parts) > 2:
        raise Unreadable("a chain of equations")
    return Relation("=", _difference(*sides))


def _refuse_contradiction(stated: Form, value: Form, must_agree: bool = False) -> None:
    """`x = 4 = 5` states nothing; `x = 2 * 3 = 6` states 6, and sides that only a worker could judge pass."""
    if not (isinstance(stated, Quantity) and isinstance(value, Quantity)):
        raise Unreadable("a chain of equations between different things")
    if stated.value is not None and value.value is not None:
        agree: bool | None = stated.value == value.value
    else:
        one, other = normal_form(stated.node), normal_form(value.node)
        agree = None if one is None or other is None or symbols(stated.node) else one == other
    if agree is False or (must_agree and agree is None):
        raise Unreadable("an equation between different values")


def _as_relation(tokens: Tokens, left: tuple[int, int], right: tuple[int, int]) -> Relation:
    return Relation("=", _difference(parse(tokens, *left), parse(tokens, *right)))


def _difference(left: Node, right: Node) -> Node:
    return ("add", left, ("neg", right))


def relation_of(named: Named) -> Relation | None:
    """`y = 2x + 1` as the equation it is, when both sides are expressions."""
    if not isinstance(named.value, Quantity) or named.value.unit.known or named.value.percent:
        return None
    return Relation("=", _difference(("sym", named.name), named.value.node))


def _symbols_in(tokens: Tokens, part: tuple[int, int]) -> bool:
    try:
        return bool(symbols(parse(tokens, *part)))
    except Unreadable:
        return False


def _label(tokens: Tokens, lo: int, hi: int) -> str | None:
    """The name a side gives to a value: a variable, a word, `f(2)`, `AB`, `(x, y)`, an operator left to itself."""
    items = _undressed(tokens.items[lo:hi])
    text = "".join(token.text for token in items)
    if _is_variable(items):
        return text.replace("{", "") if "_" in text else text
    if all(token.kind == "word" for token in items):
        return " ".join(token.text.lower() for token in items)
    if items[0].kind == "cmd" and items[0].text in _NAMING_COMMANDS:
        return text
    if all(token.kind == "name" and token.text.isupper() for token in items):
        return text
    applied = items[0].kind == "name" and items[0].text in _FUNCTION_NAMES
    if len(items) > 3 and items[-1].text == ")" and (applied or tokens.partner[lo] == hi - 1):
        start = tokens.partner[hi - 1] - lo
        inside, before = items[start + 1 : -1], items[1:start]
        plain = all(token.kind in ("name", "num", "word") or token.text in (",", "-") for token in inside)
        if plain and all(token.text in ("'", "^", "{", "-", "1") for token in before):
            return text
    return None


def _undressed(items: tuple[Token, ...]) -> tuple[Token, ...]:
    """The measure of an angle as the angle, the length |AB| as AB."""
    if len(items) > 2 and items[0].text == "m" and items[1].text in ("angle", "measuredangle"):
        return items[1:]
    if len(items) > 3 and items[0].text == items[-1].text == "|" and all(item.text.isupper() for item in items[1:-1]):
        return items[1:-1]
    return items


def _is_variable(items: tuple[Token, ...]) -> bool:
    first = items[0]
    if first.kind not in ("name", "cmd") or first.text in ("e", "i", "pi", "infty"):
        return False
    if first.kind == "cmd" and len(items) == 1:
        return first.text not in _NAMING_COMMANDS and first.text.isalpha() and first.text not in ("frac", "sqrt")
    return len(items) == 1 or items[1].text == "_"


def _one_sided(sign: str, left: Node, right: Node) -> Form:
    if right[0] == "sym" and left[0] != "sym":
        sign, left, right = _TURNED[sign], right, left
    if left[0] != "sym" or left[1] in symbols(right):
        if sign in (">", "ge"):
            sign, left, right = _TURNED[sign], right, left
        return Relation(sign, _difference(left, right))
    name = str(left[1])
    if sign == "ne":
        return Region(
            (Piece(MINUS_INFINITY, right, False, False), Piece(right, INFINITY, False, False)),
            name,
        )
    if sign in ("<", "le"):
        return Region((Piece(MINUS_INFINITY, right, False, sign == "le"),), name)
    return Region((Piece(right, INFINITY, sign == "ge", False),), name)


def _between(signs: list[str], sides: list[Node]) -> Form:
    """`1 < x <= 2`, either way round."""
    if len(sides) != 3 or sides[1][0] != "sym":
        raise Unreadable("a chain of inequalities")
    if set(signs) <= {">", "ge"}:
        signs, sides = [_TURNED[sign] for sign in reversed(signs)], list(reversed(sides))
    if not set(signs) <= {"<", "le"}:
        raise Unreadable("inequalities that point both ways")
    low, high = sides[0], sides[2]
    return Region((Piece(low, high, signs[0] == "le", signs[1] == "le"),), str(sides[1][1]))
