"""`python -m workbench.plan --budget 8h`: what a budget buys on this machine, as commands to paste.

Two steps of the on-policy recipe are run and thrown away; the second is measured. From it come the seconds a token
(`workbench/budget.py`), and from these the steps of three stages: off-policy warm-up, on-policy distillation,
reward-guided. Further flags are those of `python -m workbench.opsd`: --model, --teacher, --problems ...
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.budget import SHARES, Costs, normalised, read_budget
from workbench.cli import Arguments, parse, run_command
from workbench.config import RunConfig, as_dict
from workbench.config_files import flags
from workbench.errors import TrainingError, UsageError
from workbench.launch import alone

if TYPE_CHECKING:
    from workbench.engine.engine import Engine
    from workbench.planning import Plan
    from workbench.recipe import Recipe


@dataclass(frozen=True)
class Measurement:
    """What two steps showed."""

    costs: Costs
    written: float
    """Mean tokens of a rollout."""
    given: float
    """Mean tokens of a solution; 0 where problems have none."""

    @classmethod
    def read(cls, path: Path) -> Measurement | None:
        """What an earlier call left; None where it left nothing readable."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(Costs(**found["costs"]), found["written"], found["given"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, path: Path) -> None:
        """For the next call."""
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"costs": self.costs.as_dict(), "written": self.written, "given": self.given}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Bought:
    """One stage of the budget."""

    recipe: Recipe
    share: float
    tokens_a_step: float
    seconds_a_token: float
    steps: int

    @property
    def tokens(self) -> float:
        """Completion tokens of all its steps."""
        return self.steps * self.tokens_a_step

    @property
    def seconds(self) -> float:
        """Of all its steps."""
        return self.tokens * self.seconds_a_token


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(partial(_main, arguments), debug="--debug" in arguments)


def _main(argv: list[str]) -> int:
    alone("workbench.plan")
    parser = Arguments(prog="python -m workbench.plan", description=__doc__, allow_abbrev=False)
    parser.add_argument("--budget", required=True, help="time on this machine: 8h, 90m, 2d")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="of the three stages; normalised")
    parser.add_argument("--off", help="off-policy recipe; not given: sft, or kd with --teacher")
    parser.add_argument("--on", help="on-policy recipe, also --recipe; not given: opsd, or opd with --teacher")
    parser.add_argument("--reward", default="grpo", help="reward-guided recipe (grpo)")
    parser.add_argument("--refresh-rate", type=float, default=1.0, help="lambda: tokens the teacher scores anew")
    parser.add_argument("--again", action="store_true", help="measure again")
    asked, rest = parser.parse_known_args(argv)
    seconds, shares = read_budget(asked.budget), normalised(_numbers(asked.shares))
    if not 0 < asked.refresh_rate <= 1:
        raise UsageError(f"--refresh-rate {asked.refresh_rate} is no share. It is above 0 and up to 1.")
    if len(shares) != 3:
        raise UsageError(f"--shares {asked.shares} are {len(shares)} numbers. There are three stages. Write three.")
    config = parse(rest)
    if config.stages or config.resume or config.set:
        raise UsageError("a plan is made of whole recipes. --stages, --resume and --set say otherwise. Leave them out.")
    if config.engine != "hf":
        raise UsageError(
            f"--engine {config.engine}: a plan times rollouts in this process, and servers take another time. "
            "Leave --engine and --server out, and add them to the commands it prints."
        )
    other = config.teacher is not None
    on = asked.on or (config.recipe if config.recipe != RunConfig.recipe else "opd" if other else "opsd")
    names = (asked.off or ("kd" if other else "sft"), on, asked.reward)
    print("\n".join(_planned(config, names, shares, seconds, (asked.refresh_rate, asked.again))))
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--shares {text!r} are no numbers. Write e.g. --shares 0.65,0.25,0.1") from error


def _planned(
    config: RunConfig, names: tuple[str, ...], shares: tuple[float, ...], budget: float, how: tuple[float, bool]
) -> list[str]:
    """The lines of a plan."""
    from workbench.planning import plan, settle_recipe

    rate, again = how
    own = replace(config, recipe=names[1], steps=None)
    settled = settle_recipe(own)[0].recipe
    # Stages share one engine and one batch: the on-policy recipe's.
    own = replace(own, batch=settled.batch, adapter=settled.adapter or "none")
    whole = plan(replace(own, stages=tuple(f"{name}:1" for name in names)))  # refuses what would not run
    measurement, where = _measurement(own, again)
    bought = [
        buy(method, measurement, share * budget, share, rate)
        for method, share in zip(whole.recipe.methods, shares, strict=True)
    ]
    return [*_costs(measurement.costs, own, rate, where), *_table(bought), *_commands(own, names, bought)]


def buy(recipe: Recipe, found: Measurement, seconds: float, share: float, rate: float = 1.0) -> Bought:
    """As many steps of a recipe as fit, and at least one."""
    authors = frozenset(recipe.rollouts.authors)
    a_step = recipe.completions * (found.given if authors == {"dataset"} else found.written)
    a_token = found.costs.of(authors, recipe.needs_teacher, rate)
    return Bought(recipe, share, a_step, a_token, max(1, int(seconds / max(a_step * a_token, 1e-9))))


# -- measuring -----------------------------------------------------------------------------------------------------


def _measurement(config: RunConfig, again: bool) -> tuple[Measurement, Path]:
    """Cached below the output directory: the same recipe, models, problems and machine are measured once."""
    from workbench.planning import plan

    planned = plan(config)
    path = Path(config.output) / "plan" / f"{_key(config, planned)}.json"
    found = None if again else Measurement.read(path)
    if found is None:
        print(f"measuring two steps of {planned.recipe.name}", file=sys.stderr, flush=True)
        found = measure(config, planned)
        found.write(path)
    return found, path


def _key(config: RunConfig, planned: Plan) -> str:
    import torch

    facts = {name: as_dict(config)[name] for name in ("model", "teacher", "device", "dtype", "micro_tokens")}
    more = (planned.recipe.describe(), planned.problems.sha256, torch.__version__, torch.get_num_threads())
    text = json.dumps([facts, *more, platform.machine(), platform.processor()], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def measure(config: RunConfig, planned: Plan) -> Measurement:
    """Run two steps and look at the second. Raises TrainingError where it taught nothing."""
    from workbench.assembly import build_engine
    from workbench.engine.allocator import retain_heap
    from workbench.fitting import fitting
    from workbench.parts.schedules import Clock
    from workbench.train import accounts
    from workbench.train.evaluate import verify_with
    from workbench.train.step import State, train_step

    retain_heap()
    engine = build_engine(config, planned)
    planned = fitting(engine, planned, config)
    recipe, state = planned.recipe, State(engine, Clock(0, 2), config.seed)
    book = accounts.of(engine, state.phases)
    for _ in range(2):
        first = state.clock.step * recipe.batch
        problems = recipe.curriculum.batch(planned.train, recipe.batch, first, config.seed)
        report = train_step(recipe, state, problems, verify_with(planned.verifier))
        assert report is not None, "nobody can stop it"
        found = book.step(recipe.name, report.tokens)
    assert report is not None, "there were two steps"
    if not report.kept:
        raise TrainingError(f"{recipe.name} kept no rollout of the step measured. Nothing was learnt. Raise --group.")
    written = _mean([len(j.rollout.tokens) for j in report.judged])
    return Measurement(costs_of(found, engine), written, _given(engine, planned))


def costs_of(found: dict[str, Any], engine: Engine) -> Costs:
    """Seconds a token from the accounts of a step; scoring is shared out between the roles by their FLOPs."""
    from workbench.engine.meter import Shape

    seconds, tokens, work = found["seconds"], found["tokens"], found["role_flops"]
    reading = [phase for phase in ("read", "score") if phase in seconds]
    of_teacher = {phase: work.get(f"{phase}.teacher", 0.0) + work.get(f"{phase}.reference", 0.0) for phase in reading}
    share = {p: of_teacher[p] / max(1e-9, of_teacher[p] + work.get(f"{p}.student", 0.0)) for p in reading}
    trained, generated = max(1, tokens["trained"]), max(1, sum(tokens["generated"].values()))
    teacher = sum(share[phase] * seconds[phase] for phase in reading)
    writes = (seconds.get("rollout", 0.0) + seconds.get("verify", 0.0)) / generated
    with engine.running("student") as own:
        size = Shape.of(own).weights
    times = 1.0
    if engine.external is not None and not engine.external.recorded:
        with engine.running("teacher") as other:
            times = Shape.of(other).weights / size
    return Costs(
        teacher_reads=teacher / trained,
        student_reads=(sum(seconds[phase] for phase in reading) - teacher) / trained,
        student_learns=(seconds.get("backward", 0.0) + seconds.get("update", 0.0)) / trained,
        student_writes=writes,
        teacher_writes=writes * times,
    )


def _given(engine: Engine, planned: Plan) -> float:
    """Mean tokens of the solutions that a data set would teach."""
    from workbench.records import Request

    problems = [p for p in planned.train if p.solution][:64]
    requests = [Request(p, planned.recipe.student, "dataset") for p in problems]
    return _mean([len(r.tokens) for r in engine.transcribe(requests, planned.recipe.sampling)])


def _mean(lengths: Sequence[int]) -> float:
    return sum(lengths) / max(1, len(lengths))


# -- saying it -----------------------------------------------------------------------------------------------------


def _costs(costs: Costs, config: RunConfig, rate: float, where: Path) -> list[str]:
    off, on, written = costs.off_policy(), costs.on_policy(rate=rate), costs.off_policy(written=True)
    named = {
        "student writes": costs.student_writes,
        "teacher reads": costs.teacher_reads,
        "student reads": costs.student_reads,
        "student learns": costs.student_learns,
    }
    words = ", ".join(f"{name} {1000 * value:.3g}" for name, value in named.items())
    return [
        f"measured       {config.recipe} on {config.model}, kept in {where}; --again measures anew",
        f"a token        {words} ms",
        f"off-policy     {1000 * off:.3g} ms a token, {1000 * written:.3g} if the teacher writes it",
        f"on-policy      {1000 * on:.3g} ms a token at refresh rate {rate:g}: {on / off:.2f} of off-policy",
        "",
    ]


def _table(bought: Sequence[Bought]) -> list[str]:
    from workbench.train.reporting import duration

    kinds = ("off-policy", "on-policy", "rewards")
    head = f"{'stage':14} {'share':>5} {'time':>8} {'steps':>7} {'tokens':>11}  recipe"
    rows = [
        f"{kind:14} {b.share:5.0%} {duration(b.seconds):>8} {b.steps:7} {b.tokens:11,.0f}  {b.recipe.name}"
        for kind, b in zip(kinds, bought, strict=True)
    ]
    return [head, *rows, "evaluations come on top; a rule of thumb, and no promise that the stages help", ""]


def _commands(config: RunConfig, names: Sequence[str], bought: Sequence[Bought]) -> list[str]:
    """One run with three stages, and the same as three runs."""
    common = flags(replace(config, recipe=RunConfig.recipe, steps=None, name=None, teacher=None, fork=None, group=None))
    teacher, group = flags(RunConfig(teacher=config.teacher)), flags(RunConfig(group=config.group))
    stages = [f"{name}:{b.steps}" for name, b in zip(names, bought, strict=True)]
    whole = ["--stages", *stages, "--name", "planned", *common, *group, *teacher]
    lines, before = ["one run:", _opsd(whole), "", "or run by run:"], flags(RunConfig(fork=config.fork))
    for i, (name, b) in enumerate(zip(names, bought, strict=True), 1):
        taught = teacher if b.recipe.refresh.external else []
        grouped = [] if b.recipe.rollouts.authors == {"dataset"} else group  # one text a problem
        run = ["--recipe", name, "--steps", str(b.steps), "--name", f"planned-{i}"]
        lines.append(_opsd([*run, *before, *common, *grouped, *taught]))
        before = ["--fork", str(Path(config.output) / f"planned-{i}")]
    return lines


def _opsd(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "workbench.opsd", *arguments])


if __name__ == "__main__":
    raise SystemExit(main())
