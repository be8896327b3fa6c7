r"""Judges: did a completion state the right answer, and what do several completions agree on?

This room promises that every string gets a `Verdict` within its time limit, from any thread, and that a verdict is
never better than the written answer deserves: what cannot be read is not correct. Plain forms are compared exactly in
this process; what needs more goes to one worker process that is killed at its deadline and replaced. Three outcomes
are kept apart: judged right, judged not right, and not judged (score None).

What never happens here: an exception because of what a model wrote; text of a model evaluated as code; importing the
workbench, torch, sympy or a model; a guess at an answer nobody marked.

    >>> from types import SimpleNamespace
    >>> verify(SimpleNamespace(answer="1/2"), "so it is \\boxed{0.5}").status
    'correct'
"""

from __future__ import annotations

from typing import Protocol

from verifiers.answers.equivalence import close as _close_worker
from verifiers.answers.equivalence import is_placeholder, judge, unreadable
from verifiers.answers.extract import LONGEST, PROFILES, Extraction, candidates, extract
from verifiers.consensus import Vote, consensus
from verifiers.programs import LEVELS as SANDBOX_LEVELS
from verifiers.programs import SandboxRefused, at_once, check_tests, check_votes, install, open_sandbox, verify_program
from verifiers.verdict import STATUSES, Behaviour, Status, Verdict, one_line

__all__ = [
    "PROFILES",
    "SANDBOX_LEVELS",
    "STATUSES",
    "Behaviour",
    "Extraction",
    "HasAnswer",
    "SandboxRefused",
    "Status",
    "Verdict",
    "Vote",
    "at_once",
    "check_gold",
    "check_tests",
    "check_votes",
    "close",
    "consensus",
    "extract",
    "open_sandbox",
    "verify",
]


class HasAnswer(Protocol):
    """A problem, as far as a judge needs to know it."""

    @property
    def answer(self) -> str | None:
        """The gold, or None where there is nothing to compare with."""
        ...


def verify(problem: HasAnswer, completion: str, *, truncated: bool = False, profile: str = "strict") -> Verdict:
    """Judge a completion against a problem's tests where it has any, else against its gold.

    Args:
        problem: anything with an `answer`; one with `tests` that are not empty is judged as a program, in a jail.
        completion: what was written, whatever it contains.
        truncated: whether a length limit cut it. A complete marked answer is judged all the same.
        profile: which marks count as an answer; a key of `PROFILES`. Where a profile looks in two places
            (`crisp`), one right answer is enough.

    Returns:
        The verdict. At most two seconds are spent beyond the plain forms, after which its status is `timeout`; on a
        program at most what its tests allow.

    Raises:
        ValueError: if the profile is unknown.
        SandboxRefused: if programs cannot be run in isolation here, or no longer. Nothing else, whatever the text.
    """
    if tests := getattr(problem, "tests", ()):
        return verify_program(tests, completion, truncated=truncated, profile=profile)
    gold = _gold(problem.answer)
    places = candidates(completion, profile, truncated=truncated)
    found = places[0]
    if gold is None or not gold.strip() or is_placeholder(gold):
        return Verdict("unjudged", found.answer, "the problem has no usable answer to compare with")
    if found.answer is None:
        return Verdict("truncated" if truncated else "no_answer", None, found.rule)
    verdicts = []
    for place in places:
        verdicts.append(_compared(gold, place))
        if verdicts[-1].correct:
            return verdicts[-1]
    return verdicts[0]


def _compared(gold: str, found: Extraction) -> Verdict:
    try:
        judgement = judge(gold, found.answer or "")
    except Exception as failure:  # the promise of this room: a bug of ours is an error verdict, not a lost run
        return Verdict("error", found.answer, one_line(f"the judge failed: {type(failure).__name__}: {failure}"))
    return Verdict(judgement.status, found.answer, one_line(f"{found.rule}: {judgement.reason}"), judgement.level)


def close() -> None:
    """End the worker process and the jail of this process; the next judgement starts new ones."""
    _close_worker()
    install(None)


def _gold(answer: str | None) -> str | None:
    """A gold as its data set writes it; one that brings its own box is taken out of it."""
    if answer is not None and ("\\boxed" in answer or "\\fbox" in answer):
        boxed = extract(answer, "strict")
        return boxed.answer if boxed.rule == "boxed" else answer
    return answer


def check_gold(answer: str | None) -> str | None:
    """Why a gold cannot be used, to be told when problems are loaded.

    Args:
        answer: the gold.

    Returns:
        None when a completion that boxes this gold is judged correct and other spellings can be compared with it;
        else the reason in one sentence.
    """
    gold = _gold(answer)
    if gold is None or not gold.strip():
        return "The problem has no answer."
    if is_placeholder(gold):
        return f"The answer {gold.strip()[:60]!r} is a placeholder."
    if len(" ".join(gold.split())) > LONGEST:
        return f"The answer is longer than {LONGEST} characters."
    boxed = extract(f"\\boxed{{{gold}}}")
    if boxed.answer is None or boxed.answer.strip() != gold.strip():
        return f"The answer {gold.strip()[:60]!r} cannot be boxed: its braces do not match."
    if judge(gold, gold).status != "correct":
        return f"The answer {gold.strip()[:60]!r} does not equal itself."
    why = unreadable(gold)
    if why is not None:
        return f"The answer {gold.strip()[:60]!r} would only equal the same text: {why}."
    return None
