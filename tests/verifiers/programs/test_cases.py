"""Tests as data: what is accepted, and what is refused with its place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.programs import TestsError, check_tests, parse_tests

from .plain import column_of

CALL = {"call": "f", "args": [1], "expected": 2}
CHECK = {"check": "def check(candidate):\n    assert candidate(1) == 2\n", "call": "f"}
STDIN = {"stdin": "1\n", "stdout": "2\n"}


@pytest.mark.parametrize("test", [CALL, CHECK, STDIN])
def test_each_kind_can_be_read(test):
    suite = parse_tests(column_of(test, test | {"hidden": True, "seconds": 7}))
    assert [case.hidden for case in suite.cases] == [False, True]
    assert suite.seconds == 7
    assert check_tests(column_of(test)) is None


def test_visible_tests_come_first_and_keep_their_place_in_the_column():
    suite = parse_tests(column_of(CALL | {"hidden": True}, CALL, CALL | {"hidden": True}, CALL))
    assert [case.index for case in suite.cases] == [1, 3, 0, 2]
    assert [[case.index for case in group] for group in suite.groups] == [[1, 3], [0, 2]]


def test_literals_say_what_json_cannot():
    test = {"call": "f", "args": "({1, 2}, (3,))", "expected": "{1: (2, b'x')}", "literals": True}
    case = parse_tests(column_of(test)).cases[0]
    assert case.arguments == ({1, 2}, (3,))
    assert case.expected == {1: (2, b"x")}


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ([], "There are no tests"),
        (["not json"], "Test 1 is not JSON"),
        (["[]"], "Test 1 is not an object"),
        (column_of(CALL, {"call": "f"}), "Test 2: a call test needs args, call; it lacks args"),
        (column_of(CALL | {"expectd": 1}), "Test 1: a call test has no expectd"),
        (column_of({"call": "f", "args": [1]}), "Test 1 compares nothing"),
        (column_of(CALL, STDIN), "kinds call and stdin"),
        (column_of(CALL, CALL | {"call": "g"}), "differ in `call`"),
        (column_of(CALL | {"call": "f; import os"}), "`call` must be a name"),
        (column_of(CALL | {"args": 1}), "`args` must be a list"),
        (column_of(CALL | {"args_after": [1, 2]}), "as many values"),
        (column_of(CALL | {"hidden": "yes"}), "`hidden` must be true or false"),
        (column_of(CALL | {"seconds": 0}), "`seconds`"),
        (column_of(CALL | {"literals": True}), "`args` is no Python literal"),
        (['{"call": "f", "args": [], "expected": NaN}'], "not-a-number"),
        (column_of(STDIN | {"stdout": " \n"}), "No test expects any output"),
        (column_of(STDIN | {"stdin": 5}), "`stdin` must be a text"),
        (column_of(CHECK | {"check": "def test(candidate):\n    assert candidate"}), "defines no function check"),
        (column_of(CHECK | {"check": "def check(candidate):\n    pass"}), "never uses its candidate"),
        (column_of(CHECK | {"check": "def check("}), "no Python source"),
        (column_of(CHECK | {"check": "import numpy as np\n" + str(CHECK["check"])}), "imports numpy"),
        (column_of(CHECK | {"check": "from numpy.linalg import norm\n" + str(CHECK["check"])}), "imports numpy"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(tests, why):
    refusal = check_tests(tests)
    assert refusal is not None
    assert why in refusal
    with pytest.raises(TestsError):
        parse_tests(tests)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
KEYS = st.sampled_from(["call", "args", "expected", "args_after", "literals", "stdin", "stdout", "check", "hidden"])


@given(rows=st.lists(st.dictionaries(KEYS, JSON, max_size=6).map(json.dumps) | st.text(max_size=20), max_size=3))
def test_whatever_the_column_holds_it_is_a_suite_or_a_refusal(rows):
    if check_tests(rows) is None:
        assert parse_tests(rows).cases
