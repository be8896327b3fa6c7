r"""Which text of a completion is the answer: one table of policies, linear time, no parsing of mathematics.

The choices made here, each with its reason, are the rows about finding of `verifiers.policy`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from verifiers.answers.dual_path import answer_field

TAIL = 65_536
"""Characters of the answer region that are looked at, from its end."""

LONGEST = 2_048
"""Characters an answer may have once runs of blanks are one."""

_TAGS = [
    f"<{spelled}>"
    for name in ("think", "thinking", "thought", "reasoning")
    for spelled in (name, name.title(), name.upper())
]
_TAGS += ["[think]", "[THINK]", "◁think▷"]
THINK_TAGS: tuple[tuple[str, str], ...] = (
    *((tag, f"{tag[0]}/{tag[1:]}") for tag in _TAGS),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""What opens a thought, and what closes it."""


@dataclass(frozen=True)
class Extraction:
    """The answer's text as written, or why there is none."""

    answer: str | None
    rule: str
    """The mark that decided (`boxed`, `answer_line`, `hashes`, ...), or the reason for no answer."""
    cut: bool = False
    """Whether the text ended inside a mark or a thought, so that more of it might have held an answer."""


@dataclass(frozen=True)
class _Mark:
    start: int
    end: int
    text: str | None
    """None: the mark was opened and never closed."""


_BRACES = re.compile(r"\\{1,2}(?:boxed|fbox|framebox)[ \t]*\{|\\.|[{}]", re.DOTALL)
# At the start of a line or sentence: "we check our answer: 17 ..." marks nothing.
_ANSWER_LINE = re.compile(
    r"(?:^|[.!?][ \t]{1,4})[ \t>*#_]{0,8}(?:(?:the|my)[ \t])?(?:final[ \t])?answer[ \t]{0,8}\*{0,2}[ \t]{0,8}[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_IS = re.compile(r"(?<![A-Za-z])answer(?:[ \t]{0,8}[:：]| is(?![A-Za-z])[ \t]{0,8}:?)", re.IGNORECASE)
_HASHES = re.compile(
    r"^[ \t]{0,8}#{4}(?!#)(?=[ \t]{0,8}(?:[-+\d$\\(\[.€£¥−]|[A-Za-z][ \t]?(?:[-=^+*/_(<>\\]|$)))", re.MULTILINE
)
_HEADING = re.compile(r"\w{1,3}[.):][ \t]+[^\W\d]")
_SENTENCE = re.compile(r"[.!?][ \t]+(?=[A-Z])")
_NUMBER = re.compile(r"-?\d{1,64}(?:,\d{3}){0,20}(?:\.\d{1,64})?")
_PART_OF = re.compile(r"[\w/^][-+{(]?\Z|\d[.,:]\Z")
_GOES_ON = re.compile(r"[A-Za-z_^/]|[.,:]\d")
_BLANKS = re.compile(r"([ \t])[ \t]+|(\n)\n{2,}")
_MATH_FENCE = frozenset({"$$", "\\[", "**", "```"})


def after_thoughts(text: str) -> str:
    """What follows the last closing think tag; the whole text where there is none."""
    ends = ((text.rfind(closing), len(closing)) for _, closing in THINK_TAGS)
    return text[max((at + length for at, length in ends if at >= 0), default=0) :]


def opens_thought(text: str) -> bool:
    """Whether a think tag opens in a text."""
    return any(opening in text for opening, _ in THINK_TAGS)


def answer_region(text: str) -> tuple[str, bool]:
    """The part of a completion in which an answer may stand.

    Args:
        text: the whole completion.

    Returns:
        The last `TAIL` characters after the last closing think tag, and whether a think tag stayed open.
    """
    region = after_thoughts(text)
    still_thinking = opens_thought(region)
    if len(region) > TAIL:
        # Padding with blanks would otherwise push a short answer's opening out of the window.
        region = _BLANKS.sub(r"\1\2", region)[-TAIL:]
    return region, still_thinking


def _last_box(region: str, truncated: bool) -> _Mark | None:
    """The last outermost box; one left open after it stands for itself, with text None."""
    last, opened = _boxes(region)
    if opened is not None and (last is None or opened > last.start):
        return _Mark(opened, len(region), None)
    return last


def _boxes(region: str) -> tuple[_Mark | None, int | None]:
    """The last outermost box that closes, and where the last one starts that does not."""
    stack: list[tuple[bool, int, int]] = []  # (is a box, start of the mark, start of its content)
    done: list[_Mark] = []
    for found in _BRACES.finditer(region):
        piece = found[0]
        if piece == "{":
            stack.append((False, found.start(), found.end()))
        elif len(piece) > 2 and piece.endswith("{"):
            stack.append((True, found.start(), found.end()))
        elif piece == "}" and stack:
            is_box, start, inside = stack.pop()
            if is_box:
                while done and done[-1].start > start:  # boxes within this one
                    done.pop()
                done.append(_Mark(start, found.end(), region[inside : found.start()]))
    opened = [start for is_box, start, _ in stack if is_box]
    return (done[-1] if done else None), (opened[-1] if opened else None)


def _line(region: str, start: int, truncated: bool) -> _Mark:
    """From `start` to the end of its line, or the next line that says something when this one is empty."""
    at, content = start, ""
    for _ in range(6):
        end = region.find("\n", at)
        stop = len(region) if end < 0 else end
        content = region[at:stop].strip().strip("*").strip()
        if (content and content not in _MATH_FENCE) or end < 0:
            break
        at = end + 1
    return _Mark(start, stop, None if truncated and end < 0 else content)


def _last_answer_line(region: str, truncated: bool) -> _Mark | None:
    found = _last_match(_ANSWER_LINE, region)
    if found is None:
        return None
    mark = _line(region, found.end(), truncated)
    sentence = _SENTENCE.search(mark.text) if mark.text else None
    if mark.text and sentence and any(sign.isdigit() for sign in mark.text[: sentence.start()]):
        return _Mark(found.start(), mark.end, mark.text[: sentence.start()])
    return _Mark(found.start(), mark.end, mark.text)


def _last_hashes(region: str, truncated: bool) -> _Mark | None:
    marks = [_line(region, found.end(), truncated) for found in _HASHES.finditer(region)]
    # "#### 2. Simplify" is a heading of a numbered section, not GSM8K's answer mark.
    marks = [mark for mark in marks if not (mark.text and _HEADING.match(mark.text))]
    return marks[-1] if marks else None


def _last_answer_is(region: str, truncated: bool) -> _Mark | None:
    found = _last_match(_ANSWER_IS, region)
    if found is None:
        return None
    mark = _line(region, found.end(), truncated)
    sentence = _SENTENCE.search(region, found.end(), mark.end)
    if sentence is None:
        return _Mark(found.start(), mark.end, mark.text)
    return _Mark(found.start(), sentence.start(), region[found.end() : sentence.start()].strip())


def _last_answer_tag(region: str, truncated: bool) -> _Mark | None:
    start = region.rfind("<answer>")
    if start < 0:
        return None
    end = region.find("</answer>", start)
    if end < 0:
        return _Mark(start, len(region), None)
    return _Mark(start, end + len("</answer>"), region[start + len("<answer>") : end])


def _last_match(pattern: re.Pattern[str], region: str) -> re.Match[str] | None:
    last = None
    for last in pattern.finditer(region):  # noqa: B007
        pass
    return last


_FINDERS: dict[str, Callable[[str, bool], _Mark | None]] = {
    "boxed": _last_box,
    "answer_line": _last_answer_line,
    "hashes": _last_hashes,
    "answer_is": _last_answer_is,
    "answer_tag": _last_answer_tag,
}

PROFILES: dict[str, tuple[str, ...]] = {
    # What an instruction asks for by name, and nothing else.
    "strict": ("boxed", "answer_line", "hashes", "answer_tag"),
    # Also the phrases that models use unasked; still no guessing from bare numbers.
    "lenient": ("boxed", "answer_line", "hashes", "answer_tag", "answer_is"),
    # lm-eval's `flexible-extract`: for problems whose answer is a number and models that mark nothing (`2 + 2 = 4`).
    "last_number": ("boxed", "answer_line", "hashes", "answer_tag", "answer_is", "last_number"),
    # CRISP's dual-path grader: two places, right if either is. See `dual_path`.
    "crisp": ("answer_field", "whole_text"),
}
"""Which marks count, by profile. `last_number` counts only where nothing is marked."""


def candidates(text: str, profile: str = "strict", *, truncated: bool = False) -> tuple[Extraction, ...]:
    """All texts that a profile would take for the answer: one, but two for `crisp` where both places hold one.

    Args:
        text: the completion, whatever it contains.
        profile: a key of `PROFILES`.
        truncated: whether the completion was cut by a length limit.

    Returns:
        At least one extraction; where there are two, both have an answer.

    Raises:
        ValueError: if the profile is unknown.
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown verifier profile {profile!r}; known: {', '.join(PROFILES)}.")
    if "whole_text" not in PROFILES[profile]:
        return (_marked(text, profile, truncated),)
    text = _BLANKS.sub(r"\1\2", text)[-TAIL:] if len(text) > TAIL else text
    field, (box, _) = answer_field(text), _boxes(text)
    whole = (
        Extraction(box.text.strip(), "boxed") if box and box.text and box.text.strip() else _last_number(text, False)
    )
    found = (Extraction(field, "answer_field"), whole) if field else (whole,)
    return tuple(each for each in found if each.answer is not None) or (whole,)


def extract(text: str, profile: str = "strict", *, truncated: bool = False) -> Extraction:
    """Find the text that a completion marks as its answer.

    Args:
        text: the completion, whatever it contains.
        profile: a key of `PROFILES`.
        truncated: whether the completion was cut by a length limit.

    Returns:
        The answer as written with outer blanks removed, or none with the reason. Work is linear in `text`.

    Raises:
        ValueError: if the profile is unknown (a caller's mistake, never the model's).
    """
    return candidates(text, profile, truncated=truncated)[0]


def _marked(text: str, profile: str, truncated: bool) -> Extraction:
    region, still_thinking = answer_region(text)
    if still_thinking:
        return Extraction(None, "a think tag was opened and not closed", cut=True)
    rule, mark = _latest((name, _FINDERS[name](region, truncated)) for name in PROFILES[profile] if name in _FINDERS)
    if mark is None and "last_number" in PROFILES[profile]:
        return _lone_number(region, truncated)
    if mark is None:
        return Extraction(None, "nothing is marked as an answer")
    if mark.text is None:
        return Extraction(None, f"the last mark ({rule}) was cut before its end", cut=True)
    if not mark.text.strip():
        return Extraction(None, f"the last mark ({rule}) is empty")
    return Extraction(mark.text.strip(), rule)


def _last_number(region: str, truncated: bool) -> Extraction:
    """The last number that stands alone; one that a cut may have shortened is none."""
    found = _last_match(_NUMBER, region)
    if found is None:
        return Extraction(None, "nothing is marked as an answer and there is no number")
    if truncated and found.end() == len(region):
        return Extraction(None, "the last number was cut before its end", cut=True)
    return Extraction(found[0], "last_number")


def _lone_number(region: str, truncated: bool) -> Extraction:
    """As above; nothing where the last number is a part of something: `1/42`, `2^42`, `a42`, `1,42`, `42x`."""
    found = _last_match(_NUMBER, region)
    if found and (
        _PART_OF.search(region[max(0, found.start() - 3) : found.start()]) or _GOES_ON.match(region, found.end())
    ):
        return Extraction(None, "the last number is a part of something")
    return _last_number(region, truncated)


def _latest(marks: Iterable[tuple[str, _Mark | None]]) -> tuple[str, _Mark | None]:
    """The mark that starts last; one that starts inside a box, or holds a box, yields to the box."""
    rule, last = "", None
    for name, mark in marks:  # profiles list the box first, so it is `last` when the others are compared
        if mark is None:
            continue
        if last is None or mark.start >= (last.end if rule == "boxed" else last.start):
            rule, last = name, mark
    return rule, last
