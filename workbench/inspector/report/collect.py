"""From a run directory to what a report reads. Nothing here fails on what a killed run left behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verifiers import Verdict
from workbench.config import RunConfig
from workbench.config_files import build, read_layer
from workbench.errors import UsageError, WorkbenchError
from workbench.inspector.diagnostics import TokenRecord
from workbench.inspector.seen import Seen
from workbench.parts.contexts import privileged
from workbench.planning import Plan, plan
from workbench.recipe import Recipe
from workbench.records import Problem
from workbench.train.evaluate import ArmResult, Evaluation
from workbench.train.run_directory import list_runs, read_jsonl, view


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
    seen: tuple[Seen, ...] = ()
    """The token records that training wrote."""
    why_unseen: str = "the run wrote no token records"

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
        return {} if self.recipe is None else shown_to_teacher(self.recipe, self.problems)

    @property
    def questions(self) -> dict[str, str]:
        """Problem -> its question: from the problems, or from the rollouts that quote it."""
        quoted = {str(r["problem"]): str(r.get("question", "")) for r in self.rollouts if "problem" in r}
        return quoted | {key: p.question for key, p in self.problems.items()}

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
    return Recorded(
        path, seen.state, seen.step, seen.run, config, planned, why,
        tuple(read_jsonl(path / "metrics.jsonl")), tuple(read_jsonl(path / "rollouts.jsonl")),
        {when: Evaluation.from_row(row) for when, row in rows.items()},
    )  # fmt: skip


def stored_config(path: Path) -> RunConfig:
    """The configuration a run was started with. Raises UsageError for a run of another version that says more."""
    return build(read_layer(path / "run.json"))


def shown_to_teacher(recipe: Recipe, problems: Mapping[str, Problem]) -> dict[str, str]:
    """Problem -> the privileged text of the recipe's teacher, its fields joined; problems without any left out."""
    if recipe.teacher is None:
        return {}
    paths = sorted(privileged(recipe.teacher))
    texts = {
        key: "\n".join(filter(None, (field_of(problem, path) for path in paths))) for key, problem in problems.items()
    }
    return {key: text for key, text in texts.items() if text}


def field_of(problem: Problem, path: str) -> str:
    """A field of a problem, dotted through `other`; empty where it is absent."""
    found: object = problem
    for step in path.split("."):
        found = None if found is None else getattr(found, step, None)
    return found if isinstance(found, str) else ""


def token_record(seen: Seen) -> TokenRecord:
    """What the measures read of a record: the full divergence of the run's headline, and which tokens counted.

    The first term's own value serves where it is a full divergence; a clipped or sampled one can be negative, and then
    the forward KL stands for it.
    """
    own = seen.divergence
    values = own if len(seen.terms) and bool((own >= 0).all()) else seen.forward_kl
    return TokenRecord(
        seen.problem, seen.text, seen.student_logp, seen.teacher_logp, seen.student_entropy, seen.teacher_entropy,
        values, seen.weight, seen.verdict,
    )  # fmt: skip


def verdict_of(row: Mapping[str, Any]) -> Verdict:
    """The verdict of a line of rollouts.jsonl."""
    return Verdict(row["status"], row.get("extracted"), row.get("reason") or "")
