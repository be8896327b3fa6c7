"""Which text of a completion is the program: one table of policies, linear time, nothing is parsed.

| policy | reason |
|---|---|
| only what follows the last closing think tag is read | a draft in a thought is not a submission |
| a think tag that never closes: no answer | the completion was still thinking |
| the last block marked `python` counts, earlier ones never | a later program corrects an earlier one |
| blocks are never joined | which parts belong together would be a guess |
| a last block that never closes: no answer | its end was cut; an earlier block was replaced by what was being written |
| a block closes at a line of as many or more of its own signs | a program may hold a shorter fence in a text |
| a fence with a language inside one without opens a block of its own | models write a stray fence first |
| an indented fence takes its indentation off its lines | a program inside a list item is a program |
| other languages never count | a shell line or an example of output is not the program |
| a block without a language, and text without a block, count in `lenient` alone | they may as well be output or prose |
| without a block it starts at the first line that can only be Python | prose introduces it |
| at most 64 kB a program | a bound on the work, far beyond any honest program |
"""

from __future__ import annotations

import re

from verifiers.answers.extract import PROFILES, Extraction, after_thoughts, opens_thought

LONGEST_PROGRAM = 65_536
"""Characters a program may have."""

_FENCE = re.compile(r"^([ ]{0,8})(`{3,}|~{3,})[ \t]*([^\n`]*?)[ \t]*\r?$", re.MULTILINE)
_PYTHON = frozenset({"python", "python3", "py", "py3"})
_STARTS = re.compile(r"^(?:(?:async )?def \w+\(|class \w+[:(]|import \w|from [\w.]+ import |@\w)", re.MULTILINE)


def extract_program(text: str, profile: str = "strict", *, truncated: bool = False) -> Extraction:
    """Find the program in a completion.

    Args:
        text: the completion, whatever it contains.
        profile: `strict` reads blocks marked as Python; every other profile of `PROFILES` is lenient here.
        truncated: whether the completion was cut by a length limit.

    Returns:
        The program as written, or none with the reason. Work is linear in `text`.

    Raises:
        ValueError: if the profile is unknown (a caller's mistake, never the model's).
    """
    if profile not in PROFILES:
        raise ValueError(f"unknown verifier profile {profile!r}; known: {', '.join(PROFILES)}.")
    lenient = profile != "strict"
    region, still_thinking = _region(text)
    if still_thinking:
        return Extraction(None, "a think tag was opened and not closed", cut=True)
    block, opened, any_fence = _last_block(region, lenient)
    if opened:
        return Extraction(None, "the last block of code was cut before its end", cut=True)
    if block is not None:
        return _sized(block, "fenced")
    found = _STARTS.search(region) if lenient and not any_fence else None
    if found is None:
        return Extraction(None, "there is no block of Python")
    if truncated:
        return Extraction(None, "a program without a block may have been cut", cut=True)
    return _sized(region[found.start() :], "unfenced")


def _region(text: str) -> tuple[str, bool]:
    """What follows the last closing think tag, and whether one stayed open after it."""
    outside = after_thoughts(text)
    # A program may hold the tag in a text of its own, so only one before the first fence opens a thought.
    first = _FENCE.search(outside)
    before = outside[: first.start()] if first else outside
    return outside, opens_thought(before)


def _last_block(region: str, lenient: bool) -> tuple[str | None, bool, bool]:
    """The last block that counts; whether the text ended inside one that would; whether there is any fence."""
    block: str | None = None
    start: re.Match[str] | None = None
    any_fence = False
    for fence in _FENCE.finditer(region):
        any_fence = True
        if start is None or (fence[3] and not start[3]):
            start = fence
        elif fence[2].startswith(start[2]) and not fence[3]:
            if _counts(start, lenient):
                block = _outdented(region[start.end() : fence.start()].removeprefix("\n"), len(start[1]))
            start = None
    return block, start is not None and _counts(start, lenient), any_fence


def _counts(start: re.Match[str], lenient: bool) -> bool:
    language = start[3].strip("{}. ").partition(" ")[0].casefold()
    return language in _PYTHON or (lenient and not language)


def _outdented(block: str, width: int) -> str:
    if not width:
        return block
    lines = block.split("\n")
    return "\n".join(line[min(width, len(line) - len(line.lstrip(" "))) :] for line in lines)


def _sized(program: str, rule: str) -> Extraction:
    if not program.strip():
        return Extraction(None, "the last block of code is empty")
    if len(program) > LONGEST_PROGRAM:
        return Extraction(None, f"the program is longer than {LONGEST_PROGRAM} characters")
    return Extraction(program, rule)
