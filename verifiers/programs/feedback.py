"""What a model may be told about its program: enough to mend it, nothing of a hidden test, nothing that acts.

| policy | reason |
|---|---|
| of a hidden test only that one failed, and how | an input or an exception text would be its answer |
| every field has its cap, its middle is left out | both ends of a value say most |
| control, format and bidirectional signs are written as escapes | they act on terminals and on what a reader sees |
| chat and think tags are broken up | quoted into a prompt they would be turns of the chat |
"""

from __future__ import annotations

import re
import unicodedata

from verifiers.programs.box import Raised
from verifiers.programs.judging import Failure, Outcome

LONGEST_FIELD = 400
"""Characters of an input, a value or a message."""

LONGEST_FEEDBACK = 1_600
"""Characters of the whole."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b]{0,256}(?:\x07|\x1b\\)|[@-Z\\-_])")
_TAGS = re.compile(r"<(?=[|/]?\w{0,20}[|>▁]|\|)|\[(?=/?(?:INST|THINK|SYS)\b)|`(?=``)")
_ACTING = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_HIDDEN = {
    "wrong": "gives a wrong result",
    "error": "raises an exception",
    "timeout": "does not end in time",
    "limit": "takes too much memory or writes too much",
}


def feedback(outcome: Outcome) -> str:
    """The text for a model about its failed program; empty where it passed or was not judged."""
    if outcome.result in ("pass", "infra_error") or outcome.failure is None:
        return ""
    failure = outcome.failure
    if failure.hidden:
        how = _HIDDEN.get(outcome.result, "ends before it answers")
        return f"The program passes the tests that are shown, but it {how} on another one."
    lines = {
        "wrong": "The program gives a wrong result.",
        "error": "The program fails with an exception.",
        "timeout": "The program does not end within its time.",
        "died": "The program's process ends before it answers.",
        "limit": "The program takes too much memory or writes too much.",
        "protocol": "The program returns something that is no plain value.",
    }
    text = "\n".join([lines[outcome.result], *_fields(outcome, failure)])
    return text if len(text) <= LONGEST_FEEDBACK else f"{text[: LONGEST_FEEDBACK - 4]}\n..."


def _fields(outcome: Outcome, failure: Failure) -> list[str]:
    fields = []
    for name, value in (("Input", failure.asked), ("Expected", failure.expected)):
        if value:
            fields.append(_field(name, value))
    if outcome.result == "wrong" and failure.expected:
        fields.append(_field("Got", failure.got or "nothing"))
    if failure.raised is not None and failure.raised.name != "AssertionError":
        fields.append(_field("Exception", _exception(failure.raised)))
    return fields


def _exception(raised: Raised) -> str:
    where = f" (line {raised.line})" if raised.line is not None else ""
    return f"{raised.name[:80]}: {capped(raised.message, 200)}{where}" if raised.message else f"{raised.name}{where}"


def _field(name: str, value: str) -> str:
    text = neutral(capped(value.rstrip("\n"), LONGEST_FIELD))
    text = text if len(text) <= 2 * LONGEST_FIELD else capped(text, 2 * LONGEST_FIELD)
    return f"{name}:\n{text}" if "\n" in text else f"{name}: {text}"


def capped(text: str, longest: int) -> str:
    """The text, or its two ends with what was left out between them."""
    if len(text) <= longest:
        return text
    keep = (longest - 40) // 2
    return f"{text[:keep]} ... {len(text) - 2 * keep} characters ... {text[-keep:]}"


def neutral(text: str) -> str:
    """The text with everything that would act written as what it is; linear."""
    text = _ANSI.sub("", text).replace("\r\n", "\n").replace("\t", "    ")
    shown = "".join(sign if sign == "\n" or not _acts(sign) else _escape(sign) for sign in text)
    return _TAGS.sub(lambda tag: f"{tag[0]} ", shown)


def _acts(sign: str) -> bool:
    return sign < " " or sign == "\x7f" or (not sign.isascii() and unicodedata.category(sign) in _ACTING)


def _escape(sign: str) -> str:
    code = ord(sign)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
