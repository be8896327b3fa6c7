"""What the verifier's tests share: boxed answers, corpora, a worker left clean."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import verifiers

HERE = Path(__file__).parent


class Problem:
    """The least a judge needs."""

    def __init__(self, answer: str | None) -> None:
        self.answer = answer


def boxed(gold: str | None, answer: str, **how: Any) -> verifiers.Verdict:
    """The verdict on an answer in a box."""
    return verifiers.verify(Problem(gold), f"So it is $\\boxed{{{answer}}}$.", **how)


def own(name: str) -> list[dict[str, Any]]:
    """Rows of a corpus in this folder."""
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


@pytest.fixture
def shared() -> Callable[[str], list[dict[str, Any]]]:
    """Reads a corpus that is not part of the repository."""
    folder = os.environ.get("WORKBENCH_CORPORA")
    if not folder:
        pytest.skip(
            "WORKBENCH_CORPORA is unset: set it to the folder that holds math-cases.jsonl.gz and gsm8k-*.jsonl.gz"
        )

    def rows(name: str) -> list[dict[str, Any]]:
        path = Path(folder) / name
        if not path.exists():
            pytest.skip(f"WORKBENCH_CORPORA has no {name}")
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    return rows


@pytest.fixture(scope="session", autouse=True)
def _no_worker_left() -> Iterator[None]:
    yield
    verifiers.close()
