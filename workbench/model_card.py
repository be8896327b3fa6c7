"""README.md of a trained model: what it is, how it was made, what it can do with how much certainty, what failed."""

from __future__ import annotations

import platform
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench import __version__
from workbench.config import RunConfig
from workbench.engine.embedded import EMBEDDED
from workbench.engine.engine import Engine
from workbench.engine.export import front_matter, licence_of
from workbench.planning import Plan
from workbench.problems import ProblemSet
from workbench.recipe import Recipe
from workbench.records import Case
from workbench.text import printable
from workbench.train import accounts
from workbench.train.interrupts import amount, read_json
from workbench.train.run_directory import read_jsonl

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Subject:
    """What a card is about."""

    run: Path
    config: RunConfig
    recipe: Recipe
    engine: Engine
    step: int
    """Optimizer steps taken."""
    steps: int | None
    """Those that were planned."""
    problems: ProblemSet | None
    """None where the run's data cannot be had any more."""
    results: Mapping[str, Any]
    """As in eval.json; empty where nothing was evaluated at the end."""
    merged: bool = False
    """Whether an adapter was merged into the weights."""
    verifier: str = ""

    @classmethod
    def of(
        cls, run: Path, config: RunConfig, planned: Plan, engine: Engine, step: int, results: Mapping[str, Any]
    ) -> Subject:
        """The model of a run at its end."""
        problems, verifier = planned.problems, planned.verifier
        return cls(run, config, planned.recipe, engine, step, planned.steps, problems, results, verifier=verifier)

    @property
    def adapter(self) -> bool:
        """Whether the folder holds an adapter alone."""
        return self.engine.adapter is not None and not self.merged and not self.engine.loaded.merged

    @property
    def base(self) -> str:
        """The hub id the training started from, else the last part of its path."""
        model = self.config.fork or self.config.model
        return EMBEDDED[model][1] if model in EMBEDDED else model if on_hub(model) else Path(model).name


def on_hub(model: str) -> bool:
    """Whether a model's name is an id of the Hub, and no folder here."""
    return bool(_HUB_ID.fullmatch(model)) and not Path(model).exists()


def card(about: Subject) -> str:
    """The whole text. Everything a model, a data set or a user wrote in it is fenced or made plain."""
    recipe, engine = about.recipe, about.engine
    facts: dict[str, object] = {}
    if about.config.fork is None and (about.config.model in EMBEDDED or on_hub(about.config.model)):
        facts |= {"base_model": about.base, "base_model_relation": "adapter" if about.adapter else "finetune"}
    facts |= {"library_name": "peft" if about.adapter else "transformers", "pipeline_tag": "text-generation"}
    licence = licence_of(about.config.fork or about.config.model, engine.loaded.source)
    facts |= {"license": licence} if licence else {}
    data = about.problems.source if about.problems else ""
    facts |= {"datasets": [data]} if on_hub(data) else {}
    facts |= {"tags": ["opsd-workbench", "self-distillation", recipe.name]}
    run, rows = read_json(about.run / "run.json"), read_jsonl(about.run / "metrics.jsonl")
    body = [_opening(about, run, licence), _fenced(recipe.describe()), *_prompts(about)]
    body += ["## Results", _results(about), "## Data", _data(about, run), "## How it was made", _made(about, run, rows)]
    if took := about.results.get("accounts"):
        body += ["## What it took", _fenced("\n".join(accounts.lines(took)))]
    body += ["## What failed", _failures(rows, read_jsonl(about.run / "evaluations.jsonl"), about), "## Limits"]
    body += [_limits(about)]
    title = f"{recipe.name} on {inline(about.base)}"
    return front_matter(facts) + f"\n# {title}\n\n" + "\n\n".join(body) + "\n"


def _opening(about: Subject, run: Mapping[str, Any], licence: str | None) -> str:
    engine = about.engine
    revision = f", revision {inline(engine.loaded.revision)}" if engine.loaded.revision else ""
    what = "An adapter (PEFT) for" if about.adapter else "A model trained from"
    merged = " Its adapter is merged into the weights." if about.merged else ""
    lines = [f"{what} `{inline(about.base)}`{revision}, made with opsd-workbench {__version__}.{merged}"]
    if sha := run.get("model_sha256"):
        lines.append(f"The weights it started from have the sha256 {sha}.")
    if notes := engine.loaded.notes:
        lines.append(f"The base: {inline('; '.join(shortened(n) for n in notes))}.")
    if engine.external is not None:
        lines.append(f"The teacher was {engine.external.kind}: `{inline(shortened(engine.external.source))}`.")
    elif other := run.get("teacher"):
        lines.append(f"The teacher was `{inline(shortened(str(other.get('source', other))))}`.")
    if about.steps is not None and about.step < about.steps:
        lines.append(f"**The run is not finished: this is step {about.step} of {about.steps}.**")
    if licence is None:
        lines.append("The licence of the base is not known here; what it asks for holds for this model too.")
    return " ".join(lines)


def _prompts(about: Subject) -> list[str]:
    if about.problems is None:
        return ["## Prompts", "The run's problems could not be read again when this card was written."]
    engine, recipe, problem = about.engine, about.recipe, about.problems.train[0]
    shown = [("Student's prompt", engine.prompt(recipe.student, Case(problem)).text)]
    apart = about.config.teacher is not None and engine.external is None  # it is not loaded for an export
    if recipe.teacher is not None and engine.sees("teacher") and not apart:
        shown.append(("Teacher's prompt", engine.prompt(recipe.teacher, Case(problem), "teacher").text))
    return [part for title, text in shown for part in (f"## {title}", _fenced(text))]


def _results(about: Subject) -> str:
    rows: Sequence[Mapping[str, Any]] = about.results.get("arms", ())
    if not rows:
        return "Nothing was evaluated."
    lines = [
        "| | correct | accuracy, 95 % | tokens | truncated | unparsed | problems |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        held = f"{r['accuracy']['value']:.2f} [{r['accuracy']['low']:.2f}, {r['accuracy']['high']:.2f}]"
        counts = f"{r['tokens']['value']:.0f} | {r['truncated']} | {r['unparsed']} | {r['accuracy']['n']}"
        lines.append(f"| {inline(r['name'])} | {r['correct']}/{r['judged']} | {held} | {counts} |")
    for d in about.results.get("differences", ()):
        e = d["estimate"]
        clear = "clear of noise" if d["clear"] else "within noise"
        said = f"{e['value']:+.3g} [{e['low']:+.3g}, {e['high']:+.3g}], n={e['n']}, {clear}"
        lines += [] if lines[-1].startswith("- ") else [""]
        lines.append(f"- {inline(d['name'])}, {inline(d['figure'])}: {said}")
    line = about.results.get("verdict", {}).get("line")
    said = f"\n\n{printable(line)}" if line else ""
    judge = f"\n\nGreedy decoding, answers read by the verifier `{inline(about.verifier)}`." if about.verifier else ""
    return "\n".join(lines) + said + judge


def _data(about: Subject, run: Mapping[str, Any]) -> str:
    source = inline(shortened(str(run.get("data", "unknown"))))
    lines = [f"- source: `{source}`, sha256 of the problems used {run.get('data_sha256', 'unknown')}"]
    if about.problems is not None:
        lines.append(f"- {len(about.problems.train)} to train on, {len(about.problems.held_out)} held out")
        lines.append(f"- read as: {inline(about.problems.mapping)}")
        lines += [f"- left out: {n}, {inline(why)}" for why, n in about.problems.dropped]
    return "\n".join(lines)


def _made(about: Subject, run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    command = shlex.join(shortened(str(word)) for word in run.get("command", ()))
    versions = ", ".join(f"{name} {v}" for name, v in run.get("versions", {}).items())
    device = about.engine.settings.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    lines = [
        f"- seed {run.get('seed', about.config.seed)}, one run; {about.step} steps of {about.recipe.batch} problems",
        f"- {inline(versions)}; commit {inline(run.get('commit') or 'unknown')}",
        f"- exported on {platform.system()} {platform.machine()}, {device.type}, {kind}",
        *(
            [f"- peak memory {amount(peak)}"]
            if (peak := max((r.get("peak_bytes") or 0 for r in rows), default=0))
            else []
        ),
    ]
    return "\n".join(lines) + "\n\n" + _fenced(command or "the command is unknown")


def _failures(rows: Sequence[Mapping[str, Any]], evaluated: Sequence[Mapping[str, Any]], about: Subject) -> str:
    """What a reader of the results should hold against them; counted, from the run's own files."""
    statuses = Counter[str]()
    for row in rows:
        statuses.update(row.get("statuses") or {})
    for moment in evaluated:
        statuses.update(a["status"] for arm in moment.get("arms", ()) for a in arm.get("answers", ()))
    judged = statuses.total()
    lines = [
        f"- {statuses[name]} of {judged} answers: {text}"
        for name, text in (("error", "the verifier itself failed"), ("timeout", "the comparison ran out of time"))
        if statuses[name]
    ]
    if nothing := sum(row.get("kept") == 0 for row in rows):
        lines.append(f"- {nothing} of {len(rows)} steps kept no rollout and taught nothing")
    if cut := [row["step"] for row in rows if (row.get("truncated_share") or 0.0) > 0.5]:
        lines.append(f"- in {len(cut)} of {len(rows)} steps more than half of the rollouts were cut")
    if bad := [row["step"] for row in rows if {"loss", "grad_norm"} & set(row.get("bad") or ())]:
        lines.append(f"- loss or gradient was not finite in {len(bad)} steps (first: {bad[0]}); they changed nothing")
    notes = Counter(inline(note) for row in rows for note in row.get("notes") or ())
    lines += [f"- {text} ({n} times)" for text, n in notes.most_common(5)]
    return "\n".join(lines) or "Nothing was recorded as failed."


def _limits(about: Subject) -> str:
    if about.problems is None or not about.results:
        asked = "Nothing is known of what it can do: it was not evaluated at this step."
    else:
        source = inline(shortened(about.problems.source))
        asked = f"Evaluated on {len(about.problems.held_out)} held-out problems of `{source}` and nothing else."
    return f"{asked} One training run of one seed: how much another seed differs is not known."


def shortened(text: str) -> str:
    """The text with paths of this machine cut to their last part: a card is read elsewhere."""
    return re.sub(r"(?<![\w./:])(?:~|\.{0,2})/(?:[^\s/=]+/)+([^\s/=]*)", r".../\1", text)


def inline(text: object) -> str:
    """Text inside a line of Markdown: one line, nothing that formats."""
    return printable(text).translate(dict.fromkeys(map(ord, "`<>[]*_\\#|"), "-"))


def _fenced(text: str) -> str:
    text = printable(text, lines=True)
    longest = max((len(run) for run in re.findall("`+", text)), default=2)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
