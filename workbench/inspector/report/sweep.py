"""The budget sweep as a section: the same saved generations, cut and judged again (arXiv:2607.05184)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.engine.engine import Engine
from workbench.inspector.diagnostics import Generation, budget_sweep
from workbench.inspector.diagnostics.budgets import Budget, Judge
from workbench.inspector.report.scoring import Chain, answer_chances
from workbench.inspector.report.section import Cell, Plot, Row, Section, common, paired_share, shown
from workbench.records import Context, Problem
from workbench.train.intervals import Estimate, Scores, bootstrap_share

TITLE = "Is it better cut short, or worse when let think?"


@dataclass(frozen=True)
class Saved:
    """One model's generations, and what it answers when it is made to."""

    generations: Sequence[Generation]
    forced: Mapping[int, Scores]
    """Tokens kept -> problem -> whether the gold answer is what greedy decoding writes after the cut and the cue."""


def sizes_of(longest: int) -> list[int]:
    """An eighth, a quarter, half and the whole of the room, in tokens."""
    return sorted({max(1, longest // part) for part in (8, 4, 2, 1)})


def forced(
    engine: Engine, context: Context, generations: Sequence[Generation], problems: Mapping[str, Problem], longest: int
) -> dict[int, Scores]:
    """Cut the first generation of each problem at every budget and ask for the answer there (early exit)."""
    first = {g.problem: g for g in reversed(generations) if problems[g.problem].answer}
    found: dict[int, Scores] = {}
    for size in sizes_of(longest):
        chains = [Chain(problems[key], "".join(g.text[:size])) for key, g in first.items()]
        chances = answer_chances(engine, context, chains)
        found[size] = {key: [float(c.greedy)] for key, c in zip(first, chances, strict=True)}
    return found


def budgets(pools: Mapping[str, Saved], judge: Judge, longest: int, fork: float | None, basis: str) -> Section:
    """Accuracy, forced answers, markers and forks at an eighth, a quarter, half and the whole of the room.

    Args:
        pools: before and after, or one of them.
        judge: the run's verifier; told whether the text was cut.
        longest: tokens that a completion could have.
        fork: the threshold of the untrained student's entropies, nats; None: forks are not counted.
        basis: what the generations are.
    """
    sizes = sizes_of(longest)
    swept = {name: budget_sweep(pool.generations, judge, sizes, fork=fork) for name, pool in pools.items()}
    changes = {size: _change(pools, judge, size) for size in sizes} if len(pools) == 2 else {}
    answers = {
        name: {size: bootstrap_share(scores) for size, scores in pool.forced.items()} for name, pool in pools.items()
    }
    rows = [_row(i, size, swept, answers, changes.get(size)) for i, size in enumerate(sizes)]
    last = f"{list(pools)[-1]}: {shown(swept[list(pools)[-1]][-1].accuracy)} at {sizes[-1]} tokens"
    key = {"shortest_budget_change": changes[sizes[0]], "longest_budget_change": changes[sizes[-1]]} if changes else {}
    answer = (
        f"after - before: {shown(changes[sizes[0]], signed=True)} at {sizes[0]} tokens, "
        f"{shown(changes[sizes[-1]], signed=True)} at {sizes[-1]}"
        if changes
        else last
    )
    return Section(
        "budgets",
        TITLE,
        answer,
        "probed",
        f"{basis}; forks: tokens above {fork:.2f} nat, the untrained student's 80th percentile"
        if fork is not None
        else basis,
        tuple(rows),
        Plot("curve", tuple(pools), "accuracy", "tokens kept"),
        key,
        misleads="A cut completion without an answer counts as wrong: a short budget tells where the answer stands. "
        "`forced` asks for the answer after the cut, of each problem's first completion: it counts the gold answer "
        "as greedy decoding would begin, by the cue alone.",
    )


def _row(
    i: int,
    size: int,
    swept: Mapping[str, Sequence[Budget]],
    answers: Mapping[str, Mapping[int, Estimate]],
    change: Estimate | None,
) -> Row:
    cells: dict[str, Cell] = {name: found[i].accuracy for name, found in swept.items()}
    cells |= {} if change is None else {"change": change}
    cells |= {f"forced_{name}": found.get(size) for name, found in answers.items()}
    for name, found in swept.items():
        cells |= {f"cut_{name}": found[i].truncated, f"markers_per_1000_{name}": found[i].markers}
        cells |= {} if found[i].forks is None else {f"forks_{name}": found[i].forks}
    return Row(f"{size} tokens", cells, float(size))


def _change(pools: Mapping[str, Saved], judge: Judge, size: int) -> Estimate:
    before, after = (_scores(pool.generations, judge, size) for pool in pools.values())
    return paired_share(*common(before, after))


def _scores(pool: Sequence[Generation], judge: Judge, size: int) -> Scores:
    out: dict[str, list[float | None]] = {}
    for g in pool:
        cut = len(g.text) > size or not g.stopped
        out.setdefault(g.problem, []).append(judge(g.problem, "".join(g.text[:size]), cut).score)
    return out
