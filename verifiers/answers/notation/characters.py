"""One spelling for every character and TeX habit: the first step of reading an answer.

Everything here is a translation table or a regular expression without nested repetition, so the work is linear in
the text. Nothing here decides what an answer means.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()")
_SMALL_FRACTION = re.compile("([⁰¹²³⁴-⁹]{1,9})[⁄∕/]([₀-₉]{1,9})")
_BARRED = re.compile("(?:\\d[\u0304\u0305]){1,300}")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎]+")
_ROOT_OF_NUMBER = re.compile(r"([√∛∜])\s{0,4}(\d+(?:\.\d+)?)")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}

_OVERRIDES = "\u202d\u202e"
"""They turn the order of what is seen round: with one, what is read is not what stands there."""

# Before NFKC, because NFKC would lose the meaning (x² -> x2, 1½ -> 11⁄2, º -> o) or knows nothing of it.
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("−–—‒―﹣‐‑⁃", "-"),
        **dict.fromkeys("°º˚", r"^{\circ}"),
        "℃": r"^{\circ}\text{C}",
        "℉": r"^{\circ}\text{F}",
        **{sign: f"{command} " for sign, command in _ROOTS.items()},
        **dict.fromkeys("×⋅·∙•・✕", r"\cdot "),
        **dict.fromkeys("÷∕⁄", "/"),
        "∞": r"\infty ",
        **dict.fromkeys("≤⩽≦", r"\le "),
        **dict.fromkeys("≥⩾≧", r"\ge "),
        "≠": r"\ne ",
        **dict.fromkeys("≈≃≅", r"\approx "),
        "±": r"\pm ",
        "∓": r"\mp ",
        "∈": r"\in ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∨": r"\lor ",
        **dict.fromkeys("∅⌀", r"\emptyset "),
        "ℝ": r"\mathbb{R}",
        "⟨": r"\langle ",
        "⟩": r"\rangle ",
        "⌊": r"\lfloor ",
        "⌋": r"\rfloor ",
        "⌈": r"\lceil ",
        "⌉": r"\rceil ",
        "∣": "|",
        **dict.fromkeys("、،", ","),
        **dict.fromkeys("【〔", "("),
        **dict.fromkeys("】〕", ")"),
        **dict.fromkeys("。｡", "."),
        "…": r"\ldots ",
        "∶": ":",
    }
)
_GREEK_LETTERS = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϕϵµ"
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega phi epsilon mu"
)
_GREEK = str.maketrans({a: f"\\{name} " for a, name in zip(_GREEK_LETTERS, _GREEK_NAMES.split(), strict=True)})

# Row separators (`\\`) must survive, so one-character commands look behind themselves.
_TEX: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\(?:left|right)\s{0,4}\.(?!\d)"), ""),  # invisible delimiters
    (re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:text|f)?color(?:box)?\s{0,4}\{[^{}]{0,64}\}"), ""),
    (re.compile(r"\\(?:hspace|vspace|h?phantom|tag|label)\*?\s{0,4}\{[^{}]{0,64}\}"), " "),
    (re.compile(r"\\(?:(?:display|text|script)style|(?:no)?limits|strut|bf|rm|it)(?![A-Za-z])"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"(?<!\\)\\[()\[\]]"), " "),  # mathematics begins and ends
    (re.compile(r"(?<=\d)(?:\{,\}|,?\\!)\s{0,4}(?=\d{3}(?!\d))"), ""),  # 1{,}234 and 11,\! 111: never a list
    (re.compile(r"(?<=\d)(?:\\[,;: ]|~|\\thinspace)(?=\d{3}(?!\d))"), ""),  # 1\,234
    (re.compile(r"(?<!\\)\\!"), ""),
    (re.compile(r"(?<!\\)\\[,;:> ]|~|\\(?:q?quad|(?:thin|en|med|thick)space)(?![A-Za-z])"), " "),
    (re.compile(r"(?<!\\)\\%|\\percent(?![A-Za-z])"), "%"),
    (re.compile(r"\\mathbb\s{0,4}\{?\s{0,4}R\s{0,4}\}?"), r"\\Reals "),
    (re.compile(r"\\(?:tiny|scriptsize|footnotesize|small|normalsize|[lL]arge|LARGE|[hH]uge)(?![A-Za-z])"), ""),
    (re.compile(r"\\cr(?![A-Za-z])"), r"\\\\"),
    (re.compile(r"\{([^{}\\]{1,64})\\choose(?![A-Za-z])([^{}\\]{1,64})\}"), r"\\binom{\1}{\2}"),
    (re.compile(r":="), "="),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!=|=/="), r"\\ne "),
    (re.compile(r"\^\s{0,4}\{\s{0,4}\\(?:circ|degree)\s{0,4}\}"), "°"),
    (re.compile(r"\^\s{0,4}\\circ(?![A-Za-z])|\\degree(?![A-Za-z])"), "°"),
)
_SPACED_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3}){1,30}(?![\d/]| \d|,\d|\s{0,4}\\frac)")
_TIMES_TEN = re.compile(r"(?<=\d)\s?x\s?(?=10\^)")
_ENDS = re.compile(r"(?:\s|\\\\)+\Z|\A(?:\s|\\\\)+")
_DELIMITER = re.compile(r"(?<!\\)\$")
_LONE_DOLLAR = re.compile(r"(?<!\\)\$(?=\s{0,2}[\d.])")
_BLANKS = re.compile(r"\s+")
_CODE = re.compile(r"(USD?|EUR|GBP|JPY)\s?(?:\\?\$)?\s?(?=[\d.])", re.ASCII)
_CODES = {"USD": r"\$", "US": r"\$", "EUR": "€", "GBP": "£", "JPY": "¥"}


@lru_cache(maxsize=8192)
def tidy(text: str) -> str:
    """Rewrite an answer in one spelling of its characters and TeX commands.

    Unicode signs become TeX commands (NFKC does the rest, after our own table has saved what it would lose);
    delimiters, spacing, colours and sizes go; digit groups close up; degrees become one sign. Control characters
    stay: nothing may become an answer by losing them.

    Args:
        text: an answer as written, at most a few kilobytes.

    Returns:
        The same statement in fewer spellings.
    """
    if not text.isascii():
        text = _from_unicode(text)
    text = text.strip().strip("`")
    code = _CODE.match(text)
    if code is not None and (code[1] != "US" or "$" in code[0]):
        text = _CODES[code[1]] + text[code.end() :]
    text = _dollars(text.replace("per cent", "percent"))
    if "**" in text:  # bold at the ends, a power inside
        text = text.removeprefix("**").removesuffix("**").replace("**", "^")
    if any(sign in text for sign in "\\=~{"):
        for pattern, replacement in _TEX:
            text = pattern.sub(replacement, text)
    if "x" in text and "10^" in text:  # 1.2x10^5
        text = _TIMES_TEN.sub("*", text)
    if text.endswith("\\") and not text.endswith("\\\\"):  # `\\ ` whose blank was at the end
        text = text[:-1]
    text = _SPACED_GROUPS.sub(lambda group: group[0].replace(" ", ""), text)
    return _BLANKS.sub(" ", _ENDS.sub("", text)).strip()


def _from_unicode(text: str) -> str:
    text = _BARRED.sub(lambda run: r"\overline{" + run[0][::2] + "}", text)
    text = _SMALL_FRACTION.sub(_small_fraction, text)
    text = _RAISED.sub(lambda run: "^{" + run[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _LOWERED.sub(lambda run: "_{" + run[0].translate(_SUBSCRIPTS) + "}", text)
    text = _ROOT_OF_NUMBER.sub(lambda root: f"{_ROOTS[root[1]]}{{{root[2]}}}", text)
    text = text.translate(_SIGNS).translate(_GREEK)
    text = "".join(sign if sign.isascii() else _plain(sign) for sign in text)
    return unicodedata.normalize("NFKC", text).translate(_SIGNS).translate(_GREEK)


def _small_fraction(found: re.Match[str]) -> str:
    return f"\\frac{{{found[1].translate(_SUPERSCRIPTS)}}}{{{found[2].translate(_SUBSCRIPTS)}}}"


def _plain(sign: str) -> str:
    kind = unicodedata.category(sign)
    if kind == "Cf" and sign not in _OVERRIDES:  # zero-width and direction marks are invisible
        return ""
    if kind == "No":
        top, slash, bottom = unicodedata.normalize("NFKC", sign).partition("⁄")
        if slash and bottom:
            return f"\\frac{{{top}}}{{{bottom}}}"
        if unicodedata.decomposition(sign).startswith("<circle>"):  # a label, not a digit
            return f"\\circled{{{top}}}"
    return sign


def _dollars(text: str) -> str:
    r"""Drop `$` as a delimiter; a lone one before a number is money, and `\$` always is."""
    if "$" not in text:
        return text
    if len(_DELIMITER.findall(text)) == 1:
        text = _LONE_DOLLAR.sub(r"\\$", text)
    return _DELIMITER.sub(" ", text)
