"""From the fields of a screen to what will be done: a configuration, a plan, a problem, an engine.

Everything goes the way of the commands (`RunConfig`, `planning.plan`, `assembly.build_engine`), so that a model, a
file or a recipe that works there works here, and is refused here with the same words.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.config import RunConfig
from workbench.config_files import build, read_layer
from workbench.errors import InputError, UsageError, WorkbenchError
from workbench.parts import contexts
from workbench.parts.refresh import FROZEN, LIVE
from workbench.planning import Plan, plan, settle_recipe
from workbench.problems import same_answer
from workbench.recipes import ALL
from workbench.records import Problem
from workbench.screens.session import WALKS, Shelf

if TYPE_CHECKING:
    from workbench.engine.engine import Engine
    from workbench.recipe import Recipe

OWN = "(your own)"
"""The problem that stands in the text boxes."""
AS_RECIPE = ""
"""The context that the recipe names."""
LIMIT = 200
"""Problems of a set that the screen offers."""


@dataclass(frozen=True)
class Ask:
    """What somebody chose on a screen. Empty text: not given."""

    model: str = "smollm2"
    """As --model, or the folder of a run's checkpoint."""
    recipe: str = "opsd"
    problems: str = ""
    """As --problems; empty: what the recipe was set to."""
    problem: str = ""
    """An id of the set, or OWN; empty: the first."""
    question: str = ""
    solution: str = ""
    answer: str = ""
    student: str = AS_RECIPE
    teacher: str = AS_RECIPE
    other_model: str = ""
    """As --teacher: another model's weights teach."""
    tokens: int = 64
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    changes: tuple[str, ...] = ()
    """As --set: of the run whose rollout it is; no field of the screen."""

    def __post_init__(self) -> None:
        """Refuse what no field can mean. Raises UsageError."""
        if not 1 <= self.tokens <= 16384:
            raise UsageError(f"{self.tokens} tokens cannot be written. The screen draws 1 to 16384. Choose fewer.")


def checkpoint_of(model: str) -> Path | None:
    """The run directory, where `model` is the folder of a checkpoint."""
    folder = Path(model)
    return folder.parent.parent if (folder / "MANIFEST.json").is_file() else None


def stored_config(run: Path) -> RunConfig:
    """What a run was started with. Raises UsageError."""
    return build(read_layer(run / "run.json"))


def _base(model: str) -> str:
    """Under which name the catalogue knows a model: that of the run that trained it, if a run did."""
    folder = Path(model)
    for run in (checkpoint_of(model), folder.parent, folder.parent.parent):
        if run is not None and folder.name != run.name and (run / "run.json").is_file():
            return stored_config(run).model
    return model


def config_of(ask: Ask) -> RunConfig:
    """The configuration a command would have been given. Raises UsageError."""
    changes = [f"{role}={name}" for role, name in (("student", ask.student), ("teacher", ask.teacher)) if name]
    if ask.recipe not in ALL:
        raise UsageError(f"no recipe '{ask.recipe}'. The list on the left has all of them. Choose one there.")
    validated = any(schedule.validates for schedule in ALL[ask.recipe].adaptive)
    return RunConfig(
        model=ask.model.strip(),
        recipe=ask.recipe,
        problems=ask.problems.strip() or None,
        limit=LIMIT,
        eval_problems=1 if validated else 0,
        set=(*ask.changes, *changes),
        teacher=ask.other_model.strip() or None,
        max_new_tokens=ask.tokens,
        temperature=ask.temperature,
        top_p=ask.top_p,
        seed=ask.seed,
    )


def planned(ask: Ask) -> Plan:
    """Recipe and problems. Raises UsageError and InputError, as the commands do."""
    config = config_of(replace(ask, problem="", question="", solution="", answer="", seed=0))
    return _planned(replace(config, model=_base(config.model)))


def settled(ask: Ask) -> Recipe:
    """The recipe as set for the model, before what the screen asks of its sampling. Raises UsageError."""
    plain = replace(
        ask, problem="", question="", solution="", answer="", tokens=64, temperature=None, top_p=None, seed=0
    )
    return settle_recipe(replace(config_of(plain), max_new_tokens=None, model=_base(ask.model.strip())))[0].recipe


def source_of(ask: Ask) -> str:
    """The problems of an ask, as --problems takes them. Raises UsageError."""
    config = config_of(ask)
    return config.problems or settle_recipe(replace(config, model=_base(config.model)))[0].problems


@functools.lru_cache(maxsize=64)
def _planned(config: RunConfig) -> Plan:
    return plan(config)


def why_not(name: str, ask: Ask) -> str:
    """Why a recipe cannot be shown with this model and these problems; empty: it can."""
    recipe = ALL[name]
    if not recipe.needs_teacher:
        return "no teacher scores: nothing to lay beside the student"
    if recipe.refresh.external and not ask.other_model:
        return "another model teaches: name one under Whose weights teach"
    if ask.other_model and not recipe.refresh.external and recipe.refresh != FROZEN:
        return "its teacher follows the student: no other model can take its place"
    try:
        planned(replace(ask, recipe=name, student=AS_RECIPE, teacher=AS_RECIPE))
    except WorkbenchError as error:
        return str(error).splitlines()[0]
    return ""


def recipe_choices(ask: Ask) -> list[tuple[str, str]]:
    """(label, name) of every recipe, those that can be shown first; the others say why not."""
    found = [(name, why_not(name, ask)) for name in ALL]
    fit = [(name, name) for name, why in found if not why]
    return fit + [(f"{name} - not here: {why}", name) for name, why in found if why]


def context_choices() -> list[tuple[str, str]]:
    """(label, name) of every context, with what it shows."""
    out = [("as the recipe says", AS_RECIPE)]
    for name, context in vars(contexts).items():
        if not name.startswith("_") and hasattr(context, "needs") and not isinstance(context, type):
            shows = ", ".join(sorted(context.needs - {"question"})) or "the question alone"
            out.append((f"{name} ({shows})", name))
    return out


def problem_choices(ask: Ask) -> list[tuple[str, str]]:
    """(label, id) of the problems of the set, and one's own."""
    rows = [(f"{p.id}: {' '.join(p.question.split())[:90]}", p.id) for p in planned(ask).train]
    return [*rows, ("your own, in the boxes below", OWN)]


def problem_of(ask: Ask) -> Problem:
    """The problem that is asked about. Raises UsageError and InputError."""
    problems = planned(ask).train
    if ask.problem != OWN:
        found = [p for p in problems if p.id == ask.problem] if ask.problem else problems[:1]
        if not found:
            raise UsageError(
                f"no problem '{ask.problem}' in this set. It belongs to another one. Choose one from the list."
            )
        return found[0]
    if not ask.question.strip():
        raise InputError("your own problem has no text. Nothing can be asked. Write it into the box Problem.")
    answer = ask.answer.strip() or None
    others = (p for p in problems if answer is None or p.answer is None or not same_answer(p.answer, answer))
    other = next(others, None)
    return Problem(
        id="own",
        question=ask.question,
        answer=answer,
        solution=ask.solution.strip() or None,
        other=None if other is None else replace(other, other=None),
    )


# -- engines ---------------------------------------------------------------------------------------------------------

SHELF: Shelf[tuple[Any, ...], Engine] = Shelf(2)
"""Engines used last; a frozen copy of the weights is held only where a run's checkpoint needs one."""


def engine_key(ask: Ask) -> tuple[Any, ...]:
    """What makes two asks need the same engine."""
    third = planned(ask).recipe.needs_reference
    return ask.model.strip(), ask.other_model.strip(), third, planned(ask).problems.source if ask.other_model else ""


def engine_of(ask: Ask) -> Engine:
    """The engine, loaded now if it is not at hand. Raises UsageError and InputError. Hold the model's lock."""
    return SHELF.get(engine_key(ask), lambda: _built(ask))


def loading(ask: Ask) -> str:
    """What will be loaded, and how large it is; empty where nothing will."""
    if engine_key(ask) in SHELF:
        return ""
    names = [name for name in (ask.model.strip(), ask.other_model.strip()) if name]
    return "Loading " + " and ".join(f"{name}{_size(name)}" for name in names) + "."


def _built(ask: Ask) -> Engine:
    from workbench.assembly import build_engine, invited

    WALKS.clear()
    if checkpoint_of(ask.model) is not None:
        if ask.other_model:
            raise UsageError(
                "a checkpoint of a run brings its own teacher. Another model cannot take its place here. Leave "
                "Whose weights teach empty, or choose the run's final model."
            )
        return _resumed(Path(ask.model), checkpoint_of(ask.model))
    settled = planned(ask)
    invited(config_of(ask), settled)
    outside = bool(ask.other_model) or settled.recipe.refresh.external
    # Nothing trains here: without another model one copy of the weights serves both roles.
    recipe = replace(settled.recipe, adapter=None, refresh=settled.recipe.refresh if outside else LIVE)
    return build_engine(config_of(ask), replace(settled, recipe=recipe))


def _resumed(folder: Path, run: Path | None) -> Engine:
    """The student as it was at a step of a run, beside the teacher it had then."""
    from workbench.assembly import build_engine
    from workbench.train import checkpoint, snapshot

    assert run is not None
    config = stored_config(run)
    settled = plan(config)
    engine = build_engine(config, settled)
    snapshot.restore_weights(engine, checkpoint.at(folder))
    return engine


def _size(name: str) -> str:
    """` (0.5 GiB on disk)`; empty where the files cannot be found without loading them."""
    from workbench.engine.embedded import EMBEDDED, embedded_gguf

    try:
        path = Path(embedded_gguf(name)) if name in EMBEDDED else Path(name)
        files = [path] if path.is_file() else list(_weights(path))
        size = sum(f.stat().st_size for f in files)
    except (OSError, WorkbenchError):
        return ""
    return f" ({size / 2**30:.2f} GiB on disk)" if size else ""


def _weights(folder: Path) -> Iterator[Path]:
    for pattern in ("*.safetensors", "*.bin", "*.gguf"):
        yield from folder.glob(pattern)


def model_choices(runs: Path) -> list[tuple[str, str]]:
    """(label, model): the embedded model, then the final model and the checkpoints of every run, newest first."""
    out = [("smollm2 (135M, embedded)", "smollm2")]
    found = sorted(runs.glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True) if runs.is_dir() else []
    for file in found[:50]:
        run = file.parent
        for step in sorted((run / "checkpoints").glob("step-*"), reverse=True):
            number = step.name.removeprefix("step-")
            if number.isdecimal():
                out.append((f"{run.name}: step {int(number)}, beside its own teacher", str(step)))
        for final in (run / "final", run / "final" / "adapter"):
            if (final / "config.json").is_file() or (final / "adapter_config.json").is_file():
                out.append((f"{run.name}: final model, in both roles", str(final)))
                break
    return out
