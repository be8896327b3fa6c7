"""From a run directory to what a report reads. Nothing here fails on what a killed run left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verifiers import Verdict
from workbench.config import RunConfig
from workbench.config_files import build, read_layer
from workbench.errors import InputError, UsageError, WorkbenchError
from workbench.inspector.seen import Seen
from workbench.inspector.token_records import RunTokens, load_run, read
from workbench.parts.contexts import shown_to_teacher
from workbench.planning import Plan, plan
from workbench.recipe import Recipe
from workbench.records import Problem
from workbench.train.evaluate import ArmResult, Evaluation
from workbench.train.run_directory import list_runs, read_jsonl, view

MOST_STEPS = 64
"""Steps whose tokens are read: enough for every interval, and a long run stays readable."""


@dataclass(frozen=True)
class Recorded:
    """Everything a run left behind, read once."""

    path: Path
    state: str
    step: int
    run: Mapping[str, Any]
    config: RunConfig
    planned: Plan | None
    """The recipe and the problems, settled again; None where that is no longer possible."""
    why_unplanned: str
    metrics: tuple[Mapping[str, Any], ...]
    rollouts: tuple[Mapping[str, Any], ...]
    evaluations: Mapping[str, Evaluation]
    tokens: RunTokens
    """The token records that training wrote, listed; `seen` reads them."""

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.name

    @property
    def recipe(self) -> Recipe | None:
        """What it ran."""
        return None if self.planned is None else self.planned.recipe

    @property
    def problems(self) -> dict[str, Problem]:
        """Every problem of the run, trained on and held out, by id."""
        planned = self.planned
        return {} if planned is None else {p.id: p for p in (*planned.train, *planned.held_out)}

    @property
    def hidden(self) -> dict[str, str]:
        """Problem -> what the teacher alone was shown of it."""
        return {} if self.recipe is None else shown_to_teacher(self.recipe.teacher, self.problems)

    @property
    def questions(self) -> dict[str, str]:
        """Problem -> its question: from the problems, or from the rollouts that quote it."""
        quoted = {str(r["problem"]): str(r.get("question", "")) for r in self.rollouts if "problem" in r}
        return quoted | {key: p.question for key, p in self.problems.items()}

    def seen(self) -> list[Seen]:
        """The student's rollouts as the loss saw them, of up to 64 steps spread evenly; what is torn is left out."""
        paths = list(dict.fromkeys(one.path for one in self.tokens.listed))
        found: list[Seen] = []
        for path in _spread(paths, MOST_STEPS):
            with contextlib.suppress(InputError):
                found += [one for one in read(path) if one.author == "student"]
        return found

    def arm(self, name: str) -> ArmResult | None:
        """An evaluated arm by its name: before, prompt only, teacher's view, teacher, after."""
        found = [arm for e in self.evaluations.values() for arm in e.arms if arm.name == name]
        return found[-1] if found else None


def collect(path: Path) -> Recorded:
    """Read a run. Raises UsageError where there is none."""
    seen = view(path)
    if seen is None:
        names = ", ".join(run.name for run in list_runs(path.parent)[:5]) if path.parent.is_dir() else ""
        known = f"{path.parent} holds {names}." if names else f"{path.parent} holds no runs."
        raise UsageError(f"{path} is no run: it has no run.json. A report reads a run directory. {known}")
    config = stored_config(path)
    planned, why = None, ""
    try:
        planned = plan(replace(config, resume=False, name=None))
    except (WorkbenchError, ValueError, OSError) as error:
        why = f"its problems cannot be loaded again ({error})"
    if planned is not None and seen.run.get("data_sha256") not in (None, planned.problems.sha256):
        planned, why = None, "its problems are not what they were when it ran"
    rows = {str(row["when"]): row for row in read_jsonl(path / "evaluations.jsonl") if "when" in row}
    tokens = load_run(path)
    return Recorded(
        path, seen.state, seen.step, seen.run, config, planned, why,
        tuple(read_jsonl(path / "metrics.jsonl")), tuple(read_jsonl(path / "rollouts.jsonl")),
        {when: Evaluation.from_row(row) for when, row in rows.items()},
        tokens,
    )  # fmt: skip


def stored_config(path: Path) -> RunConfig:
    """The configuration a run was started with. Raises UsageError for a run of another version that says more."""
    return build(read_layer(path / "run.json"))


def verdict_of(row: Mapping[str, Any]) -> Verdict:
    """The verdict of a line of rollouts.jsonl."""
    said = (row["status"], row.get("extracted"), row.get("reason") or "")
    return Verdict(*said, behaviour=row.get("behaviour"))


def _spread(paths: Sequence[Path], most: int) -> list[Path]:
    """At most so many, from the first to the last."""
    if len(paths) <= most:
        return list(paths)
    return [paths[round(i * (len(paths) - 1) / (most - 1))] for i in range(most)]
