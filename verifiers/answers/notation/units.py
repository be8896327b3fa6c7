"""Units as words: which are the same, which differ, and which words can never be one. Nothing is converted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from verifiers.answers.notation.vocabulary import words

# canonical name: other spellings
_KNOWN = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "dm": "decimeter decimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "inch": "in. inches",
    "foot": "ft feet",
    "yard": "yd yds",
    "mile": "mi",
    "mg": "milligram",
    "g": "gram gm",
    "kg": "kilogram kilo",
    "pound": "lb lbs £ gbp",
    "ounce": "oz",
    "ton": "tonne",
    "ml": "milliliter millilitre mL",
    "l": "liter litre L",
    "gallon": "gal",
    "quart": "qt",
    "pint": "pt",
    "cup": "",
    "second": "s sec secs",
    "minute": "min mins",
    "hour": "h hr hrs",
    "day": "",
    "week": "wk",
    "month": "",
    "year": "yr yrs",
    "ms": "millisecond",
    "hz": "hertz Hz",
    "khz": "kHz",
    "mhz": "MHz",
    "dollar": "$ usd buck",
    "cent": "¢",
    "euro": "€ eur",
    "yen": "¥ jpy yuan",
    "rupee": "₹ rs",
    "degree": "° deg degs",
    "radian": "rad rads",
    "celsius": "°c",
    "fahrenheit": "°f",
    "kelvin": "",
    "n": "newton N",
    "j": "joule J",
    "kj": "kilojoule kJ",
    "w": "watt W",
    "kw": "kilowatt kW",
    "v": "volt V",
    "acre": "",
    "hectare": "ha",
    "people": "person persons",
    "child": "children",
    "man": "men",
    "woman": "women",
}
_CANONICAL = {name: name for name in _KNOWN} | {
    spelling: name for name, others in _KNOWN.items() for spelling in others.split()
}
_COMPOUND = {"mph": ("mile", "/hour"), "kph": ("km", "/hour"), "kmh": ("km", "/hour"), "fps": ("foot", "/second")}

UNIT_WORDS = frozenset(word for word in _CANONICAL if len(word) > 1 and word.isalpha()) | frozenset(_COMPOUND)
"""Letters that are a unit even where mathematics is written; single letters are variables there."""

LETTER_UNITS = words("m g s h L l N J W V")
"""Single letters that are a unit when they stand apart after a plain number."""

_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALES = _SCALES | {f"{name}s": factor for name, factor in _SCALES.items()}

CURRENCY = frozenset({"\\$", "$", "£", "€", "¥", "₹", "¢"})

_PREFIXES = {
    "/": ("/", ""),
    "per": ("/", ""),
    "square": ("", "^2"),
    "sq": ("", "^2"),
    "cubic": ("", "^3"),
    "cu": ("", "^3"),
}
_FILLERS = words("in total altogether left remaining of the a an each overall all unit units")

NEVER_UNITS = words(
    "or and not no is are was were be than less more least most fewer greater about approximately roughly nearly "
    "almost around between times plus minus over choose factorial squared cubed dozen dozens hundred hundreds half "
    "third quarter if mod modulo remainder below above wrong incorrect otherwise except but either maybe possibly "
    "perhaps until to from by ish thereabouts upwards approx est estimated beyond exceeding probably presumably nope "
    "neither unless excluding however rather thrice k bn mn lakh lakhs crore crores mille permille millionths tenths "
    "hundredths thousandths halves thirds fourths fifths sixths sevenths eighths ninths divided multiplied negative "
    "positive zero one two three four five six seven eight nine "
    "ten eleven twelve twenty thirty forty fifty percent percentage cannot isnt never without power root"
)
"""Words that change what the number before them says: with one of these there is no plain quantity."""

NEVER_LAST = words(
    "odd max maximum minimum tops under false fake invalid rejected impossible likely unlikely none doubled tripled "
    "quadrupled halved negated inverse inverted reciprocal gross tenth hundredth thousandth fourth eighth"
)
"""Words that say what kind of noun is counted, and of a number that stands alone that it is another one."""

LONGEST_PHRASE = 5


@dataclass(frozen=True, slots=True)
class Unit:
    """What a quantity is counted in: units we know, and other nouns as they stand."""

    known: frozenset[str] = frozenset()
    nouns: frozenset[str] = frozenset()

    def conflicts(self, other: Unit) -> bool:
        """Whether both sides name a unit and the names differ; a missing unit conflicts with nothing."""
        if self.known and other.known:
            return self.known != other.known
        mine, theirs = self.known | self.nouns, other.known | other.nouns
        return bool(mine and theirs and not mine & theirs)


NO_UNIT = Unit()


def unit_of(parts: Iterable[str]) -> Unit | None:
    """Read a unit phrase.

    Args:
        parts: words in order; `^2` after a word is its power, `/` or `per` turns the next word into a divisor.

    Returns:
        The unit, or None when a word says something else about the number (`or`, `less`, `squared`, ...).
    """
    phrase = list(parts)
    if sum(part.isalpha() for part in phrase) > LONGEST_PHRASE or any(part.lower() in NEVER_UNITS for part in phrase):
        return None
    if phrase and phrase[-1].lower() in NEVER_LAST:
        return None
    known: list[str] = []
    nouns: list[str] = []
    prefix, power = "", ""
    for part in phrase:
        low = part.lower()
        if part.startswith("^"):
            _raise_last(known, part)
        elif low in _PREFIXES:
            prefix, power = _PREFIXES[low]
        elif low not in _FILLERS:
            names = _canonical(part)
            known += [f"{prefix}{name}{power}" for name in names]
            nouns += [] if names else [low.removesuffix("s") if len(low) > 3 else low]
            prefix = power = ""
    if {"celsius", "fahrenheit"} & set(known):
        known = [name for name in known if name != "degree"]
    return Unit(frozenset(known), frozenset(nouns))


def _raise_last(known: list[str], power: str) -> None:
    if known and power != "^1":
        known[-1] += power


def _canonical(word: str) -> tuple[str, ...]:
    if word in _COMPOUND:
        return _COMPOUND[word]
    for spelling in (word, word.lower(), word.lower().removesuffix("s")):
        if spelling in _CANONICAL and (len(spelling) > 1 or spelling in (word, word.lower())):
            return (_CANONICAL[spelling],)
    return ()
