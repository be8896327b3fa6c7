"""From a completion to a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from verifiers.programs.box import Box
from verifiers.programs.cases import TestsError, parse_tests
from verifiers.programs.extract import extract_program
from verifiers.programs.feedback import feedback, neutral
from verifiers.programs.judging import judge_program
from verifiers.programs.link import SandboxRefused, current
from verifiers.verdict import Verdict

LONGEST_REASON = 200
"""Characters of a verdict's reason."""


def verify_program(
    tests: Sequence[str],
    completion: str,
    *,
    truncated: bool = False,
    profile: str = "strict",
    box: Box | None = None,
) -> Verdict:
    """Judge a completion as a program.

    Args:
        tests: a problem's `tests` column.
        completion: what was written, whatever it contains.
        truncated: whether a length limit cut it. A complete block is judged all the same.
        profile: which blocks count; a key of `PROFILES`.
        box: where to run it; None: in the jail of this process.

    Returns:
        The verdict, with the isolation as its level. Without usable tests it is `unjudged`; without a jail, or when
        the jail failed, `error`: neither has a score.

    Raises:
        ValueError: if the profile is unknown. Nothing else, whatever the text.
    """
    found = extract_program(completion, profile, truncated=truncated)
    try:
        suite = parse_tests(tests)
    except TestsError as refusal:
        return Verdict("unjudged", found.answer, _one_line(str(refusal)))
    if found.answer is None:
        return Verdict("truncated" if truncated else "no_answer", None, found.rule)
    try:
        outcome = judge_program(suite, found.answer, current() if box is None else box)
    except SandboxRefused as refusal:
        return Verdict("error", found.answer, _one_line(f"no sandbox: {refusal}"))
    except Exception as failure:  # the promise of this room: a bug of ours is an error verdict, not a lost run
        return Verdict("error", found.answer, _one_line(f"the judge failed: {type(failure).__name__}: {failure}"))
    reason = _one_line(f"{found.rule}: {outcome.reason}")
    return Verdict(outcome.status, found.answer, reason, outcome.level or "plain", feedback(outcome))


def _one_line(reason: str) -> str:
    """A reason that can be printed: it may quote what a model wrote."""
    shown = neutral(reason[: 4 * LONGEST_REASON]).replace("\n", " ")
    return shown if len(shown) <= LONGEST_REASON else f"{shown[: LONGEST_REASON - 3]}..."
