"""Whether two read answers state the same: exact where forms allow, by an oracle where only many digits tell.

The choices made here, each with its reason, are the rows about comparing of `verifiers.policy`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal as OneOf

from verifiers.answers.notation.tokens import Unreadable
from verifiers.answers.notation.trees import Node, symbols
from verifiers.answers.notation.units import Unit, unit_of
from verifiers.answers.statements.agreement import Oracle, Question, Undecided, nodes_agree, settled, values_agree
from verifiers.answers.statements.forms import (
    Choice,
    Form,
    Group,
    Literal,
    Many,
    Matrix,
    Named,
    Piece,
    Quantity,
    Region,
    Relation,
    Text,
)
from verifiers.answers.statements.regions import merged, pieces_of
from verifiers.answers.statements.relations import relation_of
from verifiers.answers.values.evaluation import FLOATS
from verifiers.answers.values.exact import rational
from verifiers.answers.values.numeric import proportional
from verifiers.answers.values.polynomial import normal_form

_UPRIGHT = re.compile(r"\\(?:text[a-z]{0,6}|mathrm|mbox)\s{0,4}\{([^{}]{0,2048})\}")
_WORD = re.compile(r"[A-Za-z]{4}")
_WORDS = re.compile(r"[A-Za-z]{3,}")

MOST_MATCHED = 120
"""Items of an unordered list that are matched one by one."""


def same(a: Form, b: Form, ask: Oracle) -> bool:
    """Whether two forms state the same. Reflexive on readable forms and symmetric; not transitive (5 cm, 5, 5 m).

    Args:
        a: one answer.
        b: the other.
        ask: answers what plain forms leave open.

    Returns:
        Whether they state the same by the policies of this file.

    Raises:
        Undecided: when a part cannot be compared at all.
    """
    if a == b:
        return True
    if isinstance(a, Literal) or isinstance(b, Literal):
        return _same_literal(a, b)
    for kinds, rule in _RULES:
        if isinstance(a, kinds[0]) and isinstance(b, kinds[1]):
            return rule(a, b, ask)
        if isinstance(b, kinds[0]) and isinstance(a, kinds[1]):
            return rule(b, a, ask)
    return False


def _same_literal(a: Form, b: Form) -> bool:
    if isinstance(a, Literal) and isinstance(b, Literal) and squeezed(a.text) == squeezed(b.text):
        return True
    unread = a if isinstance(a, Literal) else b
    raise Undecided("unparsed", unread.why if isinstance(unread, Literal) else "")


def squeezed(text: str) -> str:
    """Text without blanks and commands that only set apart, in one case if it is words; two numbers stay two."""
    text = _UPRIGHT.sub(r"\1", text)
    kept = []
    for before, sign, after in zip(" " + text, text, text[1:] + " ", strict=False):
        if sign != " " or (before.isalnum() and after.isalnum() and before.isdigit() == after.isdigit()):
            kept.append(sign)
    joined = "".join(kept).strip()
    if "\\" in joined or not _WORD.search(joined):
        return joined
    return _WORDS.sub(lambda word: word[0].lower(), joined)


# numbers and expressions


def _quantities(a: Quantity, b: Quantity, ask: Oracle) -> bool:
    if a.base != b.base and a.base and b.base:
        return False
    if (a.base or b.base) and (a.node if a.value is None else a.value) != (b.node if b.value is None else b.value):
        return False
    a, b = _in_letters(a, b.unit), _in_letters(b, a.unit)
    if a.unit.conflicts(b.unit):
        return False
    if a.percent != b.percent:
        part, other = (a, b) if a.percent else (b, a)
        if other.unit.known:
            return False
        hundredth = Fraction(1, 100)
        shared = Quantity(
            ("mul", part.node, ("num", hundredth, 0)),
            None if part.value is None else part.value * hundredth,
            part.digits,
        )
        return values_agree(shared, other, ask) or values_agree(part, other, ask)
    return values_agree(a, b, ask)


def _in_letters(quantity: Quantity, unit: Unit) -> Quantity:
    """`5 m` with its letter as the unit m, if the other side says that m is one; else as it is."""
    node = quantity.node
    if unit.known and not quantity.unit.known and node[0] == "mul" and len(node) == 3 and node[2][0] == "sym":
        named = unit_of([node[2][1]])
        if named is not None and named.known == unit.known:
            return replace(quantity, node=node[1], value=rational(node[1]), unit=named)
    return quantity


# words and letters


def _quantity_text(a: Quantity, b: Text, ask: Oracle) -> bool:
    letters = _spelled(a.node)
    return bool(letters) and letters.casefold() == b.words.replace(" ", "")


def _quantity_choice(a: Quantity, b: Choice, ask: Oracle) -> bool:
    if a.node == ("sym", b.letter):
        return True
    return b.rest is not None and same(a, b.rest, ask)


def _choices(a: Choice, b: Choice, ask: Oracle) -> bool:
    return a.letter == b.letter


def _choice_other(a: Choice, b: Form, ask: Oracle) -> bool:
    return a.rest is not None and same(a.rest, b, ask)


def _spelled(node: Node) -> str:
    """The letters of a product of single letters, in order: `Bob` read as mathematics; empty for anything else."""
    factors = node[1:] if node[0] == "mul" else (node,)
    if all(factor[0] in ("sym", "const") and len(factor[1]) == 1 for factor in factors):
        return "".join(factor[1] for factor in factors)
    return ""


def _texts(a: Text, b: Text, ask: Oracle) -> bool:
    return a.words == b.words


# several items


def _groups(a: Group, b: Group, ask: Oracle) -> bool:
    if (a.left, a.right) != (b.left, b.right):
        return False
    return _in_order(a.items, b.items, ask)


def _in_order(a: Sequence[Form], b: Sequence[Form], ask: Oracle) -> bool:
    return len(a) == len(b) and all(same(x, y, ask) for x, y in zip(a, b, strict=True))


def _manies(a: Many, b: Many, ask: Oracle) -> bool:
    if a.braces and b.braces:
        a, b = Many(tuple(dict.fromkeys(a.items))), Many(tuple(dict.fromkeys(b.items)))
    if len(a.items) != len(b.items) or _names_missing(a, b) or _names_missing(b, a):
        return False
    if len(a.items) > MOST_MATCHED:
        raise Undecided("unparsed", f"unordered lists of more than {MOST_MATCHED} items")
    return matched(a.items, b.items, ask)


def _names_missing(a: Many, b: Many) -> bool:
    """Whether one list tells which value is whose (`a = 1, b = 2`) and the other does not: order would have to."""
    names = {"x" if item.name.startswith("x_") else item.name for item in a.items if isinstance(item, Named)}
    return len(names) > 1 and not all(isinstance(item, Named) for item in b.items)


def matched(a: Sequence[Form], b: Sequence[Form], ask: Oracle) -> bool:
    """Whether the items of two lists of one length pair up, whatever their order (equal ones first, then greedily)."""
    left = list(b)
    rest = []
    for item in a:
        if item in left:
            left.remove(item)
        else:
            rest.append(item)
    for item in rest:
        partner, doubt = _partner(item, left, ask)
        if partner is None:
            if doubt is not None:
                raise doubt
            return False
        left.pop(partner)
    return True


def _partner(item: Form, others: Sequence[Form], ask: Oracle) -> tuple[int | None, Undecided | None]:
    doubt: Undecided | None = None
    for index, other in enumerate(others):
        try:
            if same(item, other, ask):
                return index, None
        except Undecided as reason:
            if reason.status != "unparsed":
                raise
            doubt = reason
    return None, doubt


def _quantity_many(a: Quantity, b: Many, ask: Oracle) -> bool:
    """`1,234` against a list: then its commas separate."""
    if b.braces or len(a.listed) != len(b.items):
        return False
    return matched([Quantity(("num", value, 0), value) for value in a.listed], b.items, ask)


def _many_group(a: Many, b: Group, ask: Oracle) -> bool:
    """`x = 1, y = 2` is the point (1, 2), its names in alphabetical order; `[1, 2, 3]` may be a bare list."""
    named = [item for item in a.items if isinstance(item, Named)]
    if len(named) == len(a.items) and (b.left, b.right) == ("(", ")"):
        return _in_order([item.value for item in sorted(named, key=lambda item: item.name)], b.items, ask)
    if not a.braces and (b.left, b.right) == ("[", "]") and len(b.items) != 2:  # two would be an interval
        return _in_order(a.items, b.items, ask)
    return False


def _matrices(a: Matrix, b: Matrix, ask: Oracle) -> bool:
    if len(a.rows) != len(b.rows) or len(a.rows[0]) != len(b.rows[0]):
        return False
    return all(_in_order(x, y, ask) for x, y in zip(a.rows, b.rows, strict=True))


def _matrix_group(a: Matrix, b: Group, ask: Oracle) -> bool:
    if (b.left, b.right) != ("(", ")") or (len(a.rows) > 1 and len(a.rows[0]) > 1):
        return False
    return _in_order([entry for row in a.rows for entry in row], b.items, ask)


# sets of reals, equations


def _regions(a: Region, b: Region, ask: Oracle) -> bool:
    if a.name and b.name and a.name != b.name:
        return False
    try:
        one, other = merged(a.pieces), merged(b.pieces)
    except Unreadable as reason:
        raise Undecided("unparsed", str(reason)) from None
    return len(one) == len(other) and all(_pieces(x, y, ask) for x, y in zip(one, other, strict=True))


def _pieces(a: Piece, b: Piece, ask: Oracle) -> bool:
    if (a.closed_low, a.closed_high) != (b.closed_low, b.closed_high):
        return False
    return nodes_agree(a.low, b.low, ask) and nodes_agree(a.high, b.high, ask)


def _region_other(a: Region, b: Form, ask: Oracle) -> bool:
    try:
        pieces = merged(pieces_of(b))
    except Unreadable:  # no interval: a point, or a pair whose ends do not follow
        return False
    return bool(pieces) and _regions(a, Region(pieces), ask)


def _named(a: Named, b: Named, ask: Oracle) -> bool:
    if a.name == b.name:
        return same(a.value, b.value, ask)
    one, other = relation_of(a), relation_of(b)
    if one is None or other is None or a.name not in symbols(other.difference):
        return False
    return _relations(one, other, ask)


def _named_relation(a: Named, b: Relation, ask: Oracle) -> bool:
    relation = relation_of(a)
    return relation is not None and _relations(relation, b, ask)


def _relations(a: Relation, b: Relation, ask: Oracle) -> bool:
    if a.sign != b.sign:
        return False
    positive = a.sign in ("<", "le")
    one, other = normal_form(a.difference), normal_form(b.difference)
    if one is not None and one == other:
        return True
    seen = proportional(a.difference, b.difference, FLOATS, positive)
    kind: OneOf["proportional", "same_direction"] = "same_direction" if positive else "proportional"
    return settled(seen, Question(kind, a.difference, b.difference), ask)


def _named_other(a: Named, b: Form, ask: Oracle) -> bool:
    return same(a.value, b, ask)


_ANY = (Quantity, Text, Choice, Group, Many, Region, Matrix, Named, Relation)
_RULES: tuple[tuple[tuple[type | tuple[type, ...], type | tuple[type, ...]], Callable[..., bool]], ...] = (
    ((Quantity, Quantity), _quantities),
    ((Named, Named), _named),
    ((Named, Relation), _named_relation),
    ((Named, _ANY), _named_other),
    ((Choice, Choice), _choices),
    ((Quantity, Choice), _quantity_choice),
    ((Choice, _ANY), _choice_other),
    ((Text, Text), _texts),
    ((Quantity, Text), _quantity_text),
    ((Quantity, Many), _quantity_many),
    ((Group, Group), _groups),
    ((Many, Many), _manies),
    ((Many, Group), _many_group),
    ((Matrix, Matrix), _matrices),
    ((Matrix, Group), _matrix_group),
    ((Region, Region), _regions),
    ((Region, _ANY), _region_other),
    ((Relation, Relation), _relations),
)
"""Pairs of kinds, each tried both ways round; the first that fits decides, none means different kinds: not the same."""
