"""Whether two tokenizers are one: shown on text and entry by entry, never concluded from a size.

Logits of two models are compared entry by entry, so entry i must mean the same token in both. Equal sizes say nothing
(two tokenizers of 32,000 entries), unequal sizes neither: Qwen2.5's heads have 151,936 and 152,064 rows over the same
151,665 tokens, the rest being padding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.divergence import Head
from workbench.errors import InputError

PROBES: tuple[str, ...] = (
    "The quick brown fox jumps over the lazy dog.",
    " leading, trailing ",
    "a\tb\n\n\n  c\r\n    d        e",
    "0 1 12 123 1234 12345678901234567890 3.14159 1,000,000 -7 1e-5 0x1F",
    "don't won't it's we're I'll you've O'Neill",
    "def f(x: int) -> dict[str, list]:\n\treturn {'k': [x ** 2, x // 3, ~x]}  # note\n",
    "\\boxed{\\frac{1}{2}} \\sum_{i=1}^{n} x_i \\leq \\sqrt{2} $a$ \\\\ \\( x \\)",
    "Füße über Ärger, naïve café, señor, İstanbul, ß, œuvre",
    "e\u0301 \u00e9 \u212b \u00c5 \ufb01 \u1e9b\u0323",
    "Съешь ещё этих мягких булок; Ελληνικά; עברית; العربية; हिन्दी; ไทย",
    "私は東京に行きました。人工知能。한국어 문장입니다.",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 ✓ → ∀x∈ℝ ∑ ≠ ∞",
    "\u200b\u00a0\u2003\ufeff\u202e zero width",
    "https://example.com/a?b=c&d=%20#e user@example.com C:\\path\\file.txt",
    "CamelCase snake_case kebab-case SCREAMING_CASE aaaaaaaaaaaaaaaa !!!???...---===",
    "<b>tag</b> <think> </think> [INST] ### ``` {{x}} <s> </s> <|x|>",
    "",
)
"""Texts on which tokenizers of different families part: scripts, digits, code, white space, composed characters."""


@dataclass(frozen=True)
class Proof:
    """What was compared, with nothing found."""

    size: int
    """Entries that mean a token: what both heads are sliced to."""
    student_rows: int
    teacher_rows: int
    texts: int
    tokens: int

    def text(self) -> str:
        """For a person."""
        same = f"{self.texts} texts become the same {self.tokens} tokens and all {self.size} entries agree"
        if self.student_rows == self.teacher_rows == self.size:
            return same
        return f"{same}; heads of {self.student_rows} and {self.teacher_rows} rows are compared on these {self.size}"


def prove(student: Any, teacher: Any, texts: Iterable[str], rows: tuple[int, int], who: str) -> Proof:
    """Compare special tokens, every entry, and the tokenizations of `PROBES` and `texts`.

    `rows` are the (student's, teacher's) head sizes; `who` is how messages call the teacher. Raises InputError with
    the first difference.
    """
    _same_specials(student, teacher, who)
    size = _same_entries(student, teacher, who)
    seen, tokens = 0, 0
    for text in dict.fromkeys((*PROBES, *texts)):
        mine, theirs = (_ids(tokenizer, text) for tokenizer in (student, teacher))
        if mine != theirs:
            at = next(
                (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(map(len, (mine, theirs)))
            )
            raise _different(
                who, f"{text[:40]!r} becomes {_some(mine, at)} for the student and {_some(theirs, at)} for it"
            )
        seen, tokens = seen + 1, tokens + len(mine)
    for name, count in zip(("the student", who), rows, strict=True):
        if count < size:
            raise InputError(
                f"{name} has {count} logits for {size} tokens. Some tokens of its tokenizer cannot be predicted. "
                "Resize its embeddings, or use the checkpoint the tokenizer belongs to."
            )
    return Proof(size, *rows, seen, tokens)


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 over every entry, the added tokens and the tokenizations of `PROBES`."""
    facts = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.get_added_vocab().items())]
    facts.append([_ids(tokenizer, text) for text in PROBES])
    return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogatepass")).hexdigest()


def real_size(tokenizer: Any) -> int:
    """One more than the largest id that means a token."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def sliced(head: Head, size: int | None) -> Head:
    """The head without padding rows; gradients reach the rows that are left."""
    if size is None or len(head.weight) == size:
        return head
    return head.take(slice(size))


def exchange(head: Head, pair: tuple[int, int] | None) -> Head:
    """The head with two entries in each other's place; a copy, so for heads that do not train."""
    if pair is None:
        return head
    order = torch.arange(len(head.weight), device=head.weight.device)
    order[list(pair)] = order[list(pair[::-1])]
    return head.take(order)


def _same_specials(student: Any, teacher: Any, who: str) -> None:
    mine, theirs = student.get_added_vocab(), teacher.get_added_vocab()
    for token in sorted(mine.keys() | theirs.keys()):
        a, b = mine.get(token), theirs.get(token)
        if a != b:
            words = ["not special" if i is None else f"id {i}" for i in (a, b)]
            raise _different(who, f"the special token {token!r} is {words[0]} for the student and {words[1]} for it")


def _same_entries(student: Any, teacher: Any, who: str) -> int:
    mine, theirs = ({i: t for t, i in tokenizer.get_vocab().items()} for tokenizer in (student, teacher))
    for i in sorted(mine.keys() | theirs.keys()):
        if mine.get(i) != theirs.get(i):
            raise _different(who, f"entry {i} is {mine.get(i)!r} for the student and {theirs.get(i)!r} for it")
    return 1 + int(max(mine))


def _different(who: str, what: str) -> InputError:
    return InputError(
        f"{who} has another tokenizer: {what}. Distributions are compared entry by entry. Give a teacher of the same "
        "family, or learn from its text: --teacher texts.jsonl"
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _some(ids: Sequence[int], at: int) -> str:
    return f"{list(ids[at : at + 4])} from token {at} on"
