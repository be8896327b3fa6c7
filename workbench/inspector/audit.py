"""The checks before step 1: what both roles are shown, and whether anything is lost between text and loss.

Self-distillation fails silently: a template that one role lacks, an end token the other does not know, a solution
cut off. Every check here has been somebody's lost run (OPSD, arXiv:2601.18734, and its issues; arXiv:2609.20511).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from verifiers import Verdict
from workbench.engine.engine import Engine, base_model, head_of
from workbench.engine.rendering import Rendered
from workbench.engine.roles import Live
from workbench.errors import InputError
from workbench.parts.terms import Distill
from workbench.parts.writers import OnPolicy
from workbench.recipe import Recipe
from workbench.records import Case, Judged, Problem, Request, Sampling
from workbench.train.batches import Denominators, Entry
from workbench.train.evaluate import headline
from workbench.train.objective import objective

Shown = tuple[Problem, Rendered, Rendered | None]
"""A problem as both roles see it."""
SAME_LIMIT = 1e-3
"""Largest divergence, nats, that equal contexts on equal weights may show at a token."""


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, what came out, and whether it is fine."""

    name: str
    text: str
    fine: bool = True


@dataclass(frozen=True)
class Audit:
    """Both rendered prompts of some examples and every finding."""

    examples: tuple[Shown, ...]
    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> list[Finding]:
        """What is not fine but does not forbid training."""
        return [f for f in self.findings if not f.fine]


def audit(engine: Engine, recipe: Recipe, problems: Sequence[Problem], *, examples: int = 3) -> Audit:
    """Run every check. Raises InputError for what would make the run meaningless."""
    prompts = [_shown(engine, recipe, problem) for problem in problems]
    for shown in prompts:
        _survived(recipe, shown)
    findings = [
        Finding("content", f"question and privileged text stand in the prompts of all {len(prompts)} problems"),
        _fits(engine, recipe, prompts),
        _template(engine, prompts[:examples]),
        *_stops(engine),
        _thinking(recipe),
        _head(engine, prompts[0][1]),
    ]
    if recipe.needs_teacher:
        findings.append(_same_is_zero(engine, recipe, problems[0]))
    return Audit(tuple(prompts[:examples]), tuple(findings))


def prompt_lengths(engine: Engine, recipe: Recipe, problems: Sequence[Problem]) -> list[int]:
    """Tokens of each problem's longer prompt."""
    return [_longest(_shown(engine, recipe, problem)) for problem in problems]


def _shown(engine: Engine, recipe: Recipe, problem: Problem) -> Shown:
    teacher = engine.prompt(recipe.teacher, Case(problem)) if recipe.teacher else None
    return problem, engine.prompt(recipe.student, Case(problem)), teacher


def _longest(shown: Shown) -> int:
    return max(len(prompt.ids) for prompt in shown[1:] if prompt is not None)


def _survived(recipe: Recipe, shown: Shown) -> None:
    """Question and privileged text stand in the rendered prompts word for word."""
    problem = shown[0]
    for role, context, prompt in zip(("student", "teacher"), (recipe.student, recipe.teacher), shown[1:], strict=True):
        if context is None or prompt is None:
            continue
        for name in sorted(context.needs):
            value = _field(problem, name)
            if value and _squeezed(value) not in _squeezed(prompt.text):
                raise InputError(
                    f"problem '{problem.id}': its {name} does not stand in the {role}'s rendered prompt. The chat "
                    "template drops or rewrites it. Look with --dry-run, or give --chat-template FILE."
                )


def _fits(engine: Engine, recipe: Recipe, prompts: Sequence[Shown]) -> Finding:
    """Nothing is truncated silently: both prompts and the completion fit the model."""
    cap = recipe.sampling.max_new_tokens
    if recipe.rollouts.authors == {"dataset"}:  # nothing is sampled: the solutions are as long as they are
        texts = [shown[0].solution or "" for shown in prompts]
        cap = min(cap, max(len(engine.tokenizer(text)["input_ids"]) for text in texts) + 1)
    longest = max(map(_longest, prompts))
    budget = engine.max_length - cap
    if longest >= engine.max_length and budget < min(map(_longest, prompts)):
        raise InputError(
            f"prompts of {longest} tokens leave no room for a completion: the model takes {engine.max_length}. "
            "Nothing was cut. Give shorter problems, or a model with a longer context."
        )
    if budget < min(map(_longest, prompts)):
        raise InputError(
            f"prompts of up to {longest} tokens and completions of {cap} exceed the {engine.max_length} this model "
            f"takes. Nothing was cut. Use --max-new-tokens {max(1, engine.max_length - longest)} or less."
        )
    too_long = [shown for shown in prompts if _longest(shown) > budget]
    for problem, student, teacher in too_long:
        role = "student" if len(student.ids) > budget or teacher is None else "teacher"
        raise InputError(
            f"problem {problem.id}: {role} prompt {_longest((problem, student, teacher))} tokens, model takes "
            f"{engine.max_length} with {cap} for the completion. Nothing was cut. --max-prompt-tokens {budget} drops "
            f"such problems ({100 * len(too_long) / len(prompts):.0f} %), or lower --max-new-tokens."
        )
    students = [len(student.ids) for _, student, _ in prompts]
    teachers = [len(teacher.ids) for _, _, teacher in prompts if teacher is not None]
    text = f"student prompts {min(students)}-{max(students)} tokens"
    text += f", teacher prompts {min(teachers)}-{max(teachers)}" if teachers else ""
    return Finding("lengths", f"{text}; nothing cut")


def _template(engine: Engine, shown: Sequence[Shown]) -> Finding:
    """Both roles end in the same generation prompt, and no prompt starts with two BOS tokens."""
    bos = engine.tokenizer.bos_token_id
    for problem, student, teacher in shown:
        for role, prompt in (("student", student), ("teacher", teacher)):
            if prompt is not None and bos is not None and prompt.ids[:2] == (bos, bos):
                raise InputError(
                    f"problem '{problem.id}': the {role}'s prompt starts with two BOS tokens. Fix the chat template."
                )
    _, student, teacher = shown[0]
    if teacher is not None and student.ids[-2:] != teacher.ids[-2:]:
        first = f"student ends {student.text[-24:]!r}, teacher ends {teacher.text[-24:]!r}"
        return Finding(
            "template", f"roles end differently ({first}): the first token is compared across two formats", fine=False
        )
    return Finding("template", "both roles end in the same generation prompt; no doubled BOS")


def _stops(engine: Engine) -> list[Finding]:
    """One stop class for both roles, and the template's own end of turn is in it (arXiv:2609.20511)."""
    names = {i: engine.tokenizer.convert_ids_to_tokens(i) for i in sorted(engine.stop_ids)}
    text = ", ".join(f"{name} ({i})" for i, name in names.items())
    if engine.end_of_turn is None:
        return [
            Finding(
                "stop",
                f"stop tokens {text}; the chat template ends a turn with none of them: completions will not end",
                fine=False,
            )
        ]
    return [
        Finding(
            "stop",
            f"both roles stop at {text}; the template ends a turn with {names[engine.end_of_turn]}; it is in the loss",
        )
    ]


def _thinking(recipe: Recipe) -> Finding:
    """Thinking mode of rollouts, teacher and evaluation: several published gains are one mode moving to another."""
    mode = {None: "the template's default", True: "on", False: "off"}
    student = mode[recipe.student.thinking]
    teacher = mode[recipe.teacher.thinking] if recipe.teacher else "-"
    return Finding("thinking", f"rollouts {student}; teacher {teacher}; evaluation {student}")


@torch.no_grad()
def _head(engine: Engine, prompt: Rendered) -> Finding:
    """The decoder and the head taken apart give the model's own logits, whatever its architecture."""
    ids = torch.tensor([prompt.ids[-64:]], device=engine.settings.device)
    states = engine.score("student", [prompt.ids[-64:-1]], [prompt.ids[-1:]])
    with engine.running("student") as model:
        theirs = base_model(model)(input_ids=ids[:, :-1]).logits[0, -1].float()
        mine = head_of(model).logits(states.detach())[0]
    worst = float((mine - theirs).abs().max())
    if worst > 0.05 * max(1.0, float(theirs.abs().max())):
        raise InputError(
            f"this architecture's logits are not its head applied to its decoder (off by {worst:.2g}). "
            "It cannot be trained here yet; please report the model."
        )
    return Finding("head", f"decoder and head give the model's own logits (max difference {worst:.1g})")


def _same_is_zero(engine: Engine, recipe: Recipe, problem: Problem) -> Finding:
    """Equal contexts on equal weights: every divergence must vanish at every token."""
    twin = replace(recipe, teacher=recipe.student, gates=(), terms=(Distill(headline(recipe)),), rollouts=OnPolicy())
    sampling = Sampling(max_new_tokens=min(16, recipe.sampling.max_new_tokens), temperature=1.0)
    rollout = engine.generate([Request(problem, recipe.student, seed=(0, -1))], sampling)[0]
    prompt = engine.prompt(recipe.student, Case(problem)).ids
    entry = Entry(Judged(rollout, Verdict("unjudged")), prompt, prompt)
    saved, engine.teacher = engine.teacher, Live(engine.student)  # on resume the teacher's own weights differ
    try:
        _, signal = objective(twin, engine, [entry], Denominators.of(twin, [entry]), grad=False)
    finally:
        engine.teacher = saved
    worst = float(signal.values.abs().max())
    if not worst < SAME_LIMIT:
        raise InputError(
            f"equal contexts on equal weights differ by {worst:.2g} nats at a token, so scores are not the model's "
            "own. This is a bug or an unsupported architecture; please report the model."
        )
    return Finding("zero", f"same context, same weights: divergence {worst:.6f} at every token")


def _field(problem: Problem, name: str) -> str | None:
    value: object = problem
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, str) else None


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
