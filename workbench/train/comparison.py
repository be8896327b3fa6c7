"""Arms of an evaluation beside each other: who is beaten in nothing, by how much, and how many problems would show it.

Everything is paired over problems and resampled by problem (`intervals`). The first arm is the baseline.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from statistics import stdev

import numpy as np

from workbench.errors import InputError
from workbench.text import printable
from workbench.train.evaluate import Answer, ArmResult
from workbench.train.intervals import (
    Difference,
    aligned,
    bootstrap_ratio,
    mean_at_k,
    needed_n,
    paired_bootstrap,
    problem_means,
)


def pareto(arms: Sequence[ArmResult]) -> tuple[str, ...]:
    """Names of the arms that no other arm beats, fewest tokens first.

    Beaten: another has accuracy at least as high and tokens at most as many, one of them strictly. By the point
    estimates; the intervals say how sure the order is.
    """
    points = {arm.name: (arm.arm.tokens.value, arm.arm.accuracy.value) for arm in arms}
    kept = [
        name
        for name, (tokens, accuracy) in points.items()
        if not any(t <= tokens and a >= accuracy and (t, a) != (tokens, accuracy) for t, a in points.values())
    ]
    return tuple(sorted(kept, key=points.__getitem__))


def against(baseline: ArmResult, others: Sequence[ArmResult]) -> list[Difference]:
    """Each arm's paired difference in accuracy to the baseline and its ratio of mean tokens, problems resampled."""
    out = []
    for other in others:
        name = f"{other.name} - {baseline.name}"
        out.append(Difference(name, "accuracy", paired_bootstrap(baseline.scores, other.scores)))
        ratio = bootstrap_ratio(other.tokens, baseline.tokens)
        out.append(Difference(f"{other.name} / {baseline.name}", "tokens", ratio, reference=1.0))
    return out


def needed_for(baseline: ArmResult, other: ArmResult, difference: float = 0.02) -> int:
    """Problems that a paired accuracy `difference` between these two arms needs: 95 % confidence, 80 % power.

    From the standard deviation of the differences by problem that was seen; where all problems agree, from that of
    one problem in n that does not: n agreeing problems do not show that none would differ. Raises InputError below
    two problems judged on both sides.
    """
    old, new = problem_means(baseline.scores), problem_means(other.scores)
    changes = [new[key] - old[key] for key in old if key in new]
    if len(changes) < 2:
        raise InputError(
            f"{len(changes)} problems were judged under both '{printable(baseline.name)}' and "
            f"'{printable(other.name)}'. A deviation takes two. Ask more problems."
        )
    return needed_n(difference, max(stdev(changes), 1 / math.sqrt(len(changes))))


def by_group(arms: Sequence[ArmResult], groups: Mapping[str, str]) -> dict[str, list[ArmResult]]:
    """Group -> the arms on the problems of that group alone; groups in sorted order, problems without one left out."""
    return {
        group: [ArmResult(a.name, tuple(x for x in a.answers if groups.get(x.problem) == group)) for a in arms]
        for group in sorted(set(groups.values()))
    }


def passes_table(arms: Sequence[ArmResult]) -> str:
    """mean@k, unbiased pass@k, and apart from both what was cut or held no answer, for a terminal."""
    most = min((len(v) for arm in arms for v in arm.scores.values()), default=0)
    ks = [k for k in (1, 2, 4, 8, 16) if k <= most]
    lines = [("arm", f"mean@{most}", *(f"pass@{k}" for k in ks), "truncated", "no answer", "unparsed")]
    for result in arms:
        found = [result.pass_at(k) for k in ks]
        counts = (result.arm.truncated, result.arm.no_answer, result.arm.unparsed)
        shares = tuple("-" if value is None else f"{value:.3f}" for value in found)
        cells = (f"{mean_at_k(result.scores):.3f}", *shares, *(f"{count}/{result.arm.total}" for count in counts))
        lines.append((printable(result.name), *cells))
    return aligned(lines)


def moved(before: ArmResult, after: ArmResult, n: int = 3) -> dict[str, str]:
    """`n` problems, id -> what happened: one that got worse, one that got better, then the largest changes of length.

    Chosen by the mean score of a problem's answers; where none got worse, none is shown as if it had.
    """
    old, new = problem_means(before.scores), problem_means(after.scores)
    short, long = problem_means(after.tokens), problem_means(before.tokens)
    both = [key for key in old if key in new]
    change, less = {key: new[key] - old[key] for key in both}, {key: short[key] - long[key] for key in both}
    by_length = sorted(both, key=lambda key: -abs(less[key]))
    worst = sorted((key for key in by_length if change[key] < 0), key=change.__getitem__)[:1]
    best = sorted((key for key in by_length if change[key] > 0), key=lambda key: -change[key])[:1]
    words = {-1: "got worse", 0: "as often right", 1: "got better"}
    chosen = list(dict.fromkeys([*worst, *best, *by_length]))[:n]
    return {
        key: f"{words[int(np.sign(change[key]))]}: right {old[key]:.2f} -> {new[key]:.2f}, "
        f"tokens {long[key]:.0f} -> {short[key]:.0f}"
        for key in chosen
    }


def beside(problem: str, arms: Sequence[ArmResult], *, width: int = 38, lines: int = 14) -> str:
    """What each arm answered to one problem, in columns for a terminal: its first answer, its verdict, its length.

    Where an arm has several answers the first of those that got its commonest score is shown.
    """
    columns = [_column(_typical(arm, problem), printable(arm.name), width, lines) for arm in arms]
    height = max(map(len, columns))
    rows = zip(*(column + [""] * (height - len(column)) for column in columns), strict=True)
    text = "\n".join(" | ".join(cell.ljust(width) for cell in row).rstrip() for row in rows)
    return f"{printable(problem)}\n{text}"


def _typical(arm: ArmResult, problem: str) -> Answer | None:
    answers = [a for a in arm.answers if a.problem == problem]
    if not answers:
        return None
    scores = [a.score for a in answers]
    usual = max(dict.fromkeys(scores), key=scores.count)
    return next(a for a in answers if a.score == usual)


def _column(answer: Answer | None, name: str, width: int, lines: int) -> list[str]:
    if answer is None:
        return [name[:width], "not asked"]
    said = printable(answer.text, lines=True).splitlines()
    text = [piece for line in said for piece in (textwrap.wrap(line, width) or [""])]
    text = text if len(text) <= lines else [*text[: lines - 1], "..."]
    return [name[:width], f"{answer.status}, {answer.tokens} tokens", "-" * width, *text]
