"""The checks before step 1 for a teacher that is not the student: whether it knows what it will be asked."""

from __future__ import annotations

from collections.abc import Sequence

from verifiers import Verdict
from workbench.engine.engine import Engine
from workbench.engine.generating import never
from workbench.engine.speakers import Speaker
from workbench.engine.teachers import External
from workbench.inspector.finding import Finding
from workbench.parts.writers import Desk, FromDataset
from workbench.recipe import Recipe
from workbench.records import Judged, Problem, Rollout
from workbench.train.batches import entries


def findings(engine: Engine, recipe: Recipe, problems: Sequence[Problem]) -> list[Finding]:
    """Nothing in self-distillation. Raises InputError for the first completion that a recorded teacher lacks."""
    found = []
    external = engine.external
    if external is not None:
        found = [Finding("teacher", line) for line in external.lines()]
        if external.speaker is not None:
            found.append(Finding("teacher", _spoken_to(engine, external.speaker)))
        if external.recorded and not external.anew:
            found.append(_known(engine, recipe, external, problems))
    if engine.cast.reference is not None:
        found += [Finding("reference", line) for line in engine.cast.reference.lines()]
    return found


def _spoken_to(engine: Engine, teacher: Speaker) -> str:
    """Where its template and its end tokens are not the student's."""
    student = engine.speaker("student")
    same = teacher.tokenizer.chat_template == student.tokenizer.chat_template
    template = "the student's chat template" if same else "its own chat template, which is not the student's"
    names = [teacher.tokenizer.convert_ids_to_tokens(i) for i in sorted(teacher.stop_ids)]
    ends = "as the student does" if teacher.stop_ids == student.stop_ids else f"at {', '.join(map(str, names))}"
    return f"its prompts are rendered by {template}; it stops {ends}"


def _known(engine: Engine, recipe: Recipe, external: External, problems: Sequence[Problem]) -> Finding:
    """Every completion of the run is one that was recorded: known now, not at step 400."""
    rollouts = _completions(engine, recipe, problems)
    if recipe.needs_teacher:
        groups = [[Judged(rollout, Verdict("unjudged"))] for rollout in rollouts]
        for entry in entries(engine, recipe, groups):
            external.check(entry.teacher_prompt or (), entry.tokens, recipe.temperature)
    cut = sum(rollout.stop == "length" for rollout in rollouts)
    text = f"all {len(rollouts)} completions of the run are recorded"
    return Finding(
        "teacher", f"{text}; {cut} are cut at {recipe.sampling.max_new_tokens} tokens" if cut else text, not cut
    )


def _completions(engine: Engine, recipe: Recipe, problems: Sequence[Problem]) -> list[Rollout]:
    desk = Desk(engine, recipe.student, recipe.teacher, recipe.sampling, (0, 0), never)
    rollouts: list[Rollout] = []
    if "dataset" in recipe.rollouts.authors:
        rollouts += FromDataset().draw(desk, problems)
    if "teacher" in recipe.rollouts.authors:
        rollouts += [r for r in recipe.rollouts.draw(desk, problems) if r.author == "teacher"]
    return rollouts
