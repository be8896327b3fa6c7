"""What a run tells a person: the header before step 1, the table and the verdict at the end."""

from __future__ import annotations

from typing import Any

import torch

from workbench.engine.engine import Engine
from workbench.inspector.audit import Audit
from workbench.planning import Plan
from workbench.recipe import Recipe
from workbench.train.evaluate import Evaluation, headline
from workbench.train.intervals import (
    Difference,
    arms_dict,
    arms_table,
    bootstrap_mean,
    paired_bootstrap,
)
from workbench.train.outcome import verdict_line
from workbench.train.report import words


def header_lines(engine: Engine, planned: Plan, found: Audit, where: str, examples: int = 1) -> list[str]:
    """Both prompts of some problems, token counts, every check, where files go: before anything is trained."""
    recipe = planned.recipe
    trained = sum(p.numel() for p in engine.parameters().values())
    lines = [
        f"model          {engine.loaded.source} ({trained / 1e6:.1f}M trained, {engine.adapter or 'all weights'}, "
        f"{engine.settings.device}, {torch.get_num_threads()} threads)",
        *(f"               {note}" for note in engine.loaded.notes),
        f"processes      {engine.ranks.describe()}",
        f"recipe         {recipe.describe().splitlines()[0]}",
        *(f"  {line}" for line in recipe.describe().splitlines()[1:]),
        *(f"problems       {line}" for line in str(planned.problems).splitlines()),
        *(f"note           {note}" for note in planned.notes),
    ]
    for _, student, teacher in found.examples[:examples]:
        lines.append(f"student sees   {len(student.ids)} tokens  {student.text}")
        if teacher is not None:
            lines.append(f"teacher sees   {len(teacher.ids)} tokens  {teacher.text}")
    lines += [f"check {f.name:8} {'' if f.fine else 'WARNING '}{f.text}" for f in found.findings]
    return [*lines, f"run            {where}"]


def evaluation_text(
    recipe: Recipe, before: Evaluation, after: Evaluation
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """(name, text) of the results, and everything in them as data for eval.json."""
    if not before.arms or not after.arms:
        return [("verdict", "nothing was evaluated, so nothing can be said (--eval-problems 0)")], {}
    first, last = before.arms[0], after.arms[0]
    accuracy = paired_bootstrap(first.scores, last.scores)
    tokens = paired_bootstrap(first.tokens, last.tokens, unit="tokens")
    differences = [Difference("after - before", "accuracy", accuracy), Difference("after - before", "tokens", tokens)]
    for arm in before.arms[1:]:
        differences.append(Difference(f"after - {arm.name}", "accuracy", paired_bootstrap(arm.scores, last.scores)))
        differences.append(Difference(f"after - {arm.name}", "tokens", paired_bootstrap(arm.tokens, last.tokens)))
    divergence, name = None, f"held-out {words(type(headline(recipe)).__name__)}"
    if before.divergence and after.divergence:
        divergence = paired_bootstrap(before.divergence, after.divergence, unit="nat/token")
        differences.append(Difference("after - before", name, divergence))
    arms = [result.arm for result in (*before.arms, *after.arms)]
    outcome = verdict_line(accuracy, tokens, divergence, divergence_name=name)
    data: dict[str, Any] = arms_dict(arms, differences) | {"verdict": {"word": outcome.word, "line": outcome.line}}
    text = [("", arms_table(arms, differences)), ("verdict", outcome.line)]
    if before.divergence and after.divergence:
        old, new = (bootstrap_mean(d, unit="nat/token") for d in (before.divergence, after.divergence))
        text.insert(1, ("divergence", f"{name} {old.text(3)} -> {new.text(3)}"))
        data["divergence"] = {"name": name, "before": old.as_dict(), "after": new.as_dict()}
    return text, data
