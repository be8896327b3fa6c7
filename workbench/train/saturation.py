"""Does the student still learn from anything but itself? What a step's groups agree on, and what a verdict says of it.

A loop that takes its own majority for the truth sharpens it, right or wrong: answers stop differing, entropy falls,
pass@k comes down to mean@k. Without a verifier that is all there is to see, and it is said; with one it is known
whether what they agree on is right. Entropy halved and length doubled or halved are alarms of `Alarms`, over the same
window.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from verifiers import Vote, consensus
from workbench.recipe import Recipe
from workbench.records import Judged
from workbench.train.intervals import pass_at_k

WINDOW = 3
"""Steps averaged before anything is compared: one step of few groups is noise."""
HALVED = 0.5
AGREED = 0.9
"""Share of a group's rollouts, on average, that state the majority's answer: above it nothing is left to vote on."""
SILENT = 0.9
"""Share of groups in which every rollout is as good as the others: above it relative advantages are gone."""


def figures(judged: Sequence[Judged]) -> dict[str, float]:
    """What one step says of the student; what cannot be said is left out. Names are API.

    student_entropy: mean of -log p of the tokens it drew, nat/token (all of its rollouts, also those a gate rejects).
    Over groups of two and more: mean_at_k, pass_at_k (unbiased, k the smallest group), all_correct_share and
    all_wrong_share of judged rollouts; answer_diversity, (distinct answers - 1) / (answers - 1), 0 where all are the
    same; consensus_agreement, the share of rollouts with the majority's answer, 0 without majority; consensus_right,
    the share of majorities that the verifier finds right.
    """
    mine = [j for j in judged if j.rollout.author == "student"]
    groups: dict[str, list[Judged]] = {}
    for j in mine:
        groups.setdefault(j.rollout.problem.id, []).append(j)
    several = [group for group in groups.values() if len(group) > 1]
    out = _scores(several) | _answers(several)
    drawn = [x for j in mine for x in j.rollout.logprobs or ()]
    if drawn:
        out["student_entropy"] = -statistics.fmean(drawn)
    return out


def _scores(groups: Sequence[Sequence[Judged]]) -> dict[str, float]:
    """mean@k, pass@k and the groups that are all alike."""
    scores = [[s for j in group if (s := j.verdict.score) is not None] for group in groups]
    counts = [(len(s), sum(x == 1.0 for x in s)) for s in scores if len(s) > 1]
    if not counts:
        return {}
    k = min(n for n, _ in counts)
    return {
        "group_k": float(k),
        "mean_at_k": statistics.fmean(right / n for n, right in counts),
        "pass_at_k": statistics.fmean(pass_at_k(n, right, k) for n, right in counts),
        "all_correct_share": statistics.fmean(float(right == n) for n, right in counts),
        "all_wrong_share": statistics.fmean(float(right == 0) for _, right in counts),
    }


def _answers(groups: Sequence[Sequence[Judged]]) -> dict[str, float]:
    """How much the answers differ, and what the majority is worth."""
    if not groups:
        return {}
    votes = [(group, consensus([j.verdict.vote for j in group])) for group in groups]
    out = {"consensus_agreement": statistics.fmean(vote.agreement for _, vote in votes)}
    spread = [(len(vote.clusters) - 1) / (vote.n_voters - 1) for _, vote in votes if vote.n_voters > 1]
    if spread:
        out["answer_diversity"] = statistics.fmean(spread)
    right = [float(worth) for group, vote in votes if (worth := _right(group, vote)) is not None]
    if right:
        out["consensus_right"] = statistics.fmean(right)
    return out


def _right(group: Sequence[Judged], vote: Vote) -> bool | None:
    """The verifier's word on the majority: most of the judged ones'; None without majority of two, or unjudged."""
    scores = [s for i in vote.members if (s := group[i].verdict.score) is not None]
    return None if len(vote.members) < 2 or not scores else statistics.fmean(scores) > 0.5


class Saturation:
    """Figures step by step, and each alarm once. With the `state_dict` of a checkpoint nothing is said twice."""

    def __init__(self, recipe: Recipe, state: Mapping[str, Any] | None = None) -> None:
        """`recipe` says whether rollouts are learnt from by comparing them within their group."""
        state = state or {}
        self._said: list[str] = list(state.get("said", []))
        self._start: dict[str, list[float]] = {k: list(v) for k, v in state.get("start", {}).items()}
        self._recent: dict[str, list[float]] = {k: list(v) for k, v in state.get("recent", {}).items()}
        rewarded = any("advantage" in term.needs for term in recipe.terms)
        self._compares = rewarded and not any("advantage" in plan.sets for plan in recipe.plans)

    def observe(self, judged: Sequence[Judged]) -> tuple[dict[str, float], list[str]]:
        """(figures with length_drift, alarms) of the step; length_drift is the student's mean tokens over the start's.

        A figure that has no value in a step keeps the window it has.
        """
        found = figures(judged)
        lengths = [len(j.rollout.tokens) for j in judged if j.rollout.author == "student"]
        seen = found | ({"tokens": statistics.fmean(lengths)} if lengths else {})
        for name, value in seen.items():
            start, recent = self._start.setdefault(name, []), self._recent.setdefault(name, [])
            recent[:] = [*recent, value][-WINDOW:]
            if len(start) < WINDOW:
                start.append(value)
        drift = self._ratio("tokens")
        return found | ({} if drift is None else {"length_drift": drift}), self._alarms()

    def state_dict(self) -> dict[str, Any]:
        """JSON for the checkpoint."""
        return {"said": self._said, "start": self._start, "recent": self._recent}

    def _alarms(self) -> list[str]:
        texts = {"agreement": self._agreement(), "narrowed": self._narrowed(), "silent": self._silent()}
        new = {name: text for name, text in texts.items() if text and name not in self._said}
        self._said += new
        return list(new.values())

    def _agreement(self) -> str:
        """Everybody says the same, ever more or from the start, and nobody knows better or somebody does."""
        agreed, diversity = self._now("consensus_agreement"), self._ratio("answer_diversity")
        collapsed = diversity is not None and diversity <= HALVED
        if agreed is None or not (agreed >= AGREED or (collapsed and agreed > 0.5)):
            return ""
        text = f"{agreed:.2f} of a group's rollouts give the same answer"
        text += f", and answers differ {diversity:.2f} times as much as at the start" if collapsed else ""
        right = self._now("consensus_right")
        if right is None:
            return f"{text}: nobody verified it. A loop that believes itself looks like this: judge some answers"
        if right >= 0.5:
            return ""
        return (
            f"{text}: the verifier finds {1 - right:.2f} of these majorities wrong. Gate by Correct, not by agreement"
        )

    def _narrowed(self) -> str:
        """pass@k halved while mean@k holds."""
        wide, mean = self._ratio("pass_at_k"), self._ratio("mean_at_k")
        if wide is None or mean is None or wide > HALVED or mean < 1.0:
            return ""
        return f"pass@k is {wide:.2f} of the start's while mean@k holds: fewer problems are solved, more surely"

    def _silent(self) -> str:
        """Nothing to compare within groups."""
        right, wrong = self._now("all_correct_share"), self._now("all_wrong_share")
        if not self._compares or right is None or wrong is None or right + wrong <= SILENT:
            return ""
        do = "harder" if right > wrong else "easier"
        return f"{right + wrong:.2f} of the groups are all right or all wrong: they teach nothing. Use {do} problems"

    def _now(self, name: str) -> float | None:
        """Mean over a full window."""
        recent = self._recent.get(name, ())
        return statistics.fmean(recent) if len(recent) == WINDOW else None

    def _ratio(self, name: str) -> float | None:
        """The window's mean over the first window's; None before there is anything to compare."""
        now, start = self._now(name), self._start.get(name, ())
        if now is None or not math.fsum(start) > 0.0:
            return None
        return now / statistics.fmean(start)
