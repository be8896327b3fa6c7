"""Did the student learn, or only stop trying otherwise? pass@k and how many different answers (arXiv:2606.26091)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verifiers import Behaviour, Verdict, consensus
from workbench.errors import UsageError
from workbench.inspector.diagnostics.classes import runs
from workbench.train.intervals import Estimate, bootstrap_mean, bootstrap_share, pass_at_k

KS = (1, 4, 8, 16)


@dataclass(frozen=True)
class Diversity:
    """One pool of rollouts a problem."""

    pass_at: Mapping[int, Estimate]
    """k -> the unbiased estimate, averaged over problems with k judged rollouts or more; its n says how many."""
    answers: Estimate
    """Different final answers a problem, equivalent spellings counted once; programs by what they do."""
    solutions: Estimate | None
    """Different ways to solve a problem; None without texts."""


def diversity(
    verdicts: Mapping[str, Sequence[Verdict]],
    texts: Mapping[str, Sequence[str]] | None = None,
    ks: Sequence[int] = KS,
    *,
    seed: int = 0,
) -> Diversity:
    """The curve pass@k = mean over problems of 1 - C(n-c, k) / C(n, k) from one pool, and what the pool holds.

    Args:
        verdicts: problem -> its rollouts' verdicts; those that were not judged count nowhere.
        texts: problem -> the completions, for `solutions`.
        ks: sizes of a try.
        seed: of the resampling of problems.

    Returns:
        The curve and the counts, with intervals from resampling problems.

    Raises:
        UsageError: for k below 1.

    Source: arXiv:2606.26091: self-distillation raises pass@1 and leaves pass@k flat.
    """
    if min(ks, default=1) < 1:
        raise UsageError(f"pass@{min(ks)} tries nothing. k counts tries. Give 1 or more.")
    judged = {key: [v for v in group if v.score is not None] for key, group in verdicts.items()}
    curve = {}
    for k in ks:
        groups = {key: group for key, group in judged.items() if len(group) >= k}
        values = {key: [pass_at_k(len(g), sum(v.correct for v in g), k)] for key, g in groups.items()}
        curve[k] = bootstrap_share(values, seed=seed)
    answers = {key: [float(distinct_answers([v.vote for v in g]))] for key, g in judged.items() if g}
    ways = {key: [float(distinct_solutions(group))] for key, group in (texts or {}).items() if group}
    solutions = None if texts is None else bootstrap_mean(ways, seed=seed, unit="a problem")
    return Diversity(curve, bootstrap_mean(answers, seed=seed, unit="a problem"), solutions)


def distinct_answers(answers: Sequence[str | Behaviour | None]) -> int:
    """How many different answers a group states; equivalent ones (`1/2`, `0.5`) are one, none is no answer.

    Programs that do the same on the visible inputs are one (`Verdict.vote`).
    """
    return len(consensus(answers).clusters)


def distinct_solutions(texts: Sequence[str], *, similar: float = 0.5, words: int = 3) -> int:
    """How many clusters of texts: two are linked when their runs of `words` words overlap by `similar` (Jaccard).

    Numbers are replaced by one sign first, so the same path with another slip is the same path. A cluster is what
    links connect, so no order of the texts matters. Source: own measure; arXiv:2606.26091 counts solution clusters
    without publishing how.
    """
    sets = [runs(re.sub(r"\d+(?:[.,]\d+)*", "0", text), words) for text in texts]
    cluster = list(range(len(sets)))
    for i, one in enumerate(sets):
        for j in range(i):
            union = len(one | sets[j])
            if cluster[i] != cluster[j] and (not union or len(one & sets[j]) / union >= similar):
                old, new = cluster[i], cluster[j]
                cluster = [new if c == old else c for c in cluster]
    return len(set(cluster))
