"""What a check before step 1 says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, what came out, and whether it is fine."""

    name: str
    text: str
    fine: bool = True
