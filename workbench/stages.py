"""Several recipes one after the other as one: a staged run is data, has one directory and is resumed as one.

    --stages sft:200 opsd:100:plateau=2 grpo:50:gradient=0.05

is 200 steps of `sft`, then `opsd` until the held-out loss has stopped falling or for 100 steps, then `grpo` likewise.
Inside a stage a recipe's schedules and its warm-up count from the stage's beginning. Weights, AdamW's moments and the
teacher go on: one that is frozen is what the run began with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from workbench.errors import RecipeError, UsageError
from workbench.parts.refresh import LIVE
from workbench.parts.schedules import Clock, Memory
from workbench.parts.stages import GradientBelow, Plateau, Progress, Until
from workbench.recipe import Recipe

_FORM = re.compile(r"([a-z0-9_]+):([0-9]{1,9})(?::(plateau|gradient)(?:=([0-9.eE+-]+))?)?")


@dataclass(frozen=True, kw_only=True)
class Stages(Recipe):
    """Recipes in turn. The fields of a recipe are those of the first with a teacher: what a run is evaluated by.

    `batch` is every stage's, so that the problems met are a function of the step.
    """

    stages: tuple[Recipe, ...]
    progress: Progress

    def __post_init__(self) -> None:
        """Refuse stages that cannot share one engine and one set of problems. Raises RecipeError."""
        super().__post_init__()
        if len(self.stages) != len(self.progress.until) or not self.stages:
            raise RecipeError(
                f"{len(self.stages)} stages with {len(self.progress.until)} ends. Give each stage its own."
            )
        taught = [stage for stage in self.stages if stage.teacher is not None]
        shared = {
            "adapter": {repr(stage.adapter) for stage in self.stages},
            "curriculum": {repr(stage.curriculum) for stage in self.stages},
            "refresh": {repr((stage.refresh == LIVE, stage.refresh.external)) for stage in taught},
        }
        for name, values in shared.items():
            if len(values) > 1:
                each = ", ".join(f"{stage.name} {getattr(stage, name)!r}" for stage in self.stages)
                raise RecipeError(
                    f"the stages differ in `{name}`: {each}. One engine trains all of them on the same problems. "
                    f"Set one for all: {_HINT[name]}"
                )
        for stage in self.stages:
            if stage.adaptive:
                raise RecipeError(
                    f"stage {stage.name} holds {type(stage.adaptive[0]).__name__}, which follows what training "
                    "measures. It would follow the other stages too. Run it alone."
                )

    @property
    def methods(self) -> tuple[Recipe, ...]:
        """The stages, as they run."""
        return tuple(replace(stage, batch=self.batch) for stage in self.stages)

    def method(self, memory: Memory) -> Recipe:
        """The stage that the next step belongs to."""
        return self.methods[self.progress.place(memory)[0]]

    def at(self, clock: Clock, memory: Memory | None = None) -> Recipe:
        """The stage's recipe, its schedules at the stage's own clock."""
        stage, begun = self.progress.place(memory or Memory())
        own = Clock(clock.step - begun, self.progress.until[stage].steps)
        return self.methods[stage].at(own, memory)

    def over(self, clock: Clock, memory: Memory) -> bool:
        """Whether the last stage has ended."""
        return self.progress.over(clock, memory)

    @property
    def needs_reference(self) -> bool:
        """Whether some stage scores the third role."""
        return any(stage.needs_reference for stage in self.stages)

    @property
    def requires(self) -> frozenset[str]:
        """What some stage cannot do without."""
        own = frozenset({"solution"}) if self.progress.validates else frozenset[str]()
        return own.union(*(stage.requires for stage in self.stages))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps of each stage, at most."""
        return tuple(until.steps for until in self.progress.until)

    @property
    def steps(self) -> int:
        """Of all of them."""
        return sum(self.lengths)

    def describe(self) -> str:
        """Every stage's five answers, and when it ends."""
        lines = [f"{self.name} ({len(self.stages)} stages)"]
        for i, (stage, until) in enumerate(zip(self.methods, self.progress.until, strict=True), 1):
            lines += [f"  stage {i:<14} {until!r}", *(f"  {line}" for line in stage.describe().splitlines())]
        return "\n".join(lines)


_HINT = {
    "adapter": "--adapter none, or --adapter lora:r=16,alpha=32.",
    "curriculum": "--set stages.0.curriculum=Shuffled()",
    "refresh": "--set stages.0.refresh=FROZEN, or stages that all learn from --teacher.",
}


def staged(stages: Sequence[Recipe], until: Sequence[Until]) -> Stages:
    """Recipes in turn, each until its end. Raises RecipeError where they cannot share a run."""
    main = next((stage for stage in stages if stage.needs_teacher), stages[0])
    values = {field.name: getattr(main, field.name) for field in fields(Recipe)}
    values |= {"name": "-".join(stage.name for stage in stages), "paper": "stages", "batch": stages[0].batch}
    moving = (stage.refresh for stage in stages if stage.needs_teacher and stage.refresh.every)
    values["refresh"] = next(moving, main.refresh)  # whether the teacher ever moves
    return Stages(**values, stages=tuple(stages), progress=Progress(tuple(until)))


def read_stage(text: str) -> tuple[str, Until]:
    """(recipe's name, its end) of `NAME:STEPS`, `NAME:STEPS:plateau[=patience]` or `NAME:STEPS:gradient=limit`.

    Raises UsageError for anything else.
    """
    found = _FORM.fullmatch(text)
    try:
        if found is not None:
            name, steps, trigger, number = found.groups()
            if trigger == "plateau":
                return name, Plateau(int(steps), **({} if number is None else {"patience": int(number)}))
            if trigger == "gradient" and number is not None:
                return name, GradientBelow(int(steps), float(number))
            if trigger is None:
                return name, Until(int(steps))
    except ValueError as error:  # RecipeError is one
        raise UsageError(f"--stages {text}: {error}") from error
    raise UsageError(
        f"--stages {text!r} is no stage. It is RECIPE:STEPS, and may end earlier by :plateau, :plateau=PATIENCE or "
        ":gradient=LIMIT. Write e.g. --stages sft:200 opsd:100:plateau=2"
    )


def own_settings(sets: Sequence[str], stages: int) -> list[tuple[str, ...]]:
    """Of `--set stages.0.path=value` what belongs to each stage. Raises UsageError for what belongs to none."""
    own: list[tuple[str, ...]] = [() for _ in range(stages)]
    for text in sets:
        found = re.fullmatch(r"stages\.([0-9]{1,3})\.(.*)", text, re.DOTALL)
        if found is None or int(found[1]) >= stages:
            raise UsageError(
                f"--set {text}: which stage? With --stages a path begins with `stages.` and a number from 0 to "
                f"{stages - 1}. Write e.g. --set stages.0.optimizer.lr=1e-5"
            )
        own[int(found[1])] += (found[2],)
    return own
