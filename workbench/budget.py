"""What a budget of time buys: the survey's cost model (arXiv:2604.00626, section 7.3), with what it leaves out.

Seconds a token: F reading it, B the backward pass and the update, G writing it; T teacher, S student; lambda in (0, 1]
the share of tokens that the teacher scores anew. For N tokens

    C_off = N (F_T + F_S + B_S)            + N G_T where the teacher has to write them first
    C_on  = N (G_S + lambda F_T + F_S + B_S)

The survey's formula leaves G_T out although its worked example is mostly that: with it the order can reverse. Its rule
for a budget, 60-70 % off-policy warm-up, 20-30 % on-policy, 10 % reward-guided, is a heuristic; the ends do not sum to
one, so shares are normalised. Judging what was written is counted with writing it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from workbench.errors import UsageError

SHARES = (0.65, 0.25, 0.10)
"""Off-policy, on-policy, reward-guided: the middle of the rule."""
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Costs:
    """Seconds a token on one machine."""

    teacher_reads: float
    student_reads: float
    student_learns: float
    student_writes: float
    teacher_writes: float = 0.0

    def off_policy(self, tokens: float = 1.0, *, written: bool = False) -> float:
        """C_off in seconds; `written`: by the teacher, now."""
        return tokens * (
            self.teacher_reads + self.student_reads + self.student_learns + (self.teacher_writes if written else 0.0)
        )

    def on_policy(self, tokens: float = 1.0, rate: float = 1.0) -> float:
        """C_on in seconds; `rate` is lambda."""
        return tokens * (self.student_writes + rate * self.teacher_reads + self.student_reads + self.student_learns)

    def of(self, writes: frozenset[str], taught: bool, rate: float = 1.0) -> float:
        """Seconds a token of a method: who writes, and whether a teacher scores."""
        return (
            ("student" in writes) * self.student_writes
            + ("teacher" in writes) * self.teacher_writes
            + taught * rate * self.teacher_reads
            + self.student_reads
            + self.student_learns
        )

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def normalised(shares: Sequence[float]) -> tuple[float, ...]:
    """The shares so that they sum to one. Raises UsageError for shares that cannot."""
    if not shares or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise UsageError(f"--shares {','.join(map(str, shares))} share nothing. They are numbers from 0 on, not all 0.")
    return tuple(share / sum(shares) for share in shares)


def read_budget(text: str) -> float:
    """Seconds of `8h`, `90m`, `1.5d`, `300s`. Raises UsageError."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(s|m|min|h|d)", text)
    if found is None or not float(found[1]):
        raise UsageError(f"--budget {text!r} is no time. It is a number above 0 with s, m, h or d. Write --budget 8h")
    return float(found[1]) * _UNITS[found[2]]
