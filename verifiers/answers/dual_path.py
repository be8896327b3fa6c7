r"""The two places where CRISP's grader looks for an answer (arXiv:2603.05433; `dual_path_math_verify` in its code).

| policy | reason |
|---|---|
| first the rest of the last line that says `Answer:`, wherever on the line it stands | the prompt asks for that line |
| then the last closed box of the whole text, thoughts included, else its last number | that grader reads the whole \
response with math-verify, which falls back to expressions |
| right if either is right | so that neither a missing line nor a missing box costs a right answer |
| stops and quotation marks at the end of the line are dropped | they end the sentence |

It exists to reproduce figures of that paper and of those who grade as it does: two answers that contradict each other
count as right if one is, and a number in passing counts, so it is no judge to train on. The answers are compared as
everywhere in this room, not by math-verify.
"""

from __future__ import annotations

import re

_FIELD = re.compile(r"answer\s{0,64}:\s{0,64}([^\s][^\n]{0,8192})", re.IGNORECASE)
_SENTENCE_END = ".,;:?\"' \t"


def answer_field(text: str) -> str | None:
    """The rest of the last line after `Answer:`, without the end of its sentence; None where there is none."""
    last = None
    for last in _FIELD.finditer(text):  # noqa: B007
        pass
    return (last[1].rstrip(_SENTENCE_END) or None) if last else None
