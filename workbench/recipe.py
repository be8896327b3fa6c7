"""What a method is: five answers in one frozen value.

    L = E_{y ~ pi_mix} [ sum_t w_t * D_f( p_T(.|c_T, y_<t) || p_theta(.|c_S, y_<t) ) ]  +  reward and text terms

Who sees what: `student`, `teacher`. Whose weights teach: `refresh`. Who writes: `rollouts`. What is compared:
`terms`. Where does it count: `advantage`, `gates`, `plans`, `token_weight`, `curriculum`. A recipe that constructs is
a recipe that runs: whatever can be known to fail is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from workbench.config import parse_adapter
from workbench.errors import RecipeError
from workbench.parts.advantages import Advantage, group_centred
from workbench.parts.contexts import question, required
from workbench.parts.curricula import Curriculum, Shuffled
from workbench.parts.gates import Gate
from workbench.parts.measures import Measure
from workbench.parts.plans import Asked, Plan
from workbench.parts.refresh import FROZEN
from workbench.parts.schedules import Adaptive, Clock, Memory, Scalar, adaptive, resolve
from workbench.parts.terms import Term
from workbench.parts.weights import TokenWeight
from workbench.parts.writers import OnPolicy, Writer
from workbench.records import Context, Refresh, Sampling

_MEANS = {
    "token": "mean over each token",
    "sequence": "mean over each sequence",
    "sum": "sum over all tokens",
    "limit": "sum over all tokens, divided by the sequences and by how long each could have become",
}


@dataclass(frozen=True)
class Optimizer:
    """AdamW and its schedule; defaults of a recipe are its paper's."""

    lr: Scalar = 1e-6
    weight_decay: float = 0.0
    warmup_steps: int = 0
    """Steps on which the learning rate is still below `lr`: k / (warmup_steps + 1) of it at step k."""
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot train. Raises RecipeError."""
        if isinstance(self.lr, (int, float)) and not 0 <= self.lr < 1:
            raise RecipeError(f"lr={self.lr}: a learning rate lies in [0, 1). Papers here use 1e-6 to 2e-4.")
        if self.max_grad_norm <= 0:
            raise RecipeError(f"max_grad_norm={self.max_grad_norm} must be positive. Use inf to clip nothing.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One method. Every default that differs from these comes from `paper`."""

    name: str
    paper: str
    terms: tuple[Term, ...]
    student: Context = question
    teacher: Context | None = None
    refresh: Refresh = FROZEN
    rollouts: Writer = field(default_factory=OnPolicy)
    advantage: Advantage = group_centred
    gates: tuple[Gate, ...] = ()
    plans: tuple[Plan, ...] = ()
    """What takes a first reading of the whole step: advantages along a completion, which tokens count (ADR 11)."""
    token_weight: TokenWeight | None = None
    curriculum: Curriculum = field(default_factory=Shuffled)
    reduction: Literal["token", "sequence", "sum", "limit"] = "token"
    """What a term is divided by: the step's tokens; each sequence's tokens, then the sequences; nothing; or the
    sequences times `sampling.max_new_tokens`, a constant (Dr. GRPO)."""
    sampling: Sampling = field(default_factory=Sampling)
    scoring_temperature: float | None = None
    """At which both roles are scored; None is the sampling's: a divergence compares what would be sampled (ADR 12)."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    batch: int = 32
    """Problems a step."""
    adapter: str | None = None
    """What the paper trained: None for all weights, or `lora:r=64,alpha=128`."""
    prompt_only: Context | None = None
    """The teacher's instruction without anything privileged: shown to the untrained student it is the baseline
    that a gain has to beat."""

    def __post_init__(self) -> None:
        """Refuse a recipe that cannot run, naming the field. Raises RecipeError."""
        if not self.terms:
            raise RecipeError(f"recipe '{self.name}' has no terms, so it has no loss. Give it at least one.")
        authors = self.rollouts.authors
        if ("teacher" in authors or self.rollouts.mixes) and self.teacher is None:
            raise RecipeError(f"recipe '{self.name}': the teacher writes, but `teacher` is None. Give it a context.")
        for term in self.terms:
            kind = type(term).__name__
            if {"teacher", "teacher_logp"} & term.needs and self.teacher is None:
                raise RecipeError(
                    f"recipe '{self.name}': {kind} compares with a teacher, but `teacher` is None. Give the teacher a "
                    "context (e.g. with_solution), or use CrossEntropy to learn from text alone."
                )
            if "behaviour" in term.needs and "dataset" in authors & term.where.authors:
                raise RecipeError(
                    f"recipe '{self.name}': {kind} needs the writer's log-probs, and a data set has none. "
                    "Use OnPolicy, or a term without importance weights."
                )
            if not term.where.authors & authors:
                raise RecipeError(
                    f"recipe '{self.name}': {kind} counts rollouts {term.where!r}, but only "
                    f"{', '.join(sorted(authors))} write. Change `where` or `rollouts`."
                )
        self._check_numbers()

    def _check_numbers(self) -> None:
        s = self.sampling
        self._check_temperatures()
        if self.plans and self.teacher is None:
            raise RecipeError(
                f"recipe '{self.name}': plans read what the teacher thinks, but `teacher` is None. "
                "Give the teacher a context, or leave `plans` empty."
            )
        if s.temperature <= 0:
            raise RecipeError(f"recipe '{self.name}': temperature 0 has no distribution to compare at. Use > 0.")
        if s.max_new_tokens < 1 or not 0 < s.top_p <= 1 or s.top_k < 0:
            raise RecipeError(
                f"recipe '{self.name}': {s} draws nothing. max_new_tokens is 1 or more, top_p above 0 and up to 1, "
                "top_k 0 or more."
            )
        if self.batch < 1 or self.optimizer.warmup_steps < 0:
            raise RecipeError(f"recipe '{self.name}': batch is 1 or more, warmup_steps 0 or more.")
        if self.adapter is not None:
            parse_adapter(self.adapter)

    def _check_temperatures(self) -> None:
        """One token has one log-prob: ratios and sampled terms know no second temperature."""
        needs = frozenset[str]().union(*(term.needs for term in self.terms))
        other = self.scoring_temperature not in (None, self.sampling.temperature)
        if self.scoring_temperature is not None and self.scoring_temperature <= 0:
            raise RecipeError(f"recipe '{self.name}': scoring_temperature {self.scoring_temperature} must be above 0.")
        if other and "behaviour" in needs:
            raise RecipeError(
                f"recipe '{self.name}': a term divides by the writer's probabilities, at temperature "
                f"{self.sampling.temperature}, and scores at {self.scoring_temperature}. Set both to the same."
            )
        sampled = any("teacher" not in term.needs for term in self.terms)
        if sampled and any("temperature" in plan.sets for plan in self.plans):
            raise RecipeError(
                f"recipe '{self.name}': a plan gives tokens temperatures of their own, which a term of sampled tokens "
                "would take for the student's. Use divergences alone, or leave the plan out."
            )

    @property
    def temperature(self) -> float:
        """At which both roles are scored."""
        return self.sampling.temperature if self.scoring_temperature is None else self.scoring_temperature

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher scores at all."""
        return bool(self.plans) or any({"teacher", "teacher_logp"} & term.needs for term in self.terms)

    @property
    def needs_reference(self) -> bool:
        """Whether the third role, `reference`, scores."""
        return "reference" in self.asked

    @property
    def asked(self) -> frozenset[Asked]:
        """What the first reading must hold."""
        return frozenset(asked for plan in self.plans for asked in plan.asks)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What the first reading must measure, each once."""
        return tuple(dict.fromkeys(measure for plan in self.plans for measure in plan.measures))

    @property
    def adaptive(self) -> tuple[Adaptive, ...]:
        """Every schedule that follows what training measures."""
        return tuple(adaptive(self))

    @property
    def requires(self) -> frozenset[str]:
        """The fields every problem must have: those some role cannot be built without, and those trained on."""
        shown = required(self.student) | (required(self.teacher) if self.teacher else frozenset())
        validated = any(schedule.validates for schedule in self.adaptive)
        return shown | ({"solution"} if "dataset" in self.rollouts.authors or validated else frozenset())

    @property
    def completions(self) -> int:
        """Written a step: for every problem, by every writer."""
        writers = getattr(self.rollouts, "writers", (self.rollouts,))
        return self.batch * sum(getattr(writer, "per_problem", 1) for writer in writers)

    @property
    def methods(self) -> tuple[Recipe, ...]:
        """What runs one after the other: the recipe alone, or the stages of a staged one."""
        return (self,)

    def method(self, memory: Memory) -> Recipe:
        """Which of `methods` the next step belongs to."""
        return self

    def over(self, clock: Clock, memory: Memory) -> bool:
        """Whether a run has nothing left to do, whatever its steps: only where stages end."""
        return False

    def at(self, clock: Clock, memory: Memory | None = None) -> Recipe:
        """The recipe with every schedule replaced by its value at `clock`, warm-up included."""
        now = resolve(self, clock, memory)
        share = min(1.0, (clock.step + 1) / (now.optimizer.warmup_steps + 1))
        if share == 1.0:
            return now
        assert isinstance(now.optimizer.lr, (int, float)), "resolved above"
        return replace(now, optimizer=replace(now.optimizer, lr=now.optimizer.lr * share))

    def describe(self) -> str:
        """The five answers as text: what a run records and what `--resume` compares."""
        weights = {0: "the initial policy, frozen"}.get(self.refresh.every, f"{self.refresh}")
        if self.refresh.external:
            weights = "another model's, given by --teacher"
        if self.refresh == Refresh(1, 1.0):
            weights = "the student itself, live"
        gates = " then ".join(map(repr, self.gates)) or "every rollout"
        rows = [
            ("who sees what", f"student: {self.student!r}; teacher: {self.teacher!r}"),
            ("whose weights teach", weights if self.teacher else "nobody's"),
            ("who writes", f"{self.rollouts!r}, {self.sampling!r}"),
            ("what is compared", " + ".join(map(repr, self.terms)) + f", {_MEANS[self.reduction]}"),
            (
                "where it counts",
                f"{gates}; token weight {self.token_weight!r}; {self.advantage!r}; {self.curriculum!r}"
                + "".join(f"; then {plan!r}" for plan in self.plans),
            ),
            ("optimizer", f"{self.optimizer!r}, batch {self.batch}, {self.adapter or 'all weights'}"),
        ]
        return "\n".join([f"{self.name} ({self.paper})", *(f"  {label:20} {text}" for label, text in rows)])
