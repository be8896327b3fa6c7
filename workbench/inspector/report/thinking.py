"""Which steps of a chain the answer rests on, measured on a model: the True-Thinking Score (arXiv:2510.24941)."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.engine.engine import Engine
from workbench.inspector.diagnostics import score_steps
from workbench.inspector.report.scoring import Chain, answer_chances
from workbench.inspector.report.section import Cell, Plot, Row, Section, common, percent, shown, unknown
from workbench.records import Context, Judged, Problem
from workbench.train.intervals import Scores, bootstrap_mean, bootstrap_share, paired_bootstrap

CHAINS, STEPS = 24, 8
"""Right chains measured a model, and steps of each: four readings a step."""
EARLY = ("0", "0.5", "1")
"""Parts of a chain after which the answer is asked for."""
OFFSETS = (-3, -2, -1, 1, 2, 3)
_NUMBER = re.compile(r"(?<![\w.])\d{1,15}(?![\w]|\.\d)")
_BREAK = re.compile(r"(?<=[.!?;])\s+|\n+")


@dataclass(frozen=True)
class Steps:
    """The scores of a model's right chains."""

    tts: Scores
    """Problem -> mean True-Thinking Score of each of its chains."""
    true: Scores
    """Problem -> share of steps of .7 and more."""
    decorative: Scores
    """Problem -> share of steps of .005 and less."""
    early: Mapping[str, Scores]
    """Share of the chain kept -> problem -> probability of the gold answer when made to answer there."""
    chains: int
    steps: int
    one_step: int
    """Chains of a single step, where nothing stands before it."""


def split(text: str) -> list[str]:
    """Steps: lines and sentences, joined they are the text with single breaks."""
    return [piece.strip() for piece in _BREAK.split(text) if piece.strip()]


def perturbed(step: str, seed: str, *, drop: bool) -> str:
    """Each standalone whole number moved by 1, 2 or 3 either way; a step without one is empty (`drop`) or as it was."""
    chance = random.Random(seed)
    if not _NUMBER.search(step):
        return "" if drop else step
    return _NUMBER.sub(lambda m: str(int(m[0]) + chance.choice(OFFSETS)), step)


def measured(engine: Engine, context: Context, groups: Sequence[Sequence[Judged]]) -> Steps:
    """Ask the student of the engine for the gold answer after intact and perturbed steps of its own right chains.

    Only right chains: a wrong one scores near 0 by construction. One a problem at most, the first right one; 24 chains,
    8 steps each. Text is joined by line feeds where it was split, in all four readings alike.
    """
    right = [next(j for j in g if j.verdict.correct) for g in groups if any(j.verdict.correct for j in g)]
    right = [j for j in right if j.rollout.problem.answer][:CHAINS]
    rows: list[tuple[str, int]] = []
    asked: list[Chain] = []
    early: dict[str, list[tuple[str, Chain]]] = {part: [] for part in EARLY}
    for j in right:
        problem, steps = j.rollout.problem, split(j.rollout.text)[:STEPS]
        for i in range(len(steps)):
            rows.append((problem.id, i))
            asked += _four(problem, steps, i)
        for share, kept in early.items():
            text = "\n".join(steps[: round(float(share) * len(steps))])
            kept.append((problem.id, Chain(problem, text)))
    found = np.array([c.probability for c in answer_chances(engine, context, asked)]).reshape(-1, 4)
    scores = {p: score_steps(found[[k for k, (q, _) in enumerate(rows) if q == p]]) for p, _ in rows}
    return Steps(
        {p: [s.mean] for p, s in scores.items()},
        {p: [s.true] for p, s in scores.items()},
        {p: [s.decorative] for p, s in scores.items()},
        {share: _chances(engine, context, kept) for share, kept in early.items()},
        len(scores),
        len(rows),
        sum(len(s.scores) == 1 for s in scores.values()),
    )


def _chances(engine: Engine, context: Context, kept: Sequence[tuple[str, Chain]]) -> Scores:
    found = answer_chances(engine, context, [chain for _, chain in kept])
    return {p: [c.probability] for (p, _), c in zip(kept, found, strict=True)}


def _four(problem: Problem, steps: Sequence[str], i: int) -> list[Chain]:
    """S1(1), S0(1), S1(0), S0(0): the step intact and perturbed, after intact and after perturbed steps."""
    seed = f"{problem.id}/{i}"
    before = {1: list(steps[:i]), 0: [perturbed(s, f"{problem.id}/{k}", drop=False) for k, s in enumerate(steps[:i])]}
    own = {1: steps[i], 0: perturbed(steps[i], seed, drop=True)}
    return [Chain(problem, "\n".join(filter(None, [*before[c], own[x]]))) for c in (1, 0) for x in (1, 0)]


def section(models: Mapping[str, Steps], basis: str) -> Section:
    """Mean score, bands, and the probability of the answer when a chain is ended early."""
    title, some = "Which steps does the answer rest on?", {name: s for name, s in models.items() if s.chains}
    if not some:
        return unknown("thinking", title, "no right chain with a gold answer was written", "probed")
    tts = {name: bootstrap_mean(s.tts) for name, s in some.items()}
    key = {f"tts_{name}": value for name, value in tts.items()}
    cells: dict[str, Cell] = dict(tts)
    if len(some) == 2:
        first, second = some.values()
        change = paired_bootstrap(*common(first.tts, second.tts))
        cells["change"] = change
        key |= {"tts_change": change} if change.n else {}
    rows = [
        Row("mean True-Thinking Score", cells),
        Row("steps of .7 and more", {name: bootstrap_share(s.true) for name, s in some.items()}),
        Row("decoration: steps of .005 and less", {name: bootstrap_share(s.decorative) for name, s in some.items()}),
        Row("right chains", {name: s.chains for name, s in some.items()}),
        Row("steps", {name: s.steps for name, s in some.items()}),
    ]
    rows += [
        Row(
            f"P(answer) after {100 * float(part):.0f} % of the steps",
            {name: bootstrap_mean(s.early[part]) for name, s in some.items()},
            100 * float(part),
        )
        for part in EARLY
    ]
    last = list(some)[-1]
    single = {name: s.one_step for name, s in some.items() if s.one_step}
    missing = tuple(
        f"{name}: {n} of {some[name].chains} chains have one step, so nothing stands before it"
        for name, n in single.items()
    )
    missing += tuple(f"{name}: no right chain" for name in models if name not in some)
    return Section(
        "thinking",
        title,
        f"{last}: mean score {shown(key[f'tts_{last}'])} over {some[last].steps} steps of {some[last].chains} right "
        f"chains; {percent(bootstrap_share(some[last].decorative))} are decoration",
        "probed",
        f"{basis}; the first right chain of a problem, at most {CHAINS} chains of {STEPS} steps",
        tuple(rows),
        Plot("curve", tuple(some), "P(gold answer)", "percent of the steps kept"),
        key,
        {f"tts_{name}": s.tts for name, s in some.items()},
        missing,
        "Depends on where steps are cut; the joint probability of a long answer is small; the step that states the "
        "answer scores high because the cue repeats it. Right chains alone: before and after may be other problems.",
    )
