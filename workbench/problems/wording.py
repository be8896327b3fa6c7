"""When two questions, or two answers, are the same: the plain rules, without a verifier."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from fractions import Fraction

_LIST_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"[+-]?(\d{1,60}(\.\d{0,60})?|\.\d{1,60})(/\d{1,60})?")


def normalised(question: str) -> str:
    """The question without case, width and spacing: what `the same question` means here."""
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split())


def reordering_key(question: str) -> str:
    """The question's words in sorted order: `8 + 17` is `17 + 8`. Such twins stay on one side of a split."""
    return " ".join(sorted(re.findall(r"\w+|[^\w\s]", normalised(question))))


def answer_key(answer: str) -> str | Fraction:
    """What plain comparison compares: the number where it is one, else the text: 1,200 is 1200.0, $5 is 5."""
    text = _plain(answer)
    number = _number(text)
    return text if number is None else number


def same_answer(one: str, two: str) -> bool:
    """Whether two answers are equal as plain texts or as plain numbers."""
    return answer_key(one) == answer_key(two)


def exact(question: str) -> str:
    """The question without its spacing: two questions equal in this are repeats; x² is not x2."""
    return " ".join(question.split())


def text_hash(text: str, seed: int = 0) -> int:
    """A number in [0, 2**64) that depends on nothing but the text and the seed, in every process."""
    digest = hashlib.sha256(f"{seed}\x00{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def _plain(answer: str) -> str:
    text = normalised(answer).strip(" .")
    text = text.removeprefix("\\$").removeprefix("$").removesuffix("$").removesuffix("\\%").removesuffix("%")
    return _LIST_COMMA.sub("", text).strip()


def _number(text: str) -> Fraction | None:
    compact = text.replace(" ", "")
    if not _NUMBER.fullmatch(compact):
        return None
    top, _, bottom = compact.partition("/")
    return None if bottom and not int(bottom) else Fraction(top) / (int(bottom) if bottom else 1)
