"""What a run tells a person: the header before step 1, the table and the verdict at the end, the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from workbench import __version__
from workbench.config import RunConfig
from workbench.engine.embedded import EMBEDDED
from workbench.engine.engine import Engine
from workbench.engine.export import model_card
from workbench.inspector.audit import Audit
from workbench.planning import Plan
from workbench.recipe import Recipe
from workbench.records import Case
from workbench.text import printable
from workbench.train.evaluate import Evaluation, headline
from workbench.train.intervals import (
    Difference,
    arms_dict,
    arms_table,
    bootstrap_mean,
    paired_bootstrap,
    verdict_line,
)
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


def card(config: RunConfig, planned: Plan, engine: Engine, data: Mapping[str, Any]) -> str:
    """README.md of the trained model: what it is, both prompts word for word, results with n, limits."""
    recipe, base = planned.recipe, EMBEDDED[config.model][1] if config.model in EMBEDDED else config.model
    facts: dict[str, object] = {
        "base_model": base,
        "base_model_relation": "adapter" if engine.adapter else "finetune",
        "library_name": "peft" if engine.adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["self-distillation", recipe.name],
    }
    problem = planned.train[0]
    prompts = [("Student's prompt", engine.prompt(recipe.student, Case(problem)).text)]
    if recipe.teacher is not None and engine.sees("teacher"):
        prompts.append(("Teacher's prompt", engine.prompt(recipe.teacher, Case(problem), "teacher").text))
    body = [f"Trained with opsd-workbench {__version__} from `{_plain(base)}`.", "", _fenced(recipe.describe())]
    if engine.external is not None:
        body += ["", f"The teacher was {engine.external.kind}: `{_plain(engine.external.source)}`."]
    for title, text in prompts:
        body += ["", f"## {title}", "", _fenced(text)]
    body += ["", "## Results", "", _fenced(_results(data)), "", "## Limits", "", _limits(planned, engine)]
    return model_card(f"{recipe.name} on {_plain(base)}", facts, "\n".join(body))


def _results(data: Mapping[str, Any]) -> str:
    rows: Sequence[Mapping[str, Any]] = data.get("arms", ())
    lines = [
        f"{r['name']}: correct {r['correct']}/{r['judged']} [{r['accuracy']['low']:.2f}, {r['accuracy']['high']:.2f}], "
        f"{r['tokens']['value']:.0f} tokens, truncated {r['truncated']}, unparsed {r['unparsed']}"
        for r in rows
    ]
    return "\n".join([*lines, str(data.get("verdict", {}).get("line", "not evaluated"))])


def _limits(planned: Plan, engine: Engine) -> str:
    notes = "; ".join(engine.loaded.notes) or "none"
    return (
        f"Evaluated greedily on {len(planned.held_out)} held-out problems of `{_plain(planned.problems.source)}` and "
        "nothing else. "
        f"Notes on the base: {notes}. One training run, seed in run.json."
    )


def _plain(text: str) -> str:
    """A name inside Markdown: one line, nothing that formats."""
    return printable(text).translate(dict.fromkeys(map(ord, "`<>[]*_\\#"), "-"))


def _fenced(text: str) -> str:
    text = printable(text, lines=True)
    longest = max((len(run) for run in text.split() if set(run) == {"`"}), default=2)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
