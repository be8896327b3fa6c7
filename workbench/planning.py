"""From a `RunConfig` to what will be done: the recipe with everything the user changed, and the problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import verifiers
from workbench.config import RunConfig
from workbench.errors import InputError, UsageError, nearest
from workbench.overrides import apply_set
from workbench.parts.gates import Consensus
from workbench.problems import ProblemSet, check_needs, graded, load, pair_with_others, parse_columns
from workbench.recipe import Recipe
from workbench.recipes import ALL, FOR_MODEL
from workbench.recipes.embedded import Setting
from workbench.records import Problem
from workbench.stages import own_settings, read_stage, staged


@dataclass(frozen=True)
class Plan:
    """What a run will do, as far as it can be known without a model."""

    recipe: Recipe
    problems: ProblemSet
    steps: int
    """Optimizer steps."""
    eval_tokens: int
    """Tokens an evaluated completion may have."""
    verifier: str
    """The profile answers are read by."""
    notes: tuple[str, ...]
    """What the user should know: golds left out, settings that are not the paper's."""

    @property
    def train(self) -> tuple[Problem, ...]:
        """What is learnt from."""
        return self.problems.train

    @property
    def held_out(self) -> tuple[Problem, ...]:
        """What is evaluated on."""
        return self.problems.held_out


def plan(config: RunConfig) -> Plan:
    """Settle recipe and problems. Raises UsageError and InputError for whatever cannot be meant or used."""
    setting, notes = settle_recipe(config)
    problems, more = settle_problems(config, setting)
    generated = problems.source.partition(":")[0] == "sums"
    profile = config.verifier or ("last_number" if generated else "strict")
    steps = setting.steps if config.steps is None else config.steps
    if any(schedule.validates for schedule in setting.recipe.adaptive) and not problems.held_out:
        raise UsageError(
            f"recipe {setting.recipe.name} follows its loss on held-out solutions, and nothing is held out. "
            "Its schedule would never move. Give --eval-problems 1 or more."
        )
    room = config.eval_tokens or setting.eval_tokens or setting.recipe.sampling.max_new_tokens
    said = f"answers are read by the profile {profile}"
    return Plan(setting.recipe, problems, steps, room, profile, (*notes, *more, said))


def settle_recipe(config: RunConfig) -> tuple[Setting, tuple[str, ...]]:
    """The named recipe, as set for the model if the catalogue says how, then `--set`, then flags."""
    if config.stages:
        return _settle_stages(config)
    if config.recipe not in ALL:
        raise UsageError(f"no recipe '{config.recipe}'. {nearest(config.recipe, ALL)}")
    published = ALL[config.recipe]
    setting = FOR_MODEL.get(config.model, {}).get(config.recipe, Setting(published))
    recipe, notes = setting.recipe, tuple[str, ...]()
    if recipe is not published:
        notes = (f"{config.recipe} as set for {config.model}: {_changes(published, recipe)}",)
    for text in config.set:
        recipe = apply_set(recipe, text)
    sampling = _given(config, ("max_new_tokens", "temperature", "top_p"))
    optimizer = _given(config, ("lr", "weight_decay", "warmup_steps", "max_grad_norm"))
    recipe = replace(
        recipe,
        sampling=replace(recipe.sampling, **sampling),
        optimizer=replace(recipe.optimizer, **optimizer),
        batch=config.batch if config.batch is not None else recipe.batch,
        rollouts=recipe.rollouts.grouped(config.group) if config.group is not None else recipe.rollouts,
        adapter=recipe.adapter if config.adapter is None else None if config.adapter == "none" else config.adapter,
    )
    return replace(setting, recipe=recipe), notes


def _settle_stages(config: RunConfig) -> tuple[Setting, tuple[str, ...]]:
    """Each stage as the recipe alone would be, then all of them as one."""
    if config.steps is not None:
        raise UsageError("--steps and --stages contradict each other. Each stage says its own. Leave --steps out.")
    asked = [read_stage(text) for text in config.stages]
    found = [
        settle_recipe(replace(config, recipe=name, set=sets, stages=(), group=_group(config, name)))
        for (name, _), sets in zip(asked, own_settings(config.set, len(asked)), strict=True)
    ]
    whole = staged([setting.recipe for setting, _ in found], [until for _, until in asked])
    main = next((setting for setting, _ in found if setting.recipe.needs_teacher), found[0][0])
    notes = tuple(f"stage {i}: {note}" for i, (_, said) in enumerate(found, 1) for note in said)
    return replace(main, recipe=whole, steps=whole.steps), notes


def _group(config: RunConfig, recipe: str) -> int | None:
    """--group is for the stages that sample: a data set has one text a problem."""
    given = recipe in ALL and ALL[recipe].rollouts.authors == {"dataset"}
    return None if given else config.group


def settle_problems(config: RunConfig, setting: Setting) -> tuple[ProblemSet, tuple[str, ...]]:
    """Load, drop what no verifier can grade, hold some out, and give each problem the other one a control shows."""
    recipe, source = setting.recipe, config.problems or setting.problems
    columns = parse_columns(config.columns) if config.columns else None
    # The same problems whatever the seed, so that seeds can be averaged within a problem.
    found = load(source, split=config.split, limit=config.limit, columns=columns, require=config.require)
    if config.held_out is not None:
        other = load(config.held_out, columns=columns, require=config.require)
        found = found.apart_from((*other.train, *other.held_out)[: config.eval_problems])
    else:
        # The packaged programs bring a held-out part of their own, and are few.
        own = len(found.held_out) if found.source.partition(":")[0] == "code" else config.eval_problems
        found = found.with_held_out(min(config.eval_problems, own))
    check_needs(found, recipe.requires, f"recipe {recipe.name} shows the teacher")
    train, lost = graded(found.train, verifiers.check_gold)
    train, mute = _voting(recipe, train)
    held_out, lost_too = graded(found.held_out, verifiers.check_gold)
    if not train:
        why = next(iter((*mute, *lost)), "The source is empty.")
        raise InputError(
            f"no problem is left to train on. {why} Give --problems with answers that a verifier can read."
        )
    if any(need.startswith("other.") for need in recipe.requires):
        train = pair_with_others(train)
        held_out = pair_with_others(held_out) if held_out else held_out
    said = sandboxed((*train, *held_out), config.sandbox)
    return replace(found, train=train, held_out=held_out), (*lost, *mute, *lost_too, *said)


def _voting(recipe: Recipe, problems: tuple[Problem, ...]) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
    """Without the problems on whose programs a vote could never agree, and one line that says so."""
    if not any(isinstance(gate, Consensus) for method in recipe.methods for gate in method.gates):
        return problems, ()
    reasons = {p.id: why for p in problems if (why := verifiers.check_votes(p.tests)) is not None}
    if not reasons:
        return problems, ()
    said = (
        f"{len(reasons)} of {len(problems)} problems have programs that cannot vote (first: id {next(iter(reasons))}): "
        f"left out. {next(iter(reasons.values()))} Consensus compares values or output on the inputs of visible tests."
    )
    return tuple(p for p in problems if p.id not in reasons), (said,)


def sandboxed(problems: Sequence[Problem], level: str) -> tuple[str, ...]:
    """Open the jail that problems with tests need, and say at which level; nothing for other problems.

    Raises InputError where none can be opened at the level asked.
    """
    if not any(problem.tests for problem in problems):
        return ()
    try:
        found = verifiers.open_sandbox(level)
    except verifiers.SandboxRefused as refusal:
        raise InputError(
            f"--sandbox {level}: programs cannot be run in isolation here. {refusal} "
            "Mend one of these, or accept none with --sandbox unsafe."
        ) from refusal
    if found == "unsafe":
        return ("PROGRAMS RUN WITHOUT ISOLATION (--sandbox unsafe): what the model writes can do whatever you can",)
    return (f"programs run in the sandbox, level {found}",)


def _given(config: RunConfig, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _changes(published: Recipe, used: Recipe) -> str:
    """`optimizer.lr 1e-4 (paper 5e-06)`, field by field."""
    out: list[str] = []

    def walk(path: str, old: object, new: object) -> None:
        if old == new:
            return
        same_kind = dataclasses.is_dataclass(old) and type(old) is type(new)
        if same_kind and path not in {"student", "teacher", "prompt_only"}:
            for f in dataclasses.fields(old):  # type: ignore[arg-type]
                walk(f"{path}.{f.name}".lstrip("."), getattr(old, f.name), getattr(new, f.name))
        else:
            out.append(f"{path} {new!r} (paper {old!r})")

    walk("", published, used)
    return ", ".join(out)
