"""pass@k and different answers as a section: does the student still try different things (arXiv:2606.26091)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from verifiers import Verdict
from workbench.inspector.diagnostics import diversity
from workbench.inspector.report.collect import Recorded, verdict_of
from workbench.inspector.report.section import Cell, Plot, Row, Section, Source, common, paired_share, shown, unknown
from workbench.train.intervals import Estimate, Scores, pass_at_k

TITLE = "Does the student still try different things?"
KS = (1, 2, 4, 8, 16)
Pool = tuple[Mapping[str, Sequence[Verdict]], Mapping[str, Sequence[str]]]
"""Problem -> verdicts, problem -> texts."""


def recorded(run: Recorded) -> Section:
    """The training rollouts, one pool a problem and step, where groups were drawn."""
    groups: dict[str, list[Mapping[str, object]]] = {}
    for row in run.rollouts:
        if row.get("author") == "student":
            groups.setdefault(f"{row['step']}/{row['problem']}", []).append(row)
    several = {key: rows for key, rows in groups.items() if len(rows) > 1}
    if not several:
        return unknown("diversity", TITLE, "the run drew one completion a problem; --probe draws several")
    verdicts = {key: [verdict_of(row) for row in rows] for key, rows in several.items()}
    texts = {key: [str(row["text"]) for row in rows] for key, rows in several.items()}
    return section({"training_rollouts": (verdicts, texts)}, "recorded", f"{len(several)} groups of the training")


def section(pools: Mapping[str, Pool], source: Source, basis: str) -> Section:
    """The curve of pass@k, distinct answers and solutions of each pool; two pools are compared problem by problem.

    Args:
        pools: name -> pool; `before` and `after` for two.
        source: recorded or probed.
        basis: what the pools are.
    """
    least = min(len(group) for verdicts, _ in pools.values() for group in verdicts.values())
    most = max(len(group) for verdicts, _ in pools.values() for group in verdicts.values())
    ks = [k for k in KS if k <= most]
    found = {name: diversity(verdicts, texts, ks) for name, (verdicts, texts) in pools.items()}
    rows, key = [], dict[str, Estimate]()
    for k in ks:
        cells: dict[str, Cell] = {name: f.pass_at[k] for name, f in found.items()}
        if len(pools) == 2:
            cells["change"] = _change(pools, k)
        rows.append(Row(f"pass@{k}", cells, float(k)))
    rows.append(Row("different answers a problem", {name: f.answers for name, f in found.items()}))
    rows.append(Row("different solutions a problem", {name: f.solutions for name, f in found.items()}))
    for name, f in found.items():
        key |= {f"pass_at_{k}_{name}": value for k, value in f.pass_at.items()} | {f"answers_{name}": f.answers}
    wide = max(k for k in ks if k <= least)
    if len(pools) == 2:
        key |= {"pass_at_1_change": _change(pools, 1), "pass_at_k_change": _change(pools, wide)}
    last = list(pools)[-1]
    answer = (
        f"{last.replace('_', ' ')}: pass@1 {shown(key[f'pass_at_1_{last}'])}, pass@{wide} "
        f"{shown(key[f'pass_at_{wide}_{last}'])}, {shown(key[f'answers_{last}'])} different answers"
    )
    return Section(
        "diversity",
        TITLE,
        answer,
        source,
        basis,
        tuple(rows),
        Plot("curve", tuple(pools), "chance that one of k is right", "k"),
        key,
        {f"correct_{name}": {p: [v.score for v in g] for p, g in pool[0].items()} for name, pool in pools.items()},
        misleads="pass@k of a small pool is as wide as its interval; k cannot exceed the completions of a problem.",
    )


def _change(pools: Mapping[str, Pool], k: int) -> Estimate:
    before, after = (_passes(pool, k) for pool in pools.values())
    return paired_share(*common(before, after))


def _passes(pool: Pool, k: int) -> Scores:
    """Problem -> its unbiased pass@k; None where fewer than k were judged."""
    judged = {key: [v for v in verdicts if v.score is not None] for key, verdicts in pool[0].items()}
    return {
        key: [pass_at_k(len(group), sum(v.correct for v in group), k) if len(group) >= k else None]
        for key, group in judged.items()
    }
