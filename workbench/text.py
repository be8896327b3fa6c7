"""Text from models, data, files and exceptions is hostile until it went through here."""

from __future__ import annotations

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that move the cursor, reorder the line or cannot be seen: controls (with them every ANSI
sequence), bidi marks and zero-width characters, lone surrogates, private and unassigned code points, separators."""


def printable(text: object, *, lines: bool = False) -> str:
    """The text with everything invisible written as an escape, so that a terminal shows it and obeys nothing.

    `lines=True` keeps line feeds and tabs, for text that is meant to have lines.
    """
    kept = "\n\t" if lines else ""
    return "".join(c if c in kept or unicodedata.category(c) not in _HIDDEN else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character)
    code = ord(character)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
