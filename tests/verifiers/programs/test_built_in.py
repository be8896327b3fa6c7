"""The packaged problems verify themselves: references pass, wrong solutions fail, and both kinds of tests are there."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from verifiers.programs import built_in, extract_program, judge_program, parse_tests


def suite_of(row):
    return parse_tests([json.dumps(test) for test in row["tests"]])


def test_there_are_enough_of_every_level_and_no_two_alike():
    rows = built_in()
    assert len(rows) >= 60
    assert min(Counter(row["difficulty"] for row in rows)[level] for level in ("easy", "medium", "hard")) >= 15
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == len(rows)


@pytest.mark.parametrize("row", built_in(), ids=[row["id"] for row in built_in()])
def test_no_hidden_test_is_in_a_question(row):
    suite = suite_of(row)
    assert all(suite.groups)
    assert {case.hidden for case in suite.cases} == {False, True}
    assert len(row["wrong"]) == 2
    visible, hidden = suite.groups
    assert not {repr(case) for case in visible} & {repr(case) for case in hidden}
    for case in hidden:
        assert f"Input:\n{getattr(case, 'stdin', None)}\n" not in row["question"]


def test_references_pass_and_wrong_solutions_fail(fast_box):
    def wrongly_judged(row):
        suite = suite_of(row)
        results = []
        for text in (row["solution"], *row["wrong"]):
            program = extract_program(text).answer
            assert program is not None
            results.append(judge_program(suite, program, fast_box).result)
        return None if results[0] == "pass" and set(results[1:]) <= {"wrong", "error"} else (row["id"], results)

    with ThreadPoolExecutor(2) as pool:
        assert [found for found in pool.map(wrongly_judged, built_in()) if found] == []


def test_some_wrong_solutions_are_found_by_hidden_tests_alone(fast_box):
    rows = [row for row in built_in() if row["difficulty"] == "medium"]
    only_hidden = 0
    for row in rows[:8]:
        for text in row["wrong"]:
            outcome = judge_program(suite_of(row), extract_program(text).answer or "", fast_box)
            only_hidden += outcome.failure is not None and outcome.failure.hidden
    assert only_hidden >= 3
