"""Programs that want to pass without being right: none does, none escapes its verdict, none tells a hidden test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verifiers.programs import verify_program

from .plain import column_of

ROWS = [json.loads(line) for line in Path(__file__).with_name("forgeries.jsonl").read_text().splitlines()]
HIDDEN = 987654321
LITERAL = {"call": "f", "args": "(2,)", "literals": True}
TESTS = {
    "call": (
        {"call": "f", "args": [2, 3], "expected": 5},
        {"call": "f", "args": [4, 5], "expected": 9},
        {"call": "f", "args": [1, HIDDEN], "expected": HIDDEN + 1, "hidden": True},
    ),
    "after": ({"call": "f", "args": [[3, 1, 2]], "args_after": [[1, 2, 3]]},),
    "stdin": ({"stdin": "2 3\n", "stdout": "5\n"}, {"stdin": "7 8\n", "stdout": "15\n", "hidden": True}),
    "check": (
        {"check": f"def check(candidate):\n    assert candidate(2, 3) == 5, {HIDDEN}\n", "call": "f", "hidden": True},
    ),
    "cplx": (LITERAL | {"expected": "2j"},),
    "fl": ({"call": "f", "args": [2], "expected": 0.5},),
    "st": (LITERAL | {"expected": "{1, 2, 3}"},),
    "dc": (LITERAL | {"expected": "{1: 2, 3: 4}"},),
    "boolt": ({"call": "f", "args": [2], "expected": True},),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_no_forgery_is_right_or_escapes_its_verdict(row, fast_box):
    tests = column_of(*(test | {"seconds": 3} for test in TESTS[row["tests"]]))
    verdict = verify_program(tests, f"```python\n{row['source']}\n```", box=fast_box)
    assert verdict.status in ("wrong", "timeout"), verdict
    assert verdict.score == 0.0
    assert str(HIDDEN) not in verdict.feedback


@pytest.mark.parametrize(
    "body",
    ["raise ValueError(b)", "return b", "print(b)", "import sys; sys.exit(str(b))", "import os; os._exit(b % 256)"],
)
def test_what_a_program_does_on_a_hidden_test_is_never_told(body, fast_box):
    source = f"def f(a, b):\n    if b > 100:\n        {body}\n    return a + b\n"
    if body == "print(b)":
        source = source.replace("return a + b", "return (a + b) * (b < 100)")
    verdict = verify_program(column_of(*TESTS["call"]), f"```python\n{source}```", box=fast_box)
    assert verdict.score == 0.0
    assert verdict.feedback.startswith("The program passes the tests that are shown, but it ")
    assert str(HIDDEN) not in verdict.feedback
