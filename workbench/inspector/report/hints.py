"""Wrong hints of the shape of the right one: what a teacher is shown when it should know nothing of the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.engine.engine import Engine
from workbench.errors import InputError
from workbench.inspector.diagnostics.record import Floats
from workbench.inspector.report.scoring import teacher_logps
from workbench.parts.contexts import PRIVILEGED, Shown, missing, privileged
from workbench.problems import pair_with_others
from workbench.problems.wording import same_answer
from workbench.recipe import Recipe
from workbench.recipes import ALL, FOR_MODEL
from workbench.records import Case, Context, Judged, Problem


@dataclass(frozen=True)
class Hint:
    """One way to be wrong: the context, and for each draw the problems as it needs them."""

    kind: str
    """Of `tokenwise.HINTS`."""
    context: Context
    draws: tuple[dict[str, Problem], ...]


def wrong_hints(recipe: Recipe, model: str, problems: Sequence[Problem], draws: int) -> list[Hint]:
    """Every kind of wrong hint that the recipe's teacher allows; none for a teacher that is shown nothing privileged.

    another problem: the teacher's own template with another problem's fields (opsd_other_problem's idea). altered: the
    problem's own fields with the right answer replaced by a wrong one, so that wrapper and steps stay. wrong answer:
    the catalogue's opsd_wrong_answer, whose wrapper differs.
    """
    teacher = recipe.teacher
    if not isinstance(teacher, Shown) or not privileged(teacher):
        return []
    # The run itself pairs with seed 0: a teacher that is shown another problem's text must not meet it again here.
    try:
        paired = [{p.id: p for p in pair_with_others(problems, seed)} for seed in range(1, draws + 1)]
    except InputError:  # too few different questions: nobody can be shown another's
        return []
    found = [Hint("another_problem", _of_another(teacher), tuple(paired))]
    altered = tuple(
        {key: a for key, p in group.items() if (a := _altered(p, privileged(teacher))) is not None} for group in paired
    )
    if any(altered) and not any("other." in path for path in teacher.needs):
        found.append(Hint("wrong_answer", teacher, altered))
    if {"solution", "answer"} & privileged(teacher):
        setting = FOR_MODEL.get(model, {}).get("opsd_wrong_answer")
        control = (setting.recipe if setting else ALL["opsd_wrong_answer"]).teacher
        assert control is not None, "the control has a teacher"
        found.append(Hint("opsd_wrong_answer", control, tuple(paired)))
    return found


def scored(engine: Engine, recipe: Recipe, groups: Sequence[Sequence[Judged]], hint: Hint) -> list[Floats]:
    """Log p_T(y_t) of every completion under each draw of a hint, nats, [K, n]; K may be 0: none can be built."""
    rows: list[list[Floats]] = [[] for group in groups for _ in group]
    for draw in hint.draws:
        places: list[int] = []
        changed: list[list[Judged]] = []
        start = 0
        for group in groups:
            problem = draw.get(group[0].rollout.problem.id) if group else None
            if problem is not None and not missing(hint.context, Case(problem)):
                places += range(start, start + len(group))
                changed.append([replace(j, rollout=replace(j.rollout, problem=problem)) for j in group])
            start += len(group)
        for place, logp in zip(places, teacher_logps(engine, recipe, changed, hint.context), strict=True):
            rows[place].append(logp)
    return [np.array(found) if found else np.zeros((0, 0)) for found in rows]


def _of_another(teacher: Shown) -> Shown:
    """The same templates, filled from the other problem."""
    fills = tuple((hole, f"other.{path}" if path in PRIVILEGED else path) for hole, path in teacher.fills)
    return replace(teacher, name=f"{teacher.name} of another", fills=fills)


def _altered(problem: Problem, shown: frozenset[str]) -> Problem | None:
    """The problem with a wrong answer wherever its own stands in what is shown; None where it stands nowhere."""
    own, wrong = problem.answer, None if problem.other is None else problem.other.answer
    if not own or not wrong or same_answer(own, wrong):
        return None
    place = re.compile(rf"(?<![\w.]){re.escape(own)}(?![\w]|\.\d)")
    texts = {name: getattr(problem, name) or "" for name in ("solution", "document", "demonstration") if name in shown}
    changed = {name: place.sub(lambda _: wrong, text) for name, text in texts.items()}
    if "answer" not in shown and changed == texts:
        return None
    return replace(problem, answer=wrong, **changed)  # type: ignore[arg-type]
