"""What the task calls: its problems, and whether an answer is right. Copied beside the task, so it imports little.

lm-evaluation-harness hands over the text alone, not whether a length limit cut it: an answer that stands in a text
that was cut counts here, where `workbench.evaluate` may call it truncated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import verifiers

HERE = Path(__file__).parent


def dataset(profile: str = "strict", **_: Any) -> dict[str, Any]:
    """The problems as lm-eval wants them: one split of rows. `profile` is the task's, and goes with every row."""
    import datasets

    with (HERE / "problems.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) | {"profile": profile} for line in file]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`correct`: 1 or 0; `judged`: 0 where the verifier itself failed, which says nothing about the answer."""
    verdict = verifiers.verify(SimpleNamespace(answer=doc["answer"]), results[0], profile=doc["profile"])
    return {"correct": verdict.score or 0.0, "judged": float(verdict.score is not None)}
