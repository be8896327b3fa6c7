"""Hostile and honest programs of the shared corpus, through the public door: no forged pass, no honest one refused."""

from __future__ import annotations

from typing import Any

import pytest

from verifiers.programs import judge_program, parse_tests

from .plain import column_of


def column(row: dict[str, Any]) -> list[str]:
    """The corpus's tests in our column."""
    tests, seconds = row["tests"], {"seconds": 3}
    if row["kind"] == "check":
        return column_of({"check": tests["check"], "call": row["entry_point"]} | seconds)
    if row["kind"] == "stdin":
        return column_of(*({"stdin": test["input"], "stdout": test["output"]} | seconds for test in tests))
    return column_of(
        *(
            {"call": row["entry_point"], "args": test["args"], "expected": test["expected"], "literals": True} | seconds
            for test in tests
        )
    )


def judged(rows, box):
    """Rows whose verdict is none of the acceptable ones; a host without the probes' targets refuses them all."""
    wrong = []
    for row in rows:
        outcome = judge_program(parse_tests(column(row)), row["candidate_code"], box)
        if outcome.result not in row["acceptable"]:
            wrong.append((row["id"], outcome.result, row["acceptable"], outcome.reason))
    return wrong


@pytest.mark.parametrize("category", ["verdict_forging", "self_damage", "honest", "policy"])
def test_forgeries_fail_and_honest_programs_pass(shared, category, box):
    if type(box).__name__ == "PlainBox":
        pytest.skip("hostile programs run in a jail or not at all")
    rows = [row for row in shared("hostile-code.jsonl.gz") if row["category"] == category]
    assert rows
    wrong = judged(rows, box)
    # Without namespaces there is no private directory to write to.
    allowed = {"h_tempfile"} if box.level == "landlock" else set()
    assert [found for found in wrong if found[0] not in allowed] == []
