"""Does the signal teach, step by step: cheap measures of a step's token records as columns, and alarms once each.

The measures are those of `diagnostics`, without intervals: one step of few problems has none worth showing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workbench.inspector.diagnostics import CLASSES, TokenRecord, classify, concentration, markers
from workbench.inspector.diagnostics.answers import counted_answer
from workbench.inspector.diagnostics.leakage import mentions
from workbench.inspector.diagnostics.record import Floats, by_problem
from workbench.inspector.seen import Seen
from workbench.train.intervals import problem_means

MOST = 8192
"""Tokens looked at in a step, whole completions in their order: sorting as many by kind takes a tenth of a second."""
WINDOW = 3
"""Steps averaged before anything is said."""
COIN, MOSTLY = 0.5, 0.5


def of_loss(seen: Seen) -> TokenRecord | None:
    """A record as the loss knows it; None where nobody knows both log-probs, as of a completion that a gate left out.

    The divergence is the size of the first term's own value: clipped where the recipe clips, and |value| of a sampled
    term, which has a sign. Tokens that nobody scored count nowhere; entropies are NaN where the loss had none.
    """
    known = np.isfinite(seen.student_logp) & np.isfinite(seen.teacher_logp) & np.isfinite(seen.divergence)
    if not known.any():
        return None
    student, teacher, size = (
        np.where(known, x, 0.0) for x in (seen.student_logp, seen.teacher_logp, np.abs(seen.divergence))
    )
    weight = np.where(known, np.abs(seen.weight), 0.0)
    return TokenRecord(
        seen.problem, seen.text, student, teacher, seen.student_entropy, seen.teacher_entropy, size, weight,
        seen.verdict,
    )  # fmt: skip


def columns(
    records: Sequence[TokenRecord], hidden: Mapping[str, str] | None = None, questions: Mapping[str, str] | None = None
) -> dict[str, float]:
    """What one step says of its signal; what cannot be said is left out. Names are API.

    concentration: tokens that carry 80 % of the divergence / counted tokens. divergence_share.CLASS: sum of w D of the
    class / sum of all. answer_noise: share of answer tokens whose sign of d contradicts the verdict. answer_d_right,
    answer_d_wrong: mean d = log p_T - log p_S at answer tokens of right and of wrong completions, nats. marker_d: mean
    d at words of a second thought, nats. mention_share: completions that speak of a text they were not shown.

    All are averaged by problem first; shares are ratios of means.

    Args:
        records: the step's completions; the first 8,192 tokens of them are looked at.
        hidden: problem -> what the teacher alone was shown, for the class `copied`.
        questions: problem -> its question.
    """
    some = _first(records)
    hidden, questions = hidden or {}, questions or {}
    if not some:
        return {}
    out = {"concentration": _mean(some, [_carrying(r) for r in some])}
    kinds = [classify(r.text, hidden.get(r.problem, ""), questions.get(r.problem, "")) for r in some]
    loss = [float(r.share_of_loss.sum()) for r in some]
    for name in CLASSES:
        masks = [np.array([k == name for k in kind], dtype=np.bool_) for kind in kinds]
        part = [float(r.share_of_loss[mask].sum()) for r, mask in zip(some, masks, strict=True)]
        out[f"divergence_share.{name}"] = _ratio(some, part, loss)
    out |= _answers(some)
    out["marker_d"] = _mean(some, [_average(r.difference[markers(r.text) & r.counted]) for r in some])
    spoke = [float(bool(mentions("".join(r.text), questions.get(r.problem, "")))) for r in some]
    out["mention_share"] = _mean(some, spoke)
    return {name: value for name, value in out.items() if math.isfinite(value)}


def _answers(records: Sequence[TokenRecord]) -> dict[str, float]:
    """At the tokens where the answer stands."""
    used = [r for r in records if r.verdict is not None and r.verdict.status in ("correct", "wrong")]
    at = [counted_answer(r) for r in used]
    d = [r.difference[places] for r, places in zip(used, at, strict=True)]
    against = [float((x * (1 if r.correct else -1) < 0).sum()) for r, x in zip(used, d, strict=True)]
    out = {"answer_noise": _ratio(used, against, [float(len(x)) for x in d])}
    for name, right in (("right", True), ("wrong", False)):
        out[f"answer_d_{name}"] = _mean(
            used, [_average(x) if r.correct is right else None for r, x in zip(used, d, strict=True)]
        )
    return out


def _first(records: Sequence[TokenRecord]) -> list[TokenRecord]:
    some: list[TokenRecord] = []
    tokens = 0
    for record in records:
        tokens += len(record)
        if some and tokens > MOST:
            break
        some.append(record)
    return some


def _carrying(record: TokenRecord) -> float | None:
    found = concentration(record)
    return len(found.positions) / found.counted if len(found.positions) else None


def _average(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None


def _mean(records: Sequence[TokenRecord], values: Sequence[float | None]) -> float:
    means = problem_means(by_problem(records, values))
    return statistics.fmean(means.values()) if means else math.nan


def _ratio(records: Sequence[TokenRecord], part: Sequence[float], whole: Sequence[float]) -> float:
    """Ratio of means over problems, as `diagnostics.classes.share`."""
    below = problem_means(by_problem(records, whole))
    above = problem_means(by_problem(records, part))
    total = math.fsum(below.values())
    return math.fsum(above.values()) / total if total > 0 else math.nan


class SignalWatch:
    """Columns step by step, and each alarm once. With the `state_dict` of a checkpoint nothing is said twice."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """Nothing seen yet, or what a checkpoint remembers."""
        state = state or {}
        self._said: list[str] = list(state.get("said", []))
        self._recent: dict[str, list[float]] = {k: list(v) for k, v in state.get("recent", {}).items()}

    def observe(self, found: Mapping[str, float]) -> list[str]:
        """Take one step's columns; returns the alarms it sets off."""
        style = sum(found.get(f"divergence_share.{name}", math.nan) for name in ("style", "format"))
        for name, value in (("noise", found.get("answer_noise", math.nan)), ("style", style)):
            if math.isfinite(value):
                self._recent[name] = [*self._recent.get(name, []), value][-WINDOW:]
        noise, style = self._now("noise"), self._now("style")
        texts = {
            "noise": f"at {noise:.2f} of the answer tokens the signal's sign contradicts the verdict, a coin or worse: "
            "check that the teacher is right"
            if noise >= COIN
            else "",
            "style": f"{style:.2f} of the divergence is on style and format: compare with wrong hints (report --probe)"
            if style > MOSTLY
            else "",
        }
        new = {name: text for name, text in texts.items() if text and name not in self._said}
        self._said += new
        return list(new.values())

    def state_dict(self) -> dict[str, Any]:
        """JSON for the checkpoint."""
        return {"said": self._said, "recent": self._recent}

    def _now(self, name: str) -> float:
        recent = self._recent.get(name, [])
        return statistics.fmean(recent) if len(recent) == WINDOW else math.nan
