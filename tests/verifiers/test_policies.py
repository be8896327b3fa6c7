"""Every policy on its examples, and on many answers: which spellings of a gold are accepted, which neighbours are not.

`policies.txt` has a class (`@`), a gold, and the answers that state it (`=`) or do not (`!`), separated by ` ;; `.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

import pytest

import verifiers
from tests.documents import VERIFIERS, with_policies
from verifiers.answers.equivalence import judge
from verifiers.policy import POLICIES, Policy

from .conftest import HERE, Problem, boxed


@lru_cache(maxsize=1)
def cases() -> tuple[tuple[str, str, str, bool], ...]:
    """Class, gold, answer, and whether the answer states the gold."""
    return tuple(_cases())


def _cases() -> Iterator[tuple[str, str, str, bool]]:
    group = gold = ""
    for line in (HERE / "policies.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("@ "):
            group = line[2:]
        elif line.startswith(("= ", "! ")):
            for answer in line[2:].split(" ;; "):
                yield group, gold, answer, line.startswith("=")
        elif line:
            gold = line


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.rule[:50].encode("ascii", "replace").decode())
def test_a_policy_is_what_happens(policy: Policy):
    assert policy.reason
    assert policy.examples
    for each in policy.examples:
        verdict = verifiers.verify(Problem(each.gold), each.text, truncated=each.truncated, profile=each.profile)
        assert verdict.status == each.status, (each, verdict)


def test_the_page_shows_every_policy():
    text = VERIFIERS.read_text(encoding="utf-8")
    assert with_policies(text) == text, "run `make docs`"
    assert all(policy.reason.replace("|", "\\|") in text for policy in POLICIES)
    assert all(f"`{profile}`" in text for profile in verifiers.PROFILES)
    assert all(f"| `{status}` |" in text for status in verifiers.STATUSES)


GROUPS = sorted({group for group, *_ in cases()})


@pytest.mark.parametrize("group", GROUPS)
def test_answers_are_accepted_and_refused_as_the_policies_say(group):
    for gold, answer, same in [case[1:] for case in cases() if case[0] == group]:
        verdict = boxed(gold, answer)
        assert verdict.status != "error", (gold, answer, verdict)
        assert verdict.correct == same, (gold, answer, verdict)


@pytest.mark.parametrize("group", GROUPS)
def test_policies_hold_both_ways_round(group):
    for gold, answer, _ in [case[1:] for case in cases() if case[0] == group]:
        assert judge(gold, answer).status == judge(answer, gold).status, (gold, answer)


@pytest.mark.parametrize("group", GROUPS)
def test_what_states_one_gold_states_itself(group):
    for _, answer, same in [case[1:] for case in cases() if case[0] == group]:
        if same:
            assert boxed(answer, answer).correct, answer


def test_every_class_has_many_cases_of_both_kinds():
    said = Counter((group, same) for group, _, _, same in cases())
    for group in GROUPS:
        few = 4 if group == "injections and traps" else 20
        assert said[group, True] >= few, (group, said[group, True])
        assert said[group, False] >= 20, (group, said[group, False])
    assert len(cases()) > 1900
