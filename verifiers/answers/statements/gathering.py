"""Words as a text, values side by side as a list."""

from __future__ import annotations

from verifiers.answers.notation.vocabulary import words
from verifiers.answers.statements.forms import EVERYTHING, NOTHING, Form, Many, Named, Text

_ARTICLES = words("the a an")
_NO_SOLUTION = frozenset(
    {
        "no solution",
        "no solutions",
        "no real solution",
        "no real solutions",
        "empty set",
        "none exist",
        "no such number",
    }
)
_ALL_REALS = frozenset({"all real numbers", "all reals", "all real x", "real numbers", "reals"})


def spoken(parts: list[str]) -> Form:
    """Words as a text in one case, without articles in front; some phrases name a set."""
    low = [word.casefold() for word in parts]
    while len(low) > 1 and low[0] in _ARTICLES:
        low.pop(0)
    phrase = " ".join(low)
    if phrase in _NO_SOLUTION:
        return NOTHING
    return EVERYTHING if phrase in _ALL_REALS else Text(phrase)


def flat(forms: list[Form]) -> tuple[Form, ...]:
    """Items with the two values of a plus-minus sign side by side."""
    flat: list[Form] = []
    for form in forms:
        flat.extend(form.items if isinstance(form, Many) and not form.braces else [form])
    return tuple(flat)


def gathered(forms: list[Form]) -> Form:
    """A bare list; values of one name (`x = 1, x = 2` and `x = 1, 2`) are the list of that name."""
    names = [form.name for form in forms if isinstance(form, Named)]
    if (
        names
        and len(set(names)) == 1
        and (len(names) == len(forms) or isinstance(forms[0], Named))
        and (len(names) in (1, len(forms)))
    ):
        values = [form.value if isinstance(form, Named) else form for form in forms]
        return Named(names[0], Many(flat(values)))
    return Many(flat(forms))
