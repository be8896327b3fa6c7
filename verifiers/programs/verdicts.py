"""From a completion to a verdict."""

from __future__ import annotations

from collections.abc import Sequence

from verifiers.programs.behaviour import NO_VOTE
from verifiers.programs.box import Box
from verifiers.programs.cases import TestsError, parse_tests
from verifiers.programs.extract import extract_program
from verifiers.programs.feedback import feedback
from verifiers.programs.judging import judge_program
from verifiers.programs.link import SandboxRefused, current
from verifiers.verdict import Verdict, one_line


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
        The verdict, with the isolation as its level. Without usable tests it is `unjudged`; when the jail failed twice,
        `error`: neither has a score.

    Raises:
        ValueError: if the profile is unknown.
        SandboxRefused: if there is no isolation at the level asked, or no longer. Nothing else, whatever the text.
    """
    found = extract_program(completion, profile, truncated=truncated)
    try:
        suite = parse_tests(tests)
    except TestsError as refusal:
        return Verdict("unjudged", found.answer, one_line(str(refusal)), behaviour=NO_VOTE)
    if found.answer is None:
        return Verdict("truncated" if truncated else "no_answer", None, found.rule)
    try:
        outcome = judge_program(suite, found.answer, current() if box is None else box)
    except SandboxRefused:  # says nothing about the text, and will be so for the next one: no verdict
        raise
    except Exception as failure:  # the promise of this room: a bug of ours is an error verdict, not a lost run
        why = one_line(f"the judge failed: {type(failure).__name__}: {failure}")
        return Verdict("error", found.answer, why, behaviour=NO_VOTE)
    reason = one_line(f"{found.rule}: {outcome.reason}")
    told = feedback(outcome)
    return Verdict(outcome.status, found.answer, reason, outcome.level or "plain", told, outcome.behaviour)
