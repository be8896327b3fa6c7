r"""Expressions: tokens to a tree, by the conventions of school notation, refusing what is ambiguous.

Refused rather than guessed: `4 2`, `x3`, `\sqrt12` (TeX prints the root of 1, then 2), `2\frac{5}{3}` (mixed number or
product?), `2^3!`, integrals, sums, limits and every command not listed here.
"""

from __future__ import annotations

from fractions import Fraction

from verifiers.answers.notation.tokens import DEEPEST, FUNCTIONS, GREEK, Token, Tokens, Unreadable
from verifiers.answers.notation.trees import Node, product, signed

_CONSTANTS = {"pi": "pi", "infty": "inf"}
_END = Token("end", "")
_INVERSES = {"sin": "asin", "cos": "acos", "tan": "atan", "cot": "acot"}


def parse(tokens: Tokens, lo: int, hi: int) -> Node:
    """Read `tokens[lo:hi]` as one expression.

    Args:
        tokens: a tokenised answer.
        lo: first token of the expression.
        hi: one past its last token.

    Returns:
        Its tree.

    Raises:
        Unreadable: when the tokens are no single expression in this grammar.
    """
    reader = _Reader(tokens, lo, hi)
    node = reader.sum()
    if reader.at != hi or reader.left:
        raise Unreadable(f"stopped at {reader.peek().text!r}")
    return node


class _Reader:
    """Recursive descent; every method reads one construct from `at` and leaves `at` behind it."""

    def __init__(self, tokens: Tokens, lo: int, hi: int) -> None:
        self.tokens, self.at, self.hi = tokens, lo, hi
        self.left = ""  # digits of the current number not yet used by a braceless argument: \frac12
        self.depth = 0
        self.bars = 0

    def peek(self, ahead: int = 0) -> Token:
        at = self.at + ahead
        return self.tokens.items[at] if at < self.hi else _END

    def take(self, kind: str, text: str) -> bool:
        token = self.peek()
        if token.kind == kind and token.text == text and not self.left:
            self.at += 1
            return True
        return False

    # sums and products

    def sum(self) -> Node:
        terms: list[Node] = []
        while True:
            sign = self._signs()
            if terms and sign is None:
                break
            terms.append(signed(sign or "+", self.product()))
        return terms[0] if len(terms) == 1 else ("add", *terms)

    def _signs(self) -> str | None:
        """Any run of signs as one of + - pm mp; None when there is none."""
        sign: str | None = None
        while True:
            token = self.peek()
            here = token.text if (token.kind, token.text) in _SIGNS and not self.left else ""
            if not here:
                return sign
            sign = _SIGN_PRODUCT.get((sign or "+", here))
            if sign is None:
                raise Unreadable("a chain of plus-minus signs")
            self.at += 1

    def product(self) -> Node:
        node = self.power()
        factors = [node]
        while True:
            if self.take("op", "*"):
                factors.append(signed(self._signs() or "+", self.power()))
            elif self.take("op", "/"):
                divisor = signed(self._signs() or "+", self.power())
                factors = [("div", product(factors), divisor)]
            elif self._starts_factor():
                factors.append(self.power())
            else:
                return product(factors)

    def _starts_factor(self) -> bool:
        token = self.peek()
        if token.kind == "num":
            # `x3`, `4 2` and `\sqrt12` are not products; `(2)3` and `\frac{1}{2}3` are not worth the risk.
            raise Unreadable("a number follows without an operator")
        if token.kind == "op" and token.text == "|":
            return self.bars == 0
        return token.kind in ("name", "open") or (token.kind == "cmd" and token.text in _ATOMS) or _is_letter(token)

    def power(self) -> Node:
        base = self._postfix(self.atom())
        if not self.take("op", "^"):
            return base
        node = ("pow", base, self._exponent())
        if self.peek().kind == "op" and self.peek().text in ("!", "°"):
            raise Unreadable("a postfix sign after an exponent")
        return node

    def _exponent(self) -> Node:
        self._deeper()
        sign = self._signs() or "+"
        if self.peek().kind == "op" and self.peek().text in ("*", "'"):
            raise Unreadable("a starred or primed name")
        # x^2\frac{1}{2} is a product: a bare exponent is never the start of a mixed number.
        exponent = self._bare_number() if self.peek().kind == "num" else self.atom()
        if self.take("op", "^"):
            exponent = ("pow", exponent, self._exponent())
        self.depth -= 1
        return signed(sign, exponent)

    def _postfix(self, node: Node) -> Node:
        if self.take("op", "!"):
            node = ("fact", node)
        elif self.take("op", "°"):
            node = ("deg", node)
        if self.peek().kind == "op" and self.peek().text in ("!", "°", "'"):
            raise Unreadable("two postfix signs")
        return node

    # atoms

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable(f"an expression nests deeper than {DEEPEST}")

    def atom(self) -> Node:
        self._deeper()
        token = self.peek()
        if token.kind == "num":
            node = self._number(token)
        elif token.kind == "name" or _is_letter(token):
            node = self._name(token)
        elif token.kind == "open":
            node = self._bracket(token)
        elif token.kind == "cmd":
            node = self._command(token)
        elif token.kind == "op" and token.text == "|" and self.bars == 0:
            node = self._bars()
        else:
            raise Unreadable(f"unexpected {token.text!r}" if token.text else "the expression ends too early")
        self.depth -= 1
        return node

    def _number(self, token: Token) -> Node:
        self.at += 1
        following = self.peek()
        if following.kind == "op" and following.text == "_":
            raise Unreadable("a number in another base inside an expression")
        part = self._proper_fraction() if token.text.isdigit() else None
        return ("num", token.value if part is None else Fraction(int(token.text)) + part, token.digits)

    def _proper_fraction(self) -> Fraction | None:
        r"""The fraction of a mixed number `1 1/2` or `1\frac{1}{2}` that stands next, if one does."""
        first = self.peek()
        if first.kind == "num" and first.spaced and (self.peek(1).kind, self.peek(1).text) == ("op", "/"):
            top, bottom, length = first, self.peek(2), 3
        elif first.kind == "cmd" and first.text == "frac":
            found = self._plain_fraction()
            if found is None:
                return None
            top, bottom, length = found
        else:
            return None
        if not (top.text.isdigit() and bottom.text.isdigit() and int(top.text) < int(bottom.text)):
            raise Unreadable("a mixed number or a product?")
        self.at += length
        return Fraction(int(top.text), int(bottom.text))

    def _plain_fraction(self) -> tuple[Token, Token, int] | None:
        r"""Numerator, denominator and length of a `\frac` of two plain integers at `at`."""
        ahead = 1
        parts: list[Token] = []
        for _ in range(2):
            token = self.peek(ahead)
            if token.kind == "open" and token.text == "{" and self.peek(ahead + 2).kind == "close":
                token, ahead = self.peek(ahead + 1), ahead + 3
            elif token.kind == "num" and len(token.text) == 2 and not parts:
                return Token("num", token.text[0]), Token("num", token.text[1]), 2
            elif token.kind == "num" and len(token.text) == 1:
                ahead += 1
            else:
                return None
            if token.kind != "num" or not token.text.isdigit():
                return None
            parts.append(token)
        return parts[0], parts[1], ahead

    def _name(self, token: Token) -> Node:
        self.at += 1
        name = token.text
        if self.take("op", "_"):
            name = f"{name}_{self._subscript()}"
        elif name in ("e", "i"):
            return ("const", name)
        if self.peek().kind == "op" and self.peek().text == "'":
            raise Unreadable("a primed name")
        return ("sym", name)

    def _subscript(self) -> str:
        start = self.at
        token = self.peek()
        if token.kind == "open" and token.text == "{":
            self.at = self.tokens.partner[start] + 1
            return "".join(item.text for item in self.tokens.items[start + 1 : self.at - 1])
        if token.kind not in ("num", "name", "word", "cmd"):
            raise Unreadable("an empty subscript")
        self.at += 1
        return token.text

    def _bracket(self, token: Token) -> Node:
        end = self.tokens.partner[self.at]
        if end >= self.hi or token.text not in _GROUPS or self.tokens.items[end].text != _GROUPS[token.text]:
            raise Unreadable("a bracket that is no group of an expression")
        bars, self.bars = self.bars, 0
        hi, self.hi = self.hi, end
        self.at += 1
        node = self.sum()
        if self.at != end or self.left:
            raise Unreadable(f"stopped at {self.peek().text!r}")
        self.at, self.hi, self.bars = end + 1, hi, bars
        return (token.text.removeprefix("l"), node) if token.text in ("lfloor", "lceil") else node

    def _bars(self) -> Node:
        self.at += 1
        self.bars += 1
        node = self.sum()
        if not self.take("op", "|"):
            raise Unreadable("an absolute value that is not closed")
        self.bars -= 1
        return ("abs", node)

    def _command(self, token: Token) -> Node:
        self.at += 1
        name = token.text
        if name in _CONSTANTS:
            return ("const", _CONSTANTS[name])
        if name in GREEK:
            suffix = f"_{self._subscript()}" if self.take("op", "_") else ""
            return ("sym", name + suffix)
        if name in ("frac", "binom"):
            top, bottom = self._argument(), self._argument()
            return ("div" if name == "frac" else "binom", top, bottom)
        if name in FUNCTIONS:
            return self._function(name)
        raise Unreadable(f"the command {name!r} is not part of a plain answer")

    def _argument(self) -> Node:
        """A TeX argument: a group, one digit, or one sign."""
        token = self.peek()
        if token.kind != "num":
            return self.atom()
        text = self.left or token.text
        if not text.isdigit():
            raise Unreadable("a decimal as a braceless argument")
        self.left = text[1:]
        self.at += not self.left
        return ("num", Fraction(int(text[0])), 0)

    def _function(self, name: str) -> Node:
        if name == "sqrt":
            index: Node = ("num", Fraction(2), 0)
            if self.peek().kind == "open" and self.peek().text == "[":
                index = self._bracket(self.peek())
            return ("root", index, self._argument())
        base = self._subscript_node() if name in ("log", "lg") and self.take("op", "_") else None
        exponent = self._exponent() if self.take("op", "^") else None
        if exponent == ("num", Fraction(-1), 0) or exponent == ("neg", ("num", Fraction(1), 0)):
            name, exponent = _INVERSES.get(name, ""), None
            if not name:
                raise Unreadable("an inverse of a function that has no common one")
        argument = self._function_argument()
        node: Node
        if name in ("log", "lg"):
            node = _logarithm(name, base, argument)
        elif name in ("abs", "floor", "ceil"):
            node = (name, argument)
        elif name == "exp":
            node = ("pow", ("const", "e"), argument)
        else:
            node = ("fn", name, argument)
        return node if exponent is None else ("pow", node, exponent)

    def _subscript_node(self) -> Node:
        return self._bare_number() if self.peek().kind == "num" else self.atom()

    def _bare_number(self) -> Node:
        token = self.peek()
        self.at += 1
        return ("num", token.value, token.digits)

    def _function_argument(self) -> Node:
        token = self.peek()
        if token.kind == "open" or (token.kind == "op" and token.text == "|"):
            return self.atom()
        factors = [signed(self._signs() or "+", self.power())]
        while self._starts_factor() and self.peek().kind in ("name", "cmd") and self.peek().text not in FUNCTIONS:
            factors.append(self.power())
        return product(factors)


_GROUPS = {"(": ")", "[": "]", "{": "{", "lfloor": "lfloor", "lceil": "lceil"}
_SIGNS = {("op", "+"), ("op", "-"), ("cmd", "pm"), ("cmd", "mp")}
_SIGN_PRODUCT = {
    ("+", "+"): "+", ("+", "-"): "-", ("-", "+"): "-", ("-", "-"): "+",
    ("+", "pm"): "pm", ("+", "mp"): "mp", ("-", "pm"): "mp", ("-", "mp"): "pm", ("pm", "+"): "pm", ("mp", "+"): "mp",
}  # fmt: skip
_ATOMS = frozenset({"frac", "binom", *_CONSTANTS, *FUNCTIONS, *GREEK})


def _is_letter(token: Token) -> bool:
    return token.kind == "word" and len(token.text) == 1 and token.text.isascii()


def _logarithm(name: str, base: Node | None, argument: Node) -> Node:
    """A bare `log` is natural to some and decimal to others, so its scale stays an unknown of its own."""
    if base is not None:
        return ("log", base, argument)
    if name == "lg":
        return ("log", ("num", Fraction(10), 0), argument)
    return ("mul", ("sym", "scale of log"), ("fn", "ln", argument))
