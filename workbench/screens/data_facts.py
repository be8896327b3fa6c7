"""What a problem set is before anything is trained on it: columns, golds no verifier can read, prompt lengths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import verifiers
from workbench.config import RunConfig
from workbench.engine.loading import load_speaker
from workbench.errors import InputError
from workbench.planning import settle_recipe
from workbench.problems import ProblemSet, check_needs, graded, load, pair_with_others, parse_columns
from workbench.recipe import Recipe
from workbench.records import Case, Problem
from workbench.screens.plots import Bar, Panel

MEASURED = 2000
"""Problems whose prompts are rendered; of larger sets the first."""
BARS = 12


@dataclass(frozen=True)
class Measured:
    """A problem and its prompts' tokens; the teacher's is None where the recipe has no view of its own for one."""

    problem: Problem
    student: int
    teacher: int | None

    @property
    def longest(self) -> int:
        """Of the roles."""
        return max(self.student, self.teacher or 0)


@dataclass(frozen=True)
class Facts:
    """Everything the screen shows."""

    problems: ProblemSet
    ungraded: tuple[tuple[str, str, str], ...]
    """(id, gold, why no verifier can read it)."""
    missing: str
    """What the recipe needs and some problems lack; empty where nothing is."""
    measured: tuple[Measured, ...]
    limit: int
    """Tokens a prompt may have: the model's length less the completion's, or what the user asked."""
    prompts: tuple[str, str]
    """The first problem as student and teacher see it."""

    @property
    def over(self) -> int:
        """Problems with a prompt above the limit in either role."""
        return sum(m.longest > self.limit for m in self.measured)


def look(config: RunConfig) -> Facts:
    """Load, grade and render. Raises UsageError and InputError as a run would."""
    setting, _ = settle_recipe(config)
    recipe, source = setting.recipe, config.problems or setting.problems
    columns = parse_columns(config.columns) if config.columns else None
    found = load(source, split=config.split, limit=config.limit, columns=columns, require=config.require)
    everything = (*found.train, *found.held_out)
    missing = ""
    try:
        check_needs(found, recipe.requires, f"recipe {recipe.name} shows the teacher")
    except InputError as error:
        missing = str(error)
    usable, _ = graded(everything, verifiers.check_gold)
    speaker = load_speaker(config.model, config.chat_template)
    limit = config.max_prompt_tokens or max(1, speaker.max_length - recipe.sampling.max_new_tokens)
    shown = _paired(recipe, usable[:MEASURED]) if usable and not missing else ()
    measured, prompts = [], ("", "")
    for problem in shown:
        student = speaker.renderer.prompt(recipe.student, Case(problem))
        teacher = speaker.renderer.prompt(recipe.teacher, Case(problem)) if recipe.teacher else None
        prompts = prompts if prompts[0] else (student.text, teacher.text if teacher else "")
        measured.append(Measured(problem, len(student.ids), len(teacher.ids) if teacher else None))
    return Facts(found, _ungraded(everything), missing, tuple(measured), limit, prompts)


def _paired(recipe: Recipe, problems: Sequence[Problem]) -> Sequence[Problem]:
    return pair_with_others(problems) if any(need.startswith("other.") for need in recipe.requires) else problems


def _ungraded(problems: Sequence[Problem]) -> tuple[tuple[str, str, str], ...]:
    found = []
    for p in problems:
        if p.tests:
            if why := verifiers.check_tests(p.tests):
                found.append((p.id, f"{len(p.tests)} tests", why))
        elif p.answer is not None and (why := verifiers.check_gold(p.answer)):
            found.append((p.id, p.answer, why))
    return tuple(found)


def summary(facts: Facts) -> str:
    """Sizes, columns as understood, what was left out, what a run would refuse."""
    total = len(facts.problems.train) + len(facts.problems.held_out)
    answered = sum(p.answer is not None or bool(p.tests) for p in (*facts.problems.train, *facts.problems.held_out))
    lines = [str(facts.problems), f"gold: {answered} of {total} have one, {len(facts.ungraded)} cannot be graded"]
    if facts.measured:
        n, share = len(facts.measured), facts.over / len(facts.measured)
        lines.append(f"prompts: {facts.over} of {n} over {facts.limit} tokens ({share:.1%}) in either role")
    if facts.missing:
        lines.append(f"a run would refuse: {facts.missing}")
    return "\n".join(lines)


def panels(facts: Facts) -> list[Panel]:
    """Histograms of prompt lengths, one a role, on the same bins; bars over the limit are marked."""
    if not facts.measured:
        return []
    lengths = [[m.student for m in facts.measured], [m.teacher for m in facts.measured if m.teacher is not None]]
    edges = _edges([n for role in lengths for n in role])
    found = []
    for place, (role, values) in enumerate(zip(("Student", "Teacher"), lengths, strict=True)):
        if values:
            over = sum(n > facts.limit for n in values)
            title = f"{role}'s prompts, tokens ({min(values)} to {max(values)}, {over} over {facts.limit})"
            found.append(Panel(title, bars=_bars(values, edges, facts.limit, place)))
    return found


def _edges(values: Sequence[int]) -> list[int]:
    low, high = min(values), max(values)
    width = max(1, math.ceil((high - low + 1) / BARS))
    return [*list(range(low, high + 1, width)), low + width * math.ceil((high - low + 1) / width)]


def _bars(values: Sequence[int], edges: Sequence[int], limit: int, place: int) -> list[Bar]:
    bars = []
    for low, high in itertools.pairwise(edges):
        label = str(low) if high - low == 1 else f"{low} to {high - 1}"
        over = high - 1 > limit
        bars.append(Bar(f"{label}{' over' * over}", sum(low <= n < high for n in values), mark=over, place=place))
    return bars
