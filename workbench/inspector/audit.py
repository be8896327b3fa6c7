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
from workbench.engine.engine import Engine
from workbench.engine.heads import base_model, head_of
from workbench.engine.rendering import Rendered
from workbench.engine.roles import Live
from workbench.errors import InputError
from workbench.inspector import beside
from workbench.inspector.finding import Finding
from workbench.parts.terms import Distill
from workbench.parts.writers import OnPolicy
from workbench.recipe import Recipe
from workbench.records import Case, Judged, Problem, Request, Role, Sampling
from workbench.train.batches import Denominators, Entry
from workbench.train.evaluate import headline
from workbench.train.objective import objective

Shown = tuple[Problem, Rendered, Rendered | None]
"""A problem as both roles see it."""
SAME_LIMIT = 1e-3
"""Largest divergence, nats, that equal contexts on equal weights may show at a token."""


@dataclass(frozen=True)
class Audit:
    """Both rendered prompts of some examples and every finding."""

    examples: tuple[Shown, ...]
    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> list[Finding]:
        """What is not fine but does not forbid training."""
        return [f for f in self.findings if not f.fine]


def audit(
    engine: Engine, recipe: Recipe, problems: Sequence[Problem], *, examples: int = 3, train: int | None = None
) -> Audit:
    """Run every check; the first `train` problems are learnt from. Raises InputError for what ruins a run."""
    prompts = [_shown(engine, recipe, problem) for problem in problems]
    for shown in prompts:
        _survived(recipe, shown)
    findings = [
        *beside.findings(engine, recipe, problems[:train]),
        Finding("content", f"question and privileged text stand in the prompts of all {len(prompts)} problems"),
        _fits(engine, recipe, prompts),
        _template(engine, prompts[:examples]),
        *_stops(engine),
        _thinking(recipe),
        _head(engine, prompts[0][1]),
    ]
    if engine.external is not None:
        findings += [
            _head(engine, shown, "teacher") for shown in prompts[0][2:] if shown and not engine.external.recorded
        ]
    elif recipe.needs_teacher:
        findings.append(_same_is_zero(engine, recipe, problems[0]))
    return Audit(tuple(prompts[:examples]), tuple(findings))


def completion_room(engine: Engine, recipe: Recipe, problems: Sequence[Problem]) -> int:
    """Tokens that every problem's completion may have: each role within its own model's limit."""
    return min(_room(engine, _shown(engine, recipe, problem)) for problem in problems)


def _room(engine: Engine, shown: Shown) -> int:
    """What is left behind the problem's prompts, in the model that has less."""
    return min(engine.speaker(role).max_length - len(prompt.ids) for role, prompt in _prompts(shown))


def _prompts(shown: Shown) -> list[tuple[Role, Rendered]]:
    roles: tuple[Role, Role] = ("student", "teacher")
    return [(role, prompt) for role, prompt in zip(roles, shown[1:], strict=True) if prompt is not None]


def prompt_lengths(engine: Engine, recipe: Recipe, problems: Sequence[Problem]) -> list[int]:
    """Tokens of each problem's longer prompt."""
    return [_longest(_shown(engine, recipe, problem)) for problem in problems]


def _shown(engine: Engine, recipe: Recipe, problem: Problem) -> Shown:
    asked = recipe.teacher if engine.sees("teacher") else None
    teacher = None if asked is None else engine.prompt(asked, Case(problem), "teacher")
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
    tightest = min(prompts, key=lambda shown: _room(engine, shown))
    role, prompt = min(_prompts(tightest), key=lambda p: engine.speaker(p[0]).max_length - len(p[1].ids))
    least, most = _room(engine, tightest), max(_room(engine, shown) for shown in prompts)
    limit, longest = engine.speaker(role).max_length, len(prompt.ids)
    owner = "model" if engine.external is None else f"{role}'s model"
    if least <= 0 and most < cap:
        raise InputError(
            f"prompts of {longest} tokens leave no room for a completion: the {owner} takes {limit}. "
            "Nothing was cut. Give shorter problems, or a model with a longer context."
        )
    if most < cap:
        raise InputError(
            f"prompts of up to {longest} tokens and completions of {cap} exceed the {limit} this {owner} "
            f"takes. Nothing was cut. Use --max-new-tokens {max(1, least)} or less."
        )
    if least < cap:
        too_long = [shown for shown in prompts if _room(engine, shown) < cap]
        raise InputError(
            f"problem {tightest[0].id}: {role} prompt {longest} tokens, {owner} takes {limit} with {cap} "
            f"for the completion. Nothing was cut. --max-prompt-tokens {limit - cap} drops such problems "
            f"({100 * len(too_long) / len(prompts):.0f} %), or lower --max-new-tokens."
        )
    students = [len(student.ids) for _, student, _ in prompts]
    teachers = [len(teacher.ids) for _, _, teacher in prompts if teacher is not None]
    text = f"student prompts {min(students)}-{max(students)} tokens"
    text += f", teacher prompts {min(teachers)}-{max(teachers)}" if teachers else ""
    return Finding("lengths", f"{text}; nothing cut")


def _template(engine: Engine, shown: Sequence[Shown]) -> Finding:
    """Both roles end in the same generation prompt, and no prompt starts with two BOS tokens."""
    for row in shown:
        for role, prompt in _prompts(row):
            bos = engine.speaker(role).tokenizer.bos_token_id
            if bos is not None and prompt.ids[:2] == (bos, bos):
                raise InputError(
                    f"problem '{row[0].id}': the {role}'s prompt starts with two BOS tokens. Fix the chat template."
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
    who = "both roles stop" if engine.external is None else "the student stops"
    return [
        Finding(
            "stop",
            f"{who} at {text}; the template ends a turn with {names[engine.end_of_turn]}; it is in the loss",
        )
    ]


def _thinking(recipe: Recipe) -> Finding:
    """Thinking mode of rollouts, teacher and evaluation: several published gains are one mode moving to another."""
    mode = {None: "the template's default", True: "on", False: "off"}
    student = mode[recipe.student.thinking]
    teacher = mode[recipe.teacher.thinking] if recipe.teacher else "-"
    return Finding("thinking", f"rollouts {student}; teacher {teacher}; evaluation {student}")


@torch.no_grad()
def _head(engine: Engine, prompt: Rendered, role: Role = "student") -> Finding:
    """The decoder and the head taken apart give the model's own logits, whatever its architecture."""
    ids = torch.tensor([prompt.ids[-64:-1]])
    states = engine.score(role, [prompt.ids[-64:-1]], [prompt.ids[-1:]])
    with engine.running(role) as model:
        theirs = base_model(model)(input_ids=ids.to(next(model.parameters()).device)).logits[0, -1].float().cpu()
        mine = head_of(model).logits(states.detach().to(head_of(model).weight.device))[0].float().cpu()
    worst = float((mine - theirs).abs().max())
    if worst > 0.05 * max(1.0, float(theirs.abs().max())):
        raise InputError(
            f"this architecture's logits are not its head applied to its decoder (off by {worst:.2g}). "
            "It cannot be trained here yet; please report the model."
        )
    whose = "the model's" if role == "student" else "the teacher's"
    return Finding("head", f"decoder and head give {whose} own logits (max difference {worst:.1g})")


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
