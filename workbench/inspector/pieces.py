"""Tokens as the text they add: joined, the pieces are the decoded completion, whatever its bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

_BROKEN = "\ufffd"
"""What decoders put for bytes that are no character (yet)."""


class Writing:
    """Decodes a completion token by token, as it comes.

    A token that only begins a character adds nothing; the one that ends it adds the character. Only the tokens since
    the last whole character but one are decoded again, so a long completion costs as much a token as a short one.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Nothing written."""
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._from, self._to = 0, 0

    def add(self, token: int) -> str:
        """What the token adds."""
        self._ids.append(token)
        known, whole = self._both()
        if not whole.startswith(known) or len(whole) == len(known) or whole.endswith(_BROKEN):
            return ""
        self._from, self._to = self._to, len(self._ids)
        return whole[len(known) :]

    def end(self) -> str:
        """What the last tokens add that ended no character."""
        known, whole = self._both()
        self._from = self._to = len(self._ids)
        return whole[len(known) :]

    def _both(self) -> tuple[str, str]:
        return decoded(self._tokenizer, self._ids[self._from : self._to]), decoded(
            self._tokenizer, self._ids[self._from :]
        )


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """All of it as text, special tokens too."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False)) if ids else ""


def pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """What each token adds; joined they are `decoded(tokenizer, ids)`."""
    whole = decoded(tokenizer, ids)
    alone = [alone_text(tokenizer, token) for token in ids]
    if _BROKEN not in whole and "".join(alone) == whole:
        return tuple(alone)
    writing = Writing(tokenizer)
    found = [writing.add(token) for token in ids]
    if found:
        found[-1] += writing.end()
    return tuple(found) if "".join(found) == whole else _cut(tokenizer, ids, whole)


def _cut(tokenizer: Any, ids: Sequence[int], whole: str) -> tuple[str, ...]:
    """For decoders that rewrite what they said: how much of the end result stands after each token."""
    edges = [0]
    for i in range(1, len(ids)):
        text = decoded(tokenizer, ids[:i])
        same = next(
            (k for k, (a, b) in enumerate(zip(text, whole, strict=False)) if a != b), min(len(text), len(whole))
        )
        edges.append(max(edges[-1], same))
    edges.append(len(whole))
    return tuple(whole[a:b] for a, b in pairwise(edges))


def alone_text(tokenizer: Any, token: int) -> str:
    """One token alone, as text."""
    return _remembered(_Same(tokenizer), token)


def named(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """Each entry of the vocabulary alone, as text; ids below 0 are none."""
    return {i: alone_text(tokenizer, i) for i in sorted(set(ids)) if i >= 0}


class _Same:
    """A tokenizer as a key: the object, not what it compares equal to."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.tokenizer is self.tokenizer

    def __hash__(self) -> int:
        return id(self.tokenizer)


@lru_cache(maxsize=1 << 16)
def _remembered(same: _Same, token: int) -> str:
    return decoded(same.tokenizer, [token])
