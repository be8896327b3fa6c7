r"""From the text of an answer to what it states: plain forms, without sympy, in time linear in the text.

The choices made here, each with its reason, are the rows about reading of `verifiers.policy`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from verifiers.answers.extract import LONGEST
from verifiers.answers.notation.characters import tidy
from verifiers.answers.notation.grammar import parse
from verifiers.answers.notation.tokens import Token, Tokens, Unreadable, split, tokenise
from verifiers.answers.notation.trees import Node
from verifiers.answers.notation.vocabulary import words
from verifiers.answers.statements import relations
from verifiers.answers.statements.forms import (
    EVERYTHING,
    NOTHING,
    Choice,
    Form,
    Group,
    Literal,
    Many,
    Matrix,
    Quantity,
    Region,
)
from verifiers.answers.statements.gathering import flat, gathered, spoken
from verifiers.answers.statements.quantities import read_quantity, scaled
from verifiers.answers.statements.regions import pieces_of, without
from verifiers.answers.statements.spelled import spelled

PLACEHOLDERS = words(r"? ?? ... \ldots \dots \cdots nan null _ - answer") | {"", "your answer", "final answer"}
"""Texts that stand where an answer should; they equal nothing, not even themselves."""

MOST_ITEMS = 500

_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
_CHOICE_HEAD = re.compile(r"([A-J])\s?[).:]\s+(\S.{0,400})", re.DOTALL)
_LEAD = words(
    "the final answer answers result value total is are equals equal so thus hence therefore it we get have has there "
    "option choice a an"
)
_SETS: dict[str, Form] = {"emptyset": NOTHING, "Reals": EVERYTHING}
_LETTERS = frozenset("ABCDEFGHIJ")
_HEDGES = words("or and not is isnt wrong")


@lru_cache(maxsize=4096)
def read(text: str) -> Form:
    """Read one answer.

    Args:
        text: the answer as extracted, without its mark.

    Returns:
        What it states. A text that states nothing this room can read comes back as a `Literal` with the reason;
        nothing is raised.
    """
    plain = _without_stops(text.strip())
    if _INTEGER.fullmatch(plain):
        value = Fraction(int(plain))
        return Quantity(("num", value, 0), value)
    if len(text) > LONGEST:
        return Literal(text[:80], f"longer than {LONGEST} characters")
    plain = _without_stops(tidy(text))
    whole = spelled(plain)
    if whole is not None:
        return whole
    try:
        head = _CHOICE_HEAD.fullmatch(plain)
        if head and not _CHOICE_HEAD.fullmatch(head[2]):
            return _choice(head[1], read(head[2]), head[2])
        return _Statement(tokenise(plain)).whole()
    except Unreadable as reason:
        return Literal(plain, str(reason))


def _without_stops(text: str) -> str:
    """Without the full stop or comma of the sentence the answer stood in."""
    shorter = text.rstrip(" .,;:")
    return text if text.endswith("..") else shorter


def _choice(letter: str, rest: Form, text: str) -> Form:
    said = {word.lower() for word in re.findall(r"[A-Za-z]+", text)}
    lettered = isinstance(rest, Quantity) and rest.node[0] == "sym" and "A" <= rest.node[1] <= "J"
    if said & _HEDGES or lettered or isinstance(rest, Choice):
        raise Unreadable("a choice with a second thought")
    return Choice(letter.upper(), rest)


class _Statement:
    """Structure first (lists, relations, unions, brackets), expressions last; all on index ranges of one token list."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.items = tokens.items

    def whole(self) -> Form:
        return self.form(0, len(self.items))

    def form(self, lo: int, hi: int) -> Form:
        """Read `tokens[lo:hi]`; the first rule that recognises it decides."""
        lo, hi = self._trimmed(lo, hi)
        if lo >= hi:
            raise Unreadable("nothing is stated")
        for rule in _RULES:
            found = rule(self, lo, hi)
            if found is not None:
                return found
        return self._quantity(lo, hi)

    def _trimmed(self, lo: int, hi: int) -> tuple[int, int]:
        if hi - lo > 1 and self._is(hi - 1, "op", ".") and self._is(hi - 2, "op", "."):
            raise Unreadable("a statement that trails off")
        while hi > lo and self._is(hi - 1, "op", ".", ",", ";", "\\\\"):
            hi -= 1
        start = lo
        while lo < hi - 1 and self._leads(lo):
            lo += 1
        equals = lo < hi - 1 and (self._is(lo, "op", "=") or self._is(lo, "cmd", "approx"))
        if equals or (start < lo < hi - 1 and self._is(lo, "op", ":")):
            lo += 1
        while lo < hi and self._is(lo, "open", "{") and self.tokens.partner[lo] == hi - 1:
            lo, hi = lo + 1, hi - 1
        return lo, hi

    def _leads(self, at: int) -> bool:
        """A word that only leads up to the answer; `A` is the letter of a choice, `a` an article before a word."""
        token = self.items[at]
        if token.kind != "word" or token.text == "A":
            return False
        return token.text.lower() in _LEAD and (token.text != "a" or self.items[at + 1].kind == "word")

    def _is(self, at: int, kind: str, *texts: str) -> bool:
        token = self.items[at]
        return token.kind == kind and token.text in texts

    def split(self, lo: int, hi: int, separates: Callable[[Token], bool]) -> tuple[list[tuple[int, int]], list[str]]:
        return split(self.tokens, lo, hi, separates)

    # rules, in order

    def _words(self, lo: int, hi: int) -> Form | None:
        """Only words: a text, one of the spoken sets, or a choice letter."""
        items = self.items[lo:hi]
        if not all(token.kind in ("word", "name") for token in items):
            return None
        if len(items) == 1:
            letter = items[0].text
            if items[0].kind == "word" and len(letter) == 1:
                return Choice(letter) if "A" <= letter <= "J" else None
        if not any(token.kind == "word" for token in items):
            return None
        if len(items) > 2 and all(token.text == "and" or token.text in _LETTERS for token in items):
            return None  # several letters of choices: a list
        # A name is glued to the letters before it unless blanks stand between.
        apart = ((" " if token.spaced or token.kind == "word" else "") + token.text for token in items)
        return spoken("".join(apart).split())

    def _lettered(self, lo: int, hi: int) -> Form | None:
        """`(C)`, or `(B) 12` with what the letter stands for."""
        if hi - lo < 3 or not self._is(lo, "open", "(") or self.tokens.partner[lo] != lo + 2:
            return None
        token = self.items[lo + 1]
        letter = token.text.upper()
        if token.kind not in ("word", "name") or not ("A" <= letter <= "J" and len(letter) == 1):
            return None
        if token.kind == "name" and token.text != letter:
            return None  # (a) in mathematics is a
        if hi == lo + 3:
            return Choice(letter)
        if not self.items[lo + 3].spaced and self.items[lo + 3].kind != "word":
            return None  # (A)(B), (A)x: a product
        rest = self.form(lo + 3, hi)
        return _choice(letter, rest, " ".join(token.text for token in self.items[lo + 3 : hi]))

    def _listed(self, lo: int, hi: int) -> Form | None:
        parts, joiners = self.split(lo, hi, _separates_items)
        parts = [part for part in parts if part[0] < part[1]]
        if not joiners or not parts:
            return None
        forms = self._forms(parts)
        if len(parts) == 1:
            return forms[0]
        if any(isinstance(form, Region) for form in forms):
            if set(joiners) <= {"or", "lor"}:
                return Region(tuple(piece for form in forms for piece in pieces_of(form)))
            raise Unreadable("several conditions at once")
        return gathered(forms)

    def _member(self, lo: int, hi: int) -> Form | None:
        parts, found = self.split(lo, hi, lambda token: token.kind == "cmd" and token.text == "in")
        if not found:
            return None
        if len(found) > 1 or parse(self.tokens, *parts[0])[0] != "sym":
            raise Unreadable("a membership of something else than a variable")
        return self.form(*parts[1])

    def _related(self, lo: int, hi: int) -> Form | None:
        parts, signs = self.split(lo, hi, relations.relates)
        return relations.read_relation(self, parts, signs) if signs else None

    def _union(self, lo: int, hi: int) -> Form | None:
        parts, found = self.split(lo, hi, lambda token: token.kind == "cmd" and token.text == "cup")
        if not found:
            return None
        return Region(tuple(piece for part in parts for piece in pieces_of(self.form(*part))))

    def _ratio(self, lo: int, hi: int) -> Form | None:
        parts, found = self.split(lo, hi, lambda token: token.kind == "op" and token.text == ":")
        if not found:
            return None
        terms = [self.form(*part) for part in parts]
        if len(terms) == 2 and all(isinstance(term, Quantity) for term in terms):
            return scaled(("div", parse(self.tokens, *parts[0]), parse(self.tokens, *parts[1])))
        return Group(":", ":", tuple(terms))

    def _without(self, lo: int, hi: int) -> Form | None:
        """The reals but some numbers."""
        parts, found = self.split(lo, hi, lambda token: token.kind == "cmd" and token.text in ("setminus", "backslash"))
        if not found:
            return None
        whole, taken = pieces_of(self.form(*parts[0])), pieces_of(self.form(*parts[-1]))
        if len(found) > 1 or whole != EVERYTHING.pieces or any(piece.low != piece.high for piece in taken):
            raise Unreadable("a difference of sets")
        return without(tuple(piece.low for piece in taken))

    def _bracketed(self, lo: int, hi: int) -> Form | None:
        if self.items[lo].kind != "open" or self.tokens.partner[lo] != hi - 1:
            return None
        left, right = self.items[lo].text, self.items[hi - 1].text
        if left == "matrix":
            return self._matrix(lo, hi, None)
        if left == "\\{":
            return self._set(lo, hi)
        if left not in ("(", "[", "<"):
            return None
        parts, commas = self.split(lo + 1, hi - 1, _is_comma)
        if not commas:
            holds_matrix = self._is(lo + 1, "open", "matrix") and self.tokens.partner[lo + 1] == hi - 2
            return self.form(lo + 1, hi - 1) if left == "(" or holds_matrix else None
        if left == "<":
            left, right = "(", ")"
        return Group(left, right, tuple(self._forms(parts)))

    def _set(self, lo: int, hi: int) -> Form:
        if lo + 1 == hi - 1:
            return NOTHING
        parts, bars = self.split(lo + 1, hi - 1, lambda token: token.kind == "op" and token.text in ("|", ":"))
        if len(bars) == 1:  # { x | x > 3 }
            condition = self.form(*parts[1])
            if isinstance(condition, Region) and self._any_real(*parts[0]):
                return condition
            raise Unreadable("a set given by a condition")
        parts, _ = self.split(lo + 1, hi - 1, _is_comma)
        return Many(flat(self._forms(parts)), braces=True)

    def _any_real(self, lo: int, hi: int) -> bool:
        """A variable, or one that is said to be real: of `x in Z` a condition leaves other numbers."""
        parts, found = self.split(lo, hi, lambda token: token.kind == "cmd" and token.text == "in")
        if len(found) > 1 or (found and self.form(*parts[1]) != EVERYTHING):
            return False
        return bool(parse(self.tokens, *parts[0])[0] == "sym")

    def _forms(self, parts: list[tuple[int, int]]) -> list[Form]:
        if len(parts) > MOST_ITEMS:
            raise Unreadable(f"more than {MOST_ITEMS} items")
        return [self.form(*part) for part in parts]

    def _times_matrix(self, lo: int, hi: int) -> Form | None:
        """A factor before a matrix, multiplied into its entries."""
        start = self.tokens.partner[hi - 1]
        if start <= lo or not self._is(start, "open", "matrix"):
            return None
        end = start - 1 if self._is(start - 1, "op", "*") else start
        if end - lo == 1 and self._is(lo, "op", "-"):
            return self._matrix(start, hi, ("num", Fraction(-1), 0))
        return self._matrix(start, hi, parse(self.tokens, lo, end))

    def _matrix(self, lo: int, hi: int, factor: Node | None) -> Matrix:
        rows, _ = self.split(lo + 1, hi - 1, lambda token: token.kind == "op" and token.text == "\\\\")
        table = []
        for low, high in rows:
            if low < high:
                cells, _ = self.split(low, high, lambda token: token.kind == "op" and token.text == "&")
                table.append(tuple(self.form(*cell) for cell in cells))
        if not table or len({len(row) for row in table}) != 1:
            raise Unreadable("a matrix with rows of different length")
        if factor is None:
            return Matrix(tuple(table))
        return Matrix(tuple(tuple(_multiplied(factor, entry) for entry in row) for row in table))

    def _constant_set(self, lo: int, hi: int) -> Form | None:
        if hi - lo == 1 and self.items[lo].kind == "cmd":
            return _SETS.get(self.items[lo].text)
        return None

    def _quantity(self, lo: int, hi: int) -> Form:
        found = read_quantity(self.tokens, lo, hi)
        return found[0] if len(found) == 1 else Many(tuple(found))


_RULES: tuple[Callable[[_Statement, int, int], Form | None], ...] = (
    _Statement._words,
    _Statement._lettered,
    _Statement._constant_set,
    _Statement._listed,
    _Statement._member,
    _Statement._related,
    _Statement._union,
    _Statement._without,
    _Statement._ratio,
    _Statement._bracketed,
    _Statement._times_matrix,
)


def _is_comma(token: Token) -> bool:
    return token.kind == "op" and token.text in (",", ";")


def _separates_items(token: Token) -> bool:
    return _is_comma(token) or (token.kind in ("word", "cmd") and token.text.lower() in ("and", "or", "lor"))


def _multiplied(factor: Node, entry: Form) -> Form:
    if not isinstance(entry, Quantity):
        raise Unreadable("a factor before a matrix of something else than numbers")
    return scaled(("mul", factor, entry.node))
