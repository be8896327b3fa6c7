"""Cells that hold a text, or a chat that holds it: the layouts of other trainers' data sets.

| layout (TRL's names) | what is read |
|---|---|
| prompt-only | `prompt`: a text, or the last user turn of a chat |
| prompt-completion | the same, and `completion` as the solution |
| language modelling, conversational | `messages`: the last user turn, and the reply behind it as the solution |
| `privileged_context` beside any of these | the solution: a text, or all turns of a chat |
| preference, explicit prompt | `prompt`; the pair is not used: `--columns solution=chosen` shows the better one |
| stepwise supervision | `prompt`; steps and their labels are not used |
| preference, implicit prompt | refused: question and reply are one text |
| unpaired preference | refused: a completion may be the bad one; `--columns solution=` reads the prompts |
| language modelling, standard | refused: `text` does not say where its question ends |

What is not used is printed. A system turn or an earlier exchange is not shown, and counted; an image is no text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from workbench.errors import InputError


class UnusableRow(Exception):
    """This row cannot be a problem; the text says why and is counted."""


def why_refused(present: Sequence[str]) -> str:
    """What a known layout without a usable question is, and what to do with it; empty for an unknown one."""
    if {"chosen", "rejected"} <= set(present):
        return "Preference pairs without a prompt: question and reply are one text. Add a prompt column. "
    if "text" in present:
        return "A text column does not say where its question ends. Split it into prompt and completion. "
    return ""


def refuse_unpaired(columns: Mapping[str, str], given: Mapping[str, str], present: Sequence[str], label: str) -> None:
    """Refuse completions of which some are labelled bad, unless somebody says what they are. Raises InputError."""
    if columns.get("solution") == "completion" and "label" in present and "solution" not in given:
        raise InputError(
            f"{label} has completion and label: unpaired preferences, of which some are bad. A bad one must not teach. "
            "Keep the good ones and drop label, or read the prompts alone: --columns solution="
        )


def is_chat(value: object) -> bool:
    """Whether a cell holds turns."""
    return isinstance(value, list) and bool(value) and all(isinstance(t, Mapping) and "role" in t for t in value)


def question_text(value: Any, where: str) -> str | None:
    """The question: a text, or the last user turn of a chat, whose content may come in parts."""
    if isinstance(value, Mapping) and "content" in value:
        value = [{"role": "user", **value}]
    if is_chat(value):
        asked = [turn for turn in value if turn["role"] == "user"]
        return _content(asked[-1], where) if asked else None
    return plain_text(value, where)


def reply_text(value: Any, where: str) -> str | None:
    """What another field says: a text, or the reply that ends a chat."""
    if not is_chat(value):
        return plain_text(value, where)
    replies = _replies(value)
    return _content(replies[-1], where) if replies else None


def whole_text(value: Any, where: str) -> str | None:
    """A text, or all turns of a chat."""
    if not is_chat(value):
        return plain_text(value, where)
    return "\n\n".join(text for turn in value if (text := _content(turn, where))) or None


def has_reply(value: Any) -> bool:
    """Whether a chat ends with a reply."""
    return is_chat(value) and bool(_replies(value))


def _replies(chat: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    last = max((i for i, turn in enumerate(chat) if turn["role"] == "user"), default=-1)
    return [turn for turn in chat[last + 1 :] if turn["role"] == "assistant"]


def _content(turn: Mapping[str, Any], where: str) -> str | None:
    content = turn.get("content")
    if not isinstance(content, list):
        return plain_text(content, where)
    parts = [part if isinstance(part, Mapping) else {"text": part} for part in content]
    if any(part.get("type", "text") != "text" for part in parts):
        raise UnusableRow("not text alone (an image, audio or a tool)")
    return plain_text("".join(str(part.get("text") or "") for part in parts), where)


def plain_text(value: Any, where: str) -> str | None:
    """A scalar as text: 66.0 stays `66.0`, 1e22 is written out, not-a-number is nothing. Raises InputError."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float | Decimal):
        return (
            format(Decimal(repr(value)) if isinstance(value, float) else value, "f") if math.isfinite(value) else None
        )
    if isinstance(value, list | tuple) and len(value) == 1:
        return plain_text(value[0], where)
    if isinstance(value, Mapping | list | tuple):
        inner = ", ".join(map(str, value)) if isinstance(value, Mapping) else f"0 to {len(value) - 1}"
        raise InputError(
            f"{where}: a nested value where a text is expected. Map a part of it with a dot: it holds {inner[:80]}."
        )
    return str(value)
