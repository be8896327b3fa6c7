"""Small experiments for notebooks: a model, some problems, and several ways of asking and training it, step by step.

Everything here is what the main job does, without its directory and its screen. A study is cheap to begin again, so
that every arm starts from the same weights and meets the same problems with the same luck.
"""

from __future__ import annotations

import html
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

import verifiers
from workbench.assembly import build_engine
from workbench.config import RunConfig
from workbench.engine.allocator import retain_heap
from workbench.engine.engine import Engine
from workbench.errors import UsageError, nearest
from workbench.inspector.diagnostics.answers import answer_positions
from workbench.inspector.diagnostics.record import TokenRecord
from workbench.inspector.page import static
from workbench.inspector.seen import Seen
from workbench.inspector.trajectory import Stage, measure
from workbench.parts.schedules import Clock
from workbench.planning import Plan, plan
from workbench.problems import STEP_BY_STEP, ProblemSet, Sums, pair_with_others
from workbench.recipe import Recipe
from workbench.records import Case, Context, Judged, Problem, Request, Role
from workbench.text import printable
from workbench.train import loop
from workbench.train.evaluate import ArmResult, Asked, evaluate, verify_with
from workbench.train.intervals import aligned
from workbench.train.loop import LoopSettings
from workbench.train.report import StepReport
from workbench.train.step import State, compared

SIZES = ("ci", "default", "large")
"""What the environment variable WB_NB_SIZE may say."""

_LUCK = (0, -4)
"""Random draws of what a study writes: shared with no training step and no evaluation."""


def sized(ci: int, default: int, large: int) -> int:
    """One of three numbers, as `WB_NB_SIZE` says; without it the middle one. Raises UsageError for another word."""
    word = os.environ.get("WB_NB_SIZE", "") or "default"
    if word not in SIZES:
        raise UsageError(f"WB_NB_SIZE={word} is no size. {nearest(word, SIZES)}")
    return {"ci": ci, "default": default, "large": large}[word]


def mixed_sums(
    train: int, held_out: int, terms: Sequence[int] = (2, 3, 4), maximum: int = 9, wording: str = STEP_BY_STEP
) -> ProblemSet:
    """Sums of several lengths in turn: the reference takes one step fewer than there are terms.

    Train and held-out problems are disjoint, reorderings included; each has another one beside it, for the controls.
    Raises UsageError where fewer exist.
    """
    each = [
        Sums(n, maximum, wording=wording).problems(-(-train // len(terms)), -(-held_out // len(terms))) for n in terms
    ]
    learnt, asked = ([p for some in zip(*(one[k] for one in each), strict=True) for p in some] for k in (0, 1))
    found = (pair_with_others(learnt)[:train], pair_with_others(asked)[:held_out])
    return ProblemSet(*found, f"sums of {', '.join(map(str, terms))} terms up to {maximum}", "generated", ())


def steps_of_reference(problems: Sequence[Problem]) -> dict[str, str]:
    """Problem id -> `1 step`, `2 steps`, ...: the lines of its worked solution. Problems without one are left out."""
    counts = {p.id: sum(bool(line.strip()) for line in p.solution.splitlines()) for p in problems if p.solution}
    return {key: f"{n} step" if n == 1 else f"{n} steps" for key, n in counts.items()}


def answer_logps(seen: Sequence[Seen], role: Role = "teacher") -> dict[str, list[float | None]]:
    """Problem id -> log-prob of the answer as written, nats, a completion: the sum over the tokens that hold it.

    Under the teacher or the student. None where nobody found an answer in the text.
    """
    out: dict[str, list[float | None]] = {}
    for one in seen:
        at = answer_positions(TokenRecord.of(one))
        logps = one.student_logp if role == "student" else one.teacher_logp
        out.setdefault(one.problem, []).append(float(logps[at].sum()) if len(at) else None)
    return out


def most_apart(seen: Sequence[Seen]) -> int:
    """Which completion has the largest summed forward KL; the first of equals."""
    return int(np.argmax([np.nansum(one.forward_kl) for one in seen]))


def loss(seen: Sequence[Seen]) -> float:
    """The loss of the step that these completions are."""
    return float(sum(np.nansum(one.loss) for one in seen))


def parting(seen: Seen, n: int = 6) -> str:
    """The tokens at which both roles part most, for a terminal: by forward KL, with what each would rather write."""
    rows: list[tuple[str, ...]] = [
        ("token", "written", "student", "teacher", "forward KL, nat", "student's first", "teacher's first")
    ]
    for t in sorted(np.argsort(-seen.forward_kl, kind="stable")[:n].tolist()):
        firsts = seen.alternatives(t)
        favourites = [max(firsts, key=lambda a: getattr(a, f"{role}_logp")).text for role in ("student", "teacher")]
        chances = [f"{100 * math.exp(logp[t]):.1f} %" for logp in (seen.student_logp, seen.teacher_logp)]
        row = (str(t), repr_of(seen.text[t]), *chances, f"{seen.forward_kl[t]:.3f}", *map(repr_of, favourites))
        rows.append(row)
    return aligned(rows)


def repr_of(piece: str) -> str:
    """A token between quotes, nothing invisible in it."""
    return f"'{printable(piece)}'"


@dataclass(frozen=True)
class Study:
    """A recipe on a model with problems: ask, write, look and learn."""

    engine: Engine
    planned: Plan
    config: RunConfig = field(default_factory=RunConfig)

    @property
    def recipe(self) -> Recipe:
        """What would be trained, schedules as at the first step."""
        return self.planned.recipe.at(Clock(0, self.planned.steps))

    @property
    def held_out(self) -> tuple[Problem, ...]:
        """What is asked; nothing trains on it."""
        return self.planned.held_out

    def prompts(self, problem: Problem) -> str:
        """Both rendered prompts of a problem, with their token counts, for a person."""
        lines = []
        for role, context in (("student", self.recipe.student), ("teacher", self.recipe.teacher)):
            if context is not None:
                shown = self.engine.prompt(context, Case(problem), "teacher" if role == "teacher" else "student")
                lines.append(f"--- {role} sees {len(shown.ids)} tokens\n{printable(shown.text, lines=True)}")
        return "\n".join(lines)

    def ask(
        self, name: str, context: Context | None = None, *, samples: int = 1, temperature: float | None = None
    ) -> ArmResult:
        """The held-out problems under the student's context, or another one.

        Greedy for one sample, at temperature 1 for several unless said otherwise. Draws depend on problem and index
        alone, so arms are compared on the same luck.
        """
        warm = (1.0 if samples > 1 else 0.0) if temperature is None else temperature
        sampling = replace(self.recipe.sampling, temperature=warm, max_new_tokens=self.planned.eval_tokens)
        asked = Asked(name, context or self.recipe.student, samples)
        found = evaluate(self.engine, self.held_out, asked, sampling, verify_with(self.planned.verifier))
        assert found is not None, "nobody stops a study midway"
        return found

    def learn(self, steps: int | None = None) -> list[StepReport]:
        """Train for some steps as the recipe says; one report a step. The engine's weights move."""
        total = self.planned.steps if steps is None else steps
        state = State(self.engine, Clock(0, total), self.config.seed, held_out=self.held_out)
        notes = _Notes()
        settings = LoopSettings(total, self.config.seed, save_every=total + 1)
        loop.run(self.planned.recipe, state, self.planned.train, verify_with(self.planned.verifier), settings, notes)
        return notes.reports

    def write(self, problems: Sequence[Problem] | None = None, samples: int = 1) -> list[list[Judged]]:
        """Rollouts of the student, judged, grouped by problem as a training step would have them."""
        asked = self.held_out if problems is None else problems
        requests = [Request(p, self.recipe.student, "student", k, _LUCK) for p in asked for k in range(samples)]
        verify = verify_with(self.planned.verifier)
        rollouts = self.engine.generate(requests, self.recipe.sampling)
        return compared(self.recipe, [Judged(r, verify(r)) for r in rollouts], {})

    def say(self, texts: Mapping[str, str]) -> list[list[Judged]]:
        """Given texts (problem id -> text) as completions of the student, ended as its template ends one, judged."""
        verify, found = verify_with(self.planned.verifier), []
        uncut = replace(self.recipe.sampling, max_new_tokens=self.engine.max_length)
        for problem in (p for p in self.held_out if p.id in texts):
            request = Request(problem, self.recipe.student)
            rollout = self.engine.pen.rollout(texts[problem.id], request, "student", uncut)
            found.append(Judged(rollout, verify(rollout)))
        return compared(self.recipe, found, {})

    def see(
        self, groups: Sequence[Sequence[Judged]], teacher: Context | None = None, *, recipe: Recipe | None = None
    ) -> list[Seen]:
        """What both roles make of rollouts, under the study's recipe; or another teacher's view, or another recipe."""
        looked = self.recipe if recipe is None else recipe
        if teacher is not None:
            looked = replace(looked, teacher=teacher, name=f"{looked.name}, teacher sees {teacher!r}")
        return measure(Stage(self.engine, looked), groups)


def begin(
    recipe: str | Recipe = "opsd", problems: ProblemSet | None = None, *, config: RunConfig | None = None
) -> Study:
    """A study on freshly loaded weights.

    Args:
        recipe: a name of the catalogue, as set for the model; or a recipe.
        problems: instead of those the recipe was set for.
        config: model, seed, lengths, ...; its recipe and problems are those of the other two arguments.

    Raises:
        UsageError, InputError: for whatever cannot be meant or used.
    """
    retain_heap()
    config = config or RunConfig()
    config = replace(config, recipe=recipe if isinstance(recipe, str) else "opsd")
    planned = plan(config)
    if not isinstance(recipe, str):
        room = config.eval_tokens or recipe.sampling.max_new_tokens
        planned = replace(planned, recipe=recipe, eval_tokens=room)
    if problems is not None:
        bad = [p.id for p in (*problems.train, *problems.held_out) if verifiers.check_gold(p.answer)]
        if bad:
            raise UsageError(f"the gold of {len(bad)} problems cannot be read (first: {bad[0]}). Leave them out.")
        planned = replace(planned, problems=problems)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, in a kernel without widgets
        return Study(build_engine(config, planned), planned, config)


@dataclass(frozen=True)
class Embedded:
    """Something that a notebook shows as a page of its own, and everything else as one line."""

    page: str
    title: str
    height: int

    def _repr_html_(self) -> str:
        source, title = html.escape(self.page), html.escape(self.title)
        style = f"width:100%;height:{self.height}px;border:1px solid #8888"
        return f'<div><iframe title="{title}" sandbox="allow-scripts" style="{style}" srcdoc="{source}"></iframe></div>'

    def __repr__(self) -> str:
        return f"<{self.title}: {len(self.page)} characters of HTML>"


def show(seen: Seen | Sequence[Seen], title: str = "", *, linked: bool = False, height: int = 980) -> Embedded:
    """The token view of completions for a notebook: static HTML in a frame that can reach nothing.

    `linked`: one selection and one scroll for all.
    """
    return Embedded(static.page(seen, title=title, linked=linked), title or "token view", height)


class _Notes:
    """Keeps the reports; saves and evaluates nothing."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def step(self, report: StepReport, seconds: dict[str, float], notes: list[str]) -> None:
        self.reports.append(report)

    def save(self) -> None: ...

    def evaluate(self) -> None: ...
