"""What a run's models are asked when a report is made: several answers a problem, wrong hints, budgets, steps.

Two visits, so that one model is in memory at a time: the run's beginning (its student and its teacher), then its end.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from verifiers import Verdict
from workbench.engine.engine import Engine
from workbench.engine.generating import never
from workbench.inspector.diagnostics import Generation, TokenRecord, drift, fork_threshold, reliability
from workbench.inspector.diagnostics.record import by_problem
from workbench.inspector.pieces import pieces
from workbench.inspector.report import hints, sweep, thinking, tokenwise, variety
from workbench.inspector.report.scoring import records_of
from workbench.inspector.report.section import Plot, Row, Section, percent, shown, unknown
from workbench.inspector.report.thinking import Steps
from workbench.inspector.report.variety import Pool
from workbench.parts.contexts import shown_to_teacher
from workbench.parts.schedules import Clock
from workbench.planning import Plan
from workbench.recipe import Recipe
from workbench.records import Judged, Problem, Request, Sampling
from workbench.train.evaluate import Verifier, verify_with
from workbench.train.intervals import Scores, bootstrap_share

SEED = -7
"""Of the probes' draws: apart from those of training (0 on), evaluation (-2) and the held-out rollouts (-3)."""
PROBES = 3
"""Answers of the teacher a problem, as in TGOPD."""


@dataclass(frozen=True)
class Asked:
    """How much to ask."""

    problems: int = 24
    samples: int = 4
    hints: int = 3


@dataclass(frozen=True)
class Visit:
    """What one model wrote for every problem, and what both roles think of it."""

    groups: Sequence[Sequence[Judged]]
    texts: Sequence[tuple[str, ...]]
    """Each completion, token by token as text."""
    records: Sequence[TokenRecord]
    """Empty where no teacher scores."""
    steps: Steps
    forced: Mapping[int, Scores] = field(default_factory=dict)
    """Tokens kept -> problem -> whether the gold answer comes when asked for there."""

    @property
    def pool(self) -> Pool:
        """Verdicts and texts by problem."""
        verdicts = {g[0].rollout.problem.id: [j.verdict for j in g] for g in self.groups}
        return verdicts, {g[0].rollout.problem.id: [j.rollout.text for j in g] for g in self.groups}

    def generations(self) -> list[Generation]:
        """As the budget sweep wants them. The end token is a token, but no text that a judge should read."""
        found = []
        for i, (j, text) in enumerate(zip((j for g in self.groups for j in g), self.texts, strict=True)):
            ended = j.rollout.stop == "stop"
            entropy = self.records[i].student_entropy if self.records else None
            shown = (*text[:-1], "") if ended else text
            found.append(Generation(j.rollout.problem.id, shown, ended, entropy))
        return found


@dataclass
class Probe:
    """The two visits, and the sections they make."""

    planned: Plan
    model: str
    asked: Asked
    stopped: Callable[[], bool] = never
    before: Visit | None = None
    found: list[Section] = field(default_factory=list)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Held-out problems; where nothing is held out, the first ones."""
        return (self.planned.held_out or self.planned.train)[: self.asked.problems]

    @property
    def recipe(self) -> Recipe:
        """The run's, with its schedules at their first value."""
        return self.planned.recipe.at(Clock(0, max(1, self.planned.steps)))

    def _scores(self, engine: Engine) -> bool:
        """Whether a teacher can score what is written now: not one of whom there is a record alone."""
        recorded = engine.external is not None and engine.external.recorded
        return self.recipe.teacher is not None and not recorded

    @property
    def verify(self) -> Verifier:
        """The run's own."""
        return verify_with(self.planned.verifier)

    @property
    def sampling(self) -> Sampling:
        """As the run samples, with the room its evaluation has."""
        return replace(self.recipe.sampling, max_new_tokens=self.planned.eval_tokens)

    @property
    def basis(self) -> str:
        """What every probe rests on."""
        s = self.sampling
        return (
            f"{len(self.problems)} held-out problems, {self.asked.samples} completions each, temperature "
            f"{s.temperature:g}, top-p {s.top_p:g}, up to {s.max_new_tokens} tokens, one draw of the sampler"
        )

    def visit(self, engine: Engine) -> Visit:
        """Let the student of this engine write, and judge and score what it wrote."""
        recipe = self.recipe
        requests = [
            Request(p, recipe.student, "student", k, (0, SEED))
            for p in self.problems
            for k in range(self.asked.samples)
        ]
        drawn: defaultdict[str, list[Judged]] = defaultdict(list)
        for rollout in engine.generate(requests, self.sampling, self.stopped):
            if rollout.tokens:
                drawn[rollout.problem.id].append(Judged(rollout, self.verify(rollout)))
        groups = list(drawn.values())
        records = records_of(engine, recipe, groups) if self._scores(engine) else []
        texts = [pieces(engine.tokenizer, j.rollout.tokens) for group in groups for j in group]
        visit = Visit(groups, texts, records, thinking.measured(engine, recipe.student, groups))
        by_id = {p.id: p for p in self.problems}
        asked = sweep.forced(engine, recipe.student, visit.generations(), by_id, self.planned.eval_tokens)
        return replace(visit, forced=asked)

    def beginning(self, engine: Engine) -> None:
        """The untrained student and the run's teacher."""
        self.before = self.visit(engine)
        if not self._scores(engine):
            self.found.append(unknown("hint_contrast", "Does the teacher's hint say more than a wrong one?",
                                      "no teacher can be asked what is not recorded", "probed"))  # fmt: skip
            return
        self.found += self._signal(engine)
        self.found.append(self._teacher(engine))

    def end(self, engine: Engine) -> None:
        """The trained student, on the same problems with the same luck."""
        assert self.before is not None, "the beginning is visited first"
        after = self.visit(engine)
        self.found += [self._variety(after), self._drift(after), self._budgets(after), self._steps(after)]

    def sections(self) -> list[Section]:
        """Everything found so far."""
        if self.before is None or any(s.name == "diversity" for s in self.found):
            return self.found
        pools = {"before": self.before.pool}
        return [
            *self.found,
            variety.section(pools, "probed", self.basis),
            thinking.section({"before": self.before.steps}, self.basis),
        ]

    def _signal(self, engine: Engine) -> list[Section]:
        assert self.before is not None, "called by `beginning`"
        recipe, groups = self.recipe, self.before.groups
        paired = self.planned.held_out or self.planned.train
        kinds = hints.wrong_hints(recipe, self.model, paired, self.asked.hints) if engine.external is None else []
        problems = {p.id: p for p in self.problems}
        evidence = tokenwise.Evidence(
            self.before.records,
            "probed",
            f"{self.basis}; the untrained student and the run's first teacher; {self.asked.hints} wrong hints a kind",
            shown_to_teacher(recipe.teacher, problems),
            {key: p.question for key, p in problems.items()},
            {hint.kind: hints.scored(engine, recipe, groups, hint) for hint in kinds},
        )
        return [tokenwise.hints(evidence), *tokenwise.sections(evidence)]

    def _teacher(self, engine: Engine) -> Section:
        """The teacher writes under its context, the verifier judges (TGOPD, arXiv:2609.02998)."""
        title, recipe = "Is the teacher right?", self.recipe
        assert recipe.teacher is not None, "asked where there is one"
        requests = [Request(p, recipe.teacher, "teacher", k, (0, SEED)) for p in self.problems for k in range(PROBES)]
        scores: defaultdict[str, list[float]] = defaultdict(list)
        sure: defaultdict[str, list[float]] = defaultdict(list)
        statuses: Counter[str] = Counter()
        for rollout in engine.generate(requests, self.sampling, self.stopped):
            verdict = self.verify(rollout)
            score = verdict.score
            statuses[verdict.status] += 1
            if score is not None and rollout.logprobs:
                scores[rollout.problem.id].append(score)
                sure[rollout.problem.id].append(float(np.mean(rollout.logprobs)))
        if not scores:
            return unknown("teacher_reliability", title, "none of its answers could be judged", "probed")
        found, said = reliability(scores, sure), ", ".join(f"{n} {status}" for status, n in statuses.most_common())
        confident = "not known: it was never wrong" if np.isnan(found.confident) else f"{found.confident:.2f} (coin .5)"
        return Section(
            "teacher_reliability",
            title,
            f"verified success {shown(found.success)}; the gate of 2 in 3 opens for {sum(found.open.values())} of "
            f"{len(found.open)} problems; AUROC of its confidence {confident}",
            "probed",
            f"{len(scores)} held-out problems, {PROBES} answers each, sampled as the run samples: {said}",
            (
                Row("answers of the teacher", {"success": found.success}),
                Row("problems let through", {"open": f"{sum(found.open.values())}/{len(found.open)}"}),
                Row(
                    "AUROC of confidence (mean log p)",
                    {"auroc": None if np.isnan(found.confident) else found.confident},
                ),
            ),
            Plot("intervals", ("success",), "verified success", reference=2 / 3),
            {"teacher_success_sampled": found.success},
            {"teacher_success_sampled": scores},
            misleads="Cut answers count as not right. A teacher that reads the answer can be right without being able "
            "to derive it. The AUROC has no interval: with few wrong answers it is an anecdote.",
        )

    def _variety(self, after: Visit) -> Section:
        assert self.before is not None, "the beginning is visited first"
        return variety.section({"before": self.before.pool, "after": after.pool}, "probed", self.basis)

    def _drift(self, after: Visit) -> Section:
        assert self.before is not None, "the beginning is visited first"
        title = "Did lengths and entropy drift?"
        if not self.before.records:
            return unknown("drift", title, "entropies come with a teacher's scores, and there is no teacher", "probed")
        found = drift(self.before.records, after.records)
        cut = {name: _cut(visit) for name, visit in (("before", self.before), ("after", after))}
        shares = {name: bootstrap_share(values) for name, values in cut.items()}
        return Section(
            "drift",
            title,
            f"mean entropy changed by {shown(found.entropy, signed=True)} a token, completions are "
            f"{shown(found.length)} times as long; {percent(shares['after'])} are cut",
            "probed",
            self.basis,
            (
                Row("entropy, after - before", {"change": found.entropy}),
                Row("tokens after / before", {"ratio": found.length}),
                *(Row(f"cut by the limit, {name}", {"share": value}) for name, value in shares.items()),
            ),
            Plot("intervals", ("ratio",), "tokens after / tokens before", reference=1.0),
            {"entropy_change": found.entropy, "length_ratio": found.length, "cut_after": shares["after"]},
            {"tokens": by_problem(after.records, [float(len(r)) for r in after.records])},
            misleads="Entropies are each model's own on its own text: a student that writes easier text has less.",
        )

    def _budgets(self, after: Visit) -> Section:
        assert self.before is not None, "the beginning is visited first"
        known = [r.student_entropy for r in self.before.records]
        fork = fork_threshold(np.concatenate(known)) if known else None
        visits = {"before": self.before, "after": after}
        pools = {name: sweep.Saved(visit.generations(), visit.forced) for name, visit in visits.items()}
        return sweep.budgets(pools, self._judge, self.planned.eval_tokens, fork, self.basis)

    def _judge(self, problem: str, text: str, truncated: bool) -> Verdict:
        rollout = next(
            j.rollout for g in (self.before.groups if self.before else ()) for j in g if j.rollout.problem.id == problem
        )
        return self.verify(replace(rollout, text=text, stop="length" if truncated else "stop"))

    def _steps(self, after: Visit) -> Section:
        assert self.before is not None, "the beginning is visited first"
        return thinking.section({"before": self.before.steps, "after": after.steps}, self.basis)


def _cut(visit: Visit) -> Mapping[str, list[float | None]]:
    return {g[0].rollout.problem.id: [float(j.rollout.stop == "length") for j in g] for g in visit.groups}
