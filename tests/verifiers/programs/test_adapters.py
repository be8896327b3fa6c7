"""Public layouts: hand-written rows as those sets publish them, through to a judged program."""

from __future__ import annotations

import base64
import json
import pickle
import zlib

import pytest

from verifiers.programs import TestsError, extract_program, judge_program, parse_tests
from verifiers.programs.adapters import adapted, layout_of

HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": "from typing import List\n\n\ndef half(n):\n    return n // 2\n\n\n"
    'def halves(numbers: List[int]) -> List[int]:\n    """Half of each number, rounded down."""\n',
    "canonical_solution": "    return [half(n) for n in numbers]\n",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([2, 5]) == [1, 2]\n"
    "    assert candidate([]) == []\n    assert half(7) == 3\n",
    "entry_point": "halves",
}
MBPP = {
    "task_id": 901,
    "text": "Write a function to add the items of a pair.",
    "code": "def add_pair(p):\r\n  return p[0] + p[1]",
    "test_list": ["assert add_pair((1, 2)) == 3", "assert set([add_pair((0, 0))]) == {0}"],
    "test_setup_code": "",
    "challenge_test_list": ["assert add_pair((-1, 1)) == 0"],
}
MBPP_PLUS = {
    "task_id": 902,
    "prompt": "Write a function to add the items of a pair.",
    "code": MBPP["code"],
    "source_file": "x.ipynb",
    "test_imports": ["import math"],
    "test_list": MBPP["test_list"],
    "test": "inputs = [[(1, 2)], [(5, 5)]]\nresults = [3, 10]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assert math.isclose(add_pair(*inp), exp)\n",
}
APPS_STDIN = {
    "problem_id": 903,
    "question": "Print the sum.",
    "solutions": json.dumps(["print(sum(map(int, input().split())))"]),
    "input_output": json.dumps(
        {"inputs": ["1 2\n", "3 4\n", ["5 6", ""], "7 8\n"], "outputs": ["3\n", "7\n", ["11"], "15\n"]}
    ),
    "difficulty": "introductory",
    "starter_code": "",
}
APPS_CALL = {
    "problem_id": 904,
    "question": "Add them.",
    "solutions": json.dumps(["class Solution:\n    def add(self, a, b):\n        return a + b"]),
    "input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [[3], [7]]}),
    "starter_code": "class Solution:\n    def add(self, a, b):\n        ",
}
PRIVATE = json.dumps([{"input": "[9]\n1", "output": "[9, 1]", "testtype": "functional"}])
LIVE = {
    "question_title": "append",
    "question_content": "Append.",
    "question_id": "905",
    "starter_code": "class Solution:\n    def append(self, items, n):\n        ",
    "difficulty": "easy",
    "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "[1, 2, 3]", "testtype": "functional"}]),
    "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(PRIVATE))).decode(),
    "metadata": json.dumps({"func_name": "append"}),
}
LIVE_STDIN = LIVE | {
    "question_id": "906",
    "starter_code": "",
    "metadata": "{}",
    "public_test_cases": json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}]),
    "private_test_cases": json.dumps([{"input": "3\n", "output": "6\n", "testtype": "stdin"}]),
}
APPEND = "class Solution:\n    def append(self, items, n):\n        return items + [n]\n"
# (row, its layout, a right program where the row has none, a wrong one, hidden tests)
SETS = [
    (HUMANEVAL, "HumanEval", None, "def halves(numbers):\n    return numbers\n", 0),
    (HUMANEVAL, "HumanEval", "def halves(x: List[int]):\n    return [half(n) for n in x]", "halves = None", 0),
    (MBPP, "MBPP", None, "def add_pair(p):\n    return 3 if p == (1, 2) else 0 if p == (0, 0) else 1\n", 1),
    (MBPP_PLUS, "MBPP", None, "def add_pair(p):\n    return 3 if p == (1, 2) else 0\n", 1),
    (APPS_STDIN, "APPS", None, "print(3)", 1),
    (APPS_CALL, "APPS", None, "class Solution:\n    def add(self, a, b):\n        return 3\n", 0),
    (LIVE, "LiveCodeBench", APPEND, "class Solution:\n    def append(self, items, n):\n        return [1, 2, 3]\n", 1),
    (LIVE_STDIN, "LiveCodeBench", "print(2 * int(input()))", "print(4)", 1),
]


@pytest.mark.parametrize(("row", "layout", "right", "wrong", "hidden"), SETS)
def test_a_row_becomes_a_problem_that_its_own_solution_solves(row, layout, right, wrong, hidden, box):
    assert layout_of(list(row)) == layout
    ours = adapted(row, layout)
    assert ours["id"]
    assert ours["question"]
    suite = parse_tests(ours["tests"])
    assert sum(case.hidden for case in suite.cases) == hidden
    program = right or extract_program(ours["solution"]).answer
    assert judge_program(suite, program, box).result == "pass"
    assert judge_program(suite, wrong, box).result in ("wrong", "error")
    assert judge_program(suite, "", box).result != "pass"


@pytest.mark.parametrize("row", [HUMANEVAL, MBPP, APPS_STDIN, LIVE])
def test_hidden_tests_are_not_in_the_question(row):
    ours = adapted(row, layout_of(list(row)) or "")
    assert "-1, 1" not in ours["question"]
    assert "15" not in ours["question"]
    assert "9" not in ours["question"]


@pytest.mark.parametrize(
    "row",
    [
        LIVE | {"private_test_cases": "!!"},
        LIVE | {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(("a", "b")))).decode()},
        LIVE | {"private_test_cases": base64.b64encode(b"x").decode()},
        LIVE | {"metadata": "{}"},
        APPS_STDIN | {"input_output": ""},
        APPS_STDIN | {"input_output": json.dumps({"inputs": ["1"], "outputs": []})},
        APPS_STDIN | {"input_output": json.dumps({"inputs": [], "outputs": []})},
        MBPP | {"test_list": []},
        MBPP | {"test_list": ["assert 1 =="]},
    ],
)
def test_a_row_that_is_not_as_published_is_refused(row):
    with pytest.raises(TestsError):
        adapted(row, layout_of(list(row)) or "")


class Touch:
    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_a_pickle_is_never_loaded():
    raw = base64.b64encode(zlib.compress(pickle.dumps((PRIVATE, Touch())))).decode()
    with pytest.raises(TestsError):
        adapted(LIVE | {"private_test_cases": raw}, "LiveCodeBench")


def test_other_columns_are_no_layout():
    assert layout_of(["question", "answer"]) is None
    assert layout_of(["question", "tests"]) is None
