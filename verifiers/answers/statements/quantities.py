"""Numbers and expressions with what surrounds them: currency, units, percent, scale words, bases."""

from __future__ import annotations

import re
from fractions import Fraction

from verifiers.answers.notation.grammar import parse
from verifiers.answers.notation.tokens import ANGLES, Token, Tokens, Unreadable
from verifiers.answers.notation.trees import Node, branches
from verifiers.answers.notation.units import CURRENCY, LETTER_UNITS, SCALES, Unit, unit_of
from verifiers.answers.statements.forms import Quantity
from verifiers.answers.values.exact import rational


def scaled(node: Node) -> Quantity:
    """A bare quantity of an expression."""
    return Quantity(node, rational(node), decimal_digits(node))


def decimal_digits(node: Node) -> int:
    """Significant digits when an expression is one decimal, perhaps signed or in scientific notation; else 0."""
    if node[0] == "num":
        return int(node[2])
    if node[0] == "neg":
        return decimal_digits(node[1])
    if node[0] == "mul" and len(node) == 3 and node[2][0] == "pow" and node[2][1] == ("num", Fraction(10), 0):
        return decimal_digits(node[1])
    return 0


def read_quantity(tokens: Tokens, lo: int, hi: int) -> list[Quantity]:
    """Read `tokens[lo:hi]` as a quantity.

    Args:
        tokens: a tokenised answer.
        lo: its first token.
        hi: one past its last.

    Returns:
        One quantity, or two for an expression with plus-minus signs.

    Raises:
        Unreadable: when it is none.
    """
    items = tokens.items
    negative, lo, money = _currency(items, lo, hi)
    end = _tail_start(tokens, lo, hi)
    unit, percent, scale = _tail(items[end:hi])
    if money is not None:
        if percent or (unit.known and unit != money):
            raise Unreadable("two units")
        unit = money
    based = _in_base(tokens, lo, end)
    if based is not None:
        digits, base = based
        value = Fraction(int(digits)) if digits.isdigit() else None
        written: Node = ("sym", f"digits {digits}") if value is None else ("num", value, 0)
        return [Quantity(written, value, base=base, unit=unit)]
    listed = _groups(items[lo]) if end - lo == 1 else ()
    quantities = []
    for node in branches(parse(tokens, lo, end)):
        node = ("neg", node) if negative else node
        node = node if scale == 1 else ("mul", node, ("num", Fraction(scale), 0))
        quantities.append(Quantity(node, rational(node), decimal_digits(node), unit, percent, listed=listed))
    return quantities


def _currency(items: tuple[Token, ...], lo: int, hi: int) -> tuple[bool, int, Unit | None]:
    """Whether a minus stands before a currency sign, where the number starts, and the currency."""
    signed = hi - lo > 1 and items[lo].kind == "op" and items[lo].text in "+-"
    at = lo + signed
    if at < hi and items[at].kind == "op" and items[at].text in CURRENCY:
        return signed and items[lo].text == "-", at + 1, unit_of([items[at].text.lstrip("\\")])
    return False, lo, None


def _tail_start(tokens: Tokens, lo: int, hi: int) -> int:
    """Where the unit begins: at the first word, percent or currency sign, or a degree sign that ends the number."""
    items, at = tokens.items, lo
    angle = any(token.kind == "cmd" and token.text in ANGLES for token in items[lo:hi])
    while at < hi:
        token = items[at]
        if token.kind == "open":
            at = tokens.partner[at]
        elif _starts_unit(token, at == lo) or (token.text == "°" and not angle and _ends_with_degree(items, at, hi)):
            return at
        at += 1
    return lo + 1 if _is_rate(items[lo:hi]) else hi


def _starts_unit(token: Token, first: bool) -> bool:
    if token.kind == "word":
        return not first or len(token.text) > 1
    return token.kind == "op" and (token.text == "%" or (token.text in CURRENCY and not first))


def _ends_with_degree(items: tuple[Token, ...], at: int, hi: int) -> bool:
    rest = items[at + 1 : hi]
    return not rest or (len(rest) == 1 and rest[0].text in ("C", "F"))


def _is_rate(items: tuple[Token, ...]) -> bool:
    """`5 m/s`: letters that are units, apart from their number, one over the other."""
    return (
        len(items) == 4
        and items[0].kind == "num"
        and items[1].spaced
        and items[2].text == "/"
        and all(items[k].kind == "name" and items[k].text in LETTER_UNITS for k in (1, 3))
    )


def _tail(items: tuple[Token, ...]) -> tuple[Unit, bool, int]:
    """Unit, whether per cent, and the scale word's factor of what follows a number."""
    items = tuple(
        token
        for before, token in zip((None, *items), items, strict=False)
        if token.text != "{" and not (token.text == "." and before is not None and before.kind == "word")
    )  # cm^{2}, sq. cm
    scale, percent, start = 1, False, 0
    while start < len(items) and (factor := SCALES.get(items[start].text.lower())):
        scale, start = scale * factor, start + 1
    if start < len(items) and items[start].text.lower() in _PERCENT:
        percent, start = True, start + 1
    before = [Token("start", ""), *items]
    parts = [_unit_part(before[at], items[at]) for at in range(start, len(items))]
    unit = unit_of(part for part in parts if part)
    if unit is None:
        raise Unreadable("words that change what the number says")
    return unit, percent, scale


def _unit_part(before: Token, token: Token) -> str:
    """A token as `unit_of` reads it; nothing for the sign of a power, whose number follows."""
    if before.text == "^" and token.kind == "num":
        return f"^{token.text}"
    if before.text == "°" and token.kind in ("name", "word"):
        return f"°{token.text}"
    if token.kind in ("word", "name") or token.text in ("°", "/") or token.text in CURRENCY:
        return token.text.lstrip("\\")
    if token.text == "^":
        return ""
    raise Unreadable(f"{token.text!r} behind a unit")


def _in_base(tokens: Tokens, lo: int, hi: int) -> tuple[str, str] | None:
    """`2516_8`, `(2516)_8`, `2A_{16}`: the digits, and the base."""
    items = tokens.items
    at = next((k for k in range(lo, hi) if (items[k].kind, items[k].text) == ("op", "_")), lo)
    before = (
        items[lo + 1 : at - 1] if at > lo and items[lo].text == "(" and tokens.partner[lo] == at - 1 else items[lo:at]
    )
    digits = "".join(token.text for token in before)
    upper = all(token.kind == "num" or token.text.isupper() for token in before)
    if hi - at < 2 or not (upper and _DIGITS.fullmatch(digits)):
        return None
    inner = [token for token in items[at + 1 : hi] if token.kind not in ("open", "close", "op")]
    words = [token.text.lower() for token in inner if token.text.lower() != "base"]
    base = _SPOKEN_BASES.get(words[0], words[0]) if len(words) == 1 else ""
    if not base.isdigit() or not 2 <= int(base[:3]) <= 36:
        raise Unreadable("a number with a subscript that is no base")
    if any(int(digit, 36) >= int(base) for digit in digits):
        raise Unreadable(f"digits that base {base} does not have")
    return digits, base


_DIGITS = re.compile(r"[0-9][0-9A-Z]{0,299}|[A-Z]{1,299}[0-9][0-9A-Z]{0,299}", re.ASCII)
_PERCENT = frozenset({"%", "percent", "percents", "pct"})
_SPOKEN_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16",
}  # fmt: skip


def _groups(token: Token) -> tuple[Fraction, ...]:
    """The items of `1,234` read as a list."""
    if token.kind != "num" or "," not in token.text or "." in token.text:
        return ()
    return tuple(Fraction(int(part)) for part in token.text.split(","))
