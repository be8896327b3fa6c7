"""The budget sweep as a section: the same saved generations, cut and judged again (arXiv:2607.05184)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench.inspector.diagnostics import Generation, budget_sweep
from workbench.inspector.diagnostics.budgets import Budget, Judge
from workbench.inspector.report.section import Cell, Plot, Row, Section, common, shown
from workbench.train.intervals import Estimate, Scores, paired_bootstrap

TITLE = "Is it better cut short, or worse when let think?"


def budgets(
    pools: Mapping[str, Sequence[Generation]], judge: Judge, longest: int, fork: float | None, basis: str
) -> Section:
    """Accuracy, markers and forks at an eighth, a quarter, half and the whole of the room.

    Args:
        pools: before and after, or one of them.
        judge: the run's verifier; told whether the text was cut.
        longest: tokens that a completion could have.
        fork: the threshold of the untrained student's entropies, nats; None: forks are not counted.
        basis: what the generations are.
    """
    sizes = sorted({max(1, longest // part) for part in (8, 4, 2, 1)})
    swept = {name: budget_sweep(pool, judge, sizes, fork=fork) for name, pool in pools.items()}
    changes = {size: _change(pools, judge, size) for size in sizes} if len(pools) == 2 else {}
    rows = [_row(i, size, swept, changes.get(size)) for i, size in enumerate(sizes)]
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
        misleads="A cut completion without an answer counts as wrong: a short budget measures where the answer stands. "
        "The answers after a cut are not forced here; the steps' section forces them.",
    )


def _row(i: int, size: int, swept: Mapping[str, Sequence[Budget]], change: Estimate | None) -> Row:
    cells: dict[str, Cell] = {name: found[i].accuracy for name, found in swept.items()}
    cells |= {} if change is None else {"change": change}
    for name, found in swept.items():
        cells |= {f"cut_{name}": found[i].truncated, f"markers_per_1000_{name}": found[i].markers}
        cells |= {} if found[i].forks is None else {f"forks_{name}": found[i].forks}
    return Row(f"{size} tokens", cells, float(size))


def _change(pools: Mapping[str, Sequence[Generation]], judge: Judge, size: int) -> Estimate:
    before, after = (_scores(pool, judge, size) for pool in pools.values())
    return paired_bootstrap(*common(before, after))


def _scores(pool: Sequence[Generation], judge: Judge, size: int) -> Scores:
    out: dict[str, list[float | None]] = {}
    for g in pool:
        cut = len(g.text) > size or not g.stopped
        out.setdefault(g.problem, []).append(judge(g.problem, "".join(g.text[:size]), cut).score)
    return out
