"""The rows about a whole model: decoding, and a training step."""

from __future__ import annotations

from rows import RowFunction

MODEL_ROWS: dict[str, RowFunction] = {}
