"""The packaged problems: 61 in own words, easy, medium and hard, with references, hidden tests and wrong solutions."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any


@cache
def built_in() -> tuple[dict[str, Any], ...]:
    """The rows: `id`, `difficulty`, `question`, `solution`, `tests`, and `wrong`, two solutions that must fail."""
    text = Path(__file__).with_name("problems.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())
