"""Tokens of a tidied answer, with their brackets matched: what every later step walks over."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from verifiers.answers.notation.units import SCALES, UNIT_WORDS
from verifiers.answers.notation.vocabulary import words

DEEPEST = 50
"""Nested brackets that are followed before an answer counts as unreadable."""

MOST_DIGITS = 300
"""Digits one number may have: |integer| < 10^300."""

MOST_EXPONENT_DIGITS = 4


class Unreadable(Exception):
    """The text is no statement this room can read; the message says where it stopped."""


@dataclass(frozen=True, slots=True)
class Token:
    """One sign, with what its neighbours need to know.

    `kind`: `num`, `name` (one letter of mathematics), `word` (letters of text), `cmd` (a TeX command, without its
    backslash), `op` (any other sign), `open`/`close` (brackets; `text` names the opening one).
    """

    kind: str
    text: str
    spaced: bool = False
    """Whether blanks stand before it."""
    value: Fraction | None = None
    digits: int = 0
    """Significant digits of a number written with a decimal point, else 0."""
    run: str = ""
    """All letters of a bare two- or three-letter run, on its first letter: a product or a word, as needed."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A whole answer: its tokens and, for every bracket, the index of its partner (-1 elsewhere)."""

    items: tuple[Token, ...]
    partner: tuple[int, ...]


_SCAN = re.compile(
    r"\s*(?:"
    r"\\(?P<begin>begin|end)\s{0,4}\{\s{0,4}[A-Za-z]{1,16}\*?\s{0,4}\}(?:\s{0,4}\{[lcr| ]{0,64}\})?"
    r"|(?P<repeating>\d{0,300}\.\d{0,300}\\(?:overline|bar|dot)\s{0,4}(?:\{\s{0,4}\d{1,300}\s{0,4}\}|\d))"
    r"|(?P<bracketed>\d{0,300}\.\d{0,300}\(\d{1,300}\))"
    r"|(?P<grouped>\d{1,3}(?:,\d{3})+(?!,?\d)(?:\.\d+)?)"
    r"|(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?![\d.A-Za-z]))?)"
    r"|(?P<row>\\\\(?:\[[^\]]{0,16}\])?)|(?P<curly>\\[{}])|(?P<money>\\\$)|\\(?P<cmd>[A-Za-z]+)"
    r"|(?P<letters>[A-Za-z]+)|(?P<sign>\S))",
    re.ASCII,
)
_PLAIN_DIGITS = re.compile(r"\s*(?P<number>\d+)", re.ASCII)
_REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\[a-z]+\D*|\()(\d+)", re.ASCII)
_ENV_NAME = re.compile(r"\{\s*([A-Za-z]+)")
_MATRICES = frozenset({"matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"})

_TEXT_COMMANDS = words(
    "text textbf textit textrm textsf texttt textsc textnormal emph mbox hbox mathrm mathsf mathtt operatorname"
)
# Commands that change how something looks: their argument is read as if they were not there.
_LOOKS = words("boxed fbox mathbf mathit mathcal mathnormal boldsymbol bm pmb underline ensuremath")
_OPENERS = {"(": "(", "[": "[", "\\{": "\\{", "langle": "<", "lfloor": "lfloor", "lceil": "lceil"}
_CLOSERS = {")": "(", "]": "[", "\\}": "\\{", "rangle": "<", "rfloor": "lfloor", "rceil": "lceil"}

FUNCTIONS = words("sin cos tan cot sec csc asin acos atan acot sinh cosh tanh ln log lg exp sqrt abs floor ceil")
ANGLES = words("sin cos tan cot sec csc")
"""Functions whose argument may be in degrees."""
GREEK = words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega varphi varepsilon vartheta ell"
)
_SPOKEN = frozenset({"inf", "pi", "infinity", "infty", "theta", "alpha", "beta", "phi", "lambda", "omega"})
_SYNONYMS = {
    "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "lt": "<", "gt": ">", "neq": "ne",
    "times": "*", "cdot": "*", "ast": "*", "div": "/", "vee": "lor", "varnothing": "emptyset", "lbrace": "\\{",
    "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "colon": ":", "mid": "|", "vert": "|", "lvert": "|", "rvert": "|",
    "simeq": "approx", "pounds": "£", "euro": "€", "yen": "¥", "infinity": "infty", "inf": "infty", "arcsin": "asin",
    "arccos": "acos", "arctan": "atan", "arccot": "acot", "land": "and", "wedge": "and", "isin": "in",
    "O": "emptyset", "surd": "sqrt", "varepsilon": "epsilon", "varphi": "phi", "vartheta": "theta", "varrho": "rho",
    "varsigma": "sigma",
}  # fmt: skip
# Short words that would else be read as products of letters.
_COMMON = words("and or the is yes no not are odd of per in to all one two six ten men day dne nan")
_OPERATORS = words("* / < > : | [ ] \\{ \\} £ € ¥")


def tokenise(text: str) -> Tokens:
    """Split a tidied answer into tokens and match its brackets.

    Args:
        text: what `tidy` returned.

    Returns:
        The tokens; groups that only wrap text or looks leave no token, letters of text are `word` tokens.

    Raises:
        Unreadable: on unmatched or too deeply nested brackets, and on numbers beyond the caps.
    """
    return _Scanner(text).run()


class _Scanner:
    """One pass over the text; `groups` holds the brackets that wait for their partner."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.items: list[Token] = []
        self.partner: list[int] = []
        self.groups: list[tuple[str, int]] = []  # bracket, index of its token (-1: it leaves none)
        self.in_text = 0
        self.pending = ""  # a command whose braced argument comes next

    def run(self) -> Tokens:
        at, gap = 0, False
        while (found := _SCAN.match(self.text, at)) is not None:
            kind = found.lastgroup or "sign"
            if kind == "grouped" and any(token >= 0 for _, token in self.groups):
                # Inside brackets a comma always separates.
                found, kind = _PLAIN_DIGITS.match(self.text, at) or found, "number"
            blank = self.text[at].isspace()
            self._take(kind, found, spaced=at > 0 and (blank or gap))
            gap = blank and found[0].endswith("}")  # `\textbf{(B) }12`
            at = found.end()
        if self.groups:
            raise Unreadable("a bracket is not closed")
        return Tokens(tuple(self.items), tuple(self.partner))

    def _take(self, kind: str, found: re.Match[str], spaced: bool) -> None:
        piece = found[kind]
        pending, self.pending = self.pending, ""
        if kind in ("number", "grouped", "repeating", "bracketed"):
            self._add(_number(piece, kind, spaced))
        elif kind == "letters":
            self._letters(piece, spaced)
        elif kind == "cmd":
            self._command(piece, spaced)
        elif kind == "begin":
            self._environment(piece, found[0])
        elif piece == "{":
            self._open_brace(pending, spaced)
        elif piece == "}":
            self._close("{", piece)
        else:
            self._sign(piece, spaced)

    def _add(self, token: Token) -> None:
        self.items.append(token)
        self.partner.append(-1)

    def _sign(self, sign: str, spaced: bool) -> None:
        if sign in _OPENERS:
            self._open(_OPENERS[sign], spaced)
        elif sign in _CLOSERS:
            self._close(_CLOSERS[sign], sign)
        elif sign.startswith("\\\\"):
            self._add(Token("op", "\\\\"))
        else:
            self._add(Token("op", sign, spaced))

    def _command(self, name: str, spaced: bool) -> None:
        name = _SYNONYMS.get(name, name)
        if name in _TEXT_COMMANDS:
            self.pending = "mathrm" if name == "mathrm" else "text"
        elif name in _LOOKS:
            self.pending = "looks"
        elif name in _OPERATORS or name in _OPENERS or name in _CLOSERS:
            self._sign(name, spaced)
        else:
            self._add(Token("cmd", name, spaced))

    def _letters(self, run: str, spaced: bool) -> None:
        upright = bool(self.groups) and self.groups[-1][0] == "mathrm"
        if run in FUNCTIONS or run in _SPOKEN or (run in _SYNONYMS and not self.in_text):
            self._command(run, spaced)
        elif run[:-1] in FUNCTIONS and not self.in_text:  # sinx
            self._command(run[:-1], spaced)
            self._add(Token("name", run[-1]))
        elif upright and run in ("e", "i"):
            self._add(Token("name", run, spaced))
        elif self.in_text or len(run) > 3 or run.lower() in _COMMON or run in UNIT_WORDS or run.lower() in SCALES:
            self._add(Token("word", run, spaced))
        else:
            for index, letter in enumerate(run):
                first = index == 0
                self._add(Token("name", letter, spaced and first, run=run if first and len(run) > 1 else ""))

    def _open_brace(self, pending: str, spaced: bool) -> None:
        if pending:
            self.in_text += pending != "looks"
            self.groups.append((pending, -1))
        else:
            self._open("{", spaced)
        if len(self.groups) > DEEPEST:
            raise Unreadable(f"brackets nest deeper than {DEEPEST}")

    def _open(self, bracket: str, spaced: bool) -> None:
        if len(self.groups) >= DEEPEST:
            raise Unreadable(f"brackets nest deeper than {DEEPEST}")
        self.groups.append((bracket, len(self.items)))
        self._add(Token("open", bracket, spaced))

    def _close(self, bracket: str, sign: str) -> None:
        if not self.groups:
            raise Unreadable("a bracket closes that was never opened")
        opened, start = self.groups.pop()
        if start < 0:
            if bracket != "{":
                raise Unreadable("brackets cross")
            self.in_text -= opened != "looks"
            return
        half_open = {opened, bracket} == {"(", "["}
        if opened != bracket and not half_open:
            raise Unreadable("brackets cross")
        self._add(Token("close", sign if sign in (")", "]") else bracket))
        self.partner[start], self.partner[-1] = len(self.items) - 1, start

    def _environment(self, edge: str, whole: str) -> None:
        name = _ENV_NAME.search(whole)
        if name is None or name[1] not in _MATRICES:
            raise Unreadable("an environment that is no matrix")
        if edge == "begin":
            self._open("matrix", False)
        else:
            self._close("matrix", "matrix")


def split(
    tokens: Tokens, lo: int, hi: int, separates: Callable[[Token], bool]
) -> tuple[list[tuple[int, int]], list[str]]:
    """Ranges of `tokens[lo:hi]` between separators outside all brackets, and the separators' texts in lower case."""
    parts, found, start, at = [], [], lo, lo
    while at < hi:
        token = tokens.items[at]
        if token.kind == "open":
            at = tokens.partner[at]
        elif separates(token):
            parts.append((start, at))
            found.append(token.text.lower())
            start = at + 1
        at += 1
    return [*parts, (start, hi)], found


def _number(text: str, kind: str, spaced: bool) -> Token:
    if len(text) > MOST_DIGITS + 8:
        raise Unreadable(f"a number has more than {MOST_DIGITS} digits")
    if kind in ("repeating", "bracketed"):
        return Token("num", text, spaced, value=_repeating(text))
    plain = text.replace(",", "")
    mantissa, _, exponent = plain.lower().partition("e")
    if len(exponent.lstrip("+-")) > MOST_EXPONENT_DIGITS or abs(int(exponent or 0)) > MOST_DIGITS:
        raise Unreadable("an exponent is too large")
    whole, point, decimals = mantissa.partition(".")
    digits = len((whole + decimals).lstrip("0")) if point else 0
    value = Fraction(int(whole + decimals or "0"), 10 ** len(decimals)) * Fraction(10) ** int(exponent or 0)
    return Token("num", text, spaced, value=value, digits=digits)


def _repeating(text: str) -> Fraction:
    r"""0.1\overline{6} = 0.1 + 6/90."""
    found = _REPEATING.match(text)
    if text.endswith(")") and found is not None and found[2]:
        raise Unreadable("a repeating decimal or a product?")
    if found is None:
        raise Unreadable("a repeating decimal that repeats nothing")
    whole, fixed, period = found.groups()
    shift = 10 ** len(fixed)
    return Fraction(int(whole + fixed or "0"), shift) + Fraction(int(period), shift * (10 ** len(period) - 1))
