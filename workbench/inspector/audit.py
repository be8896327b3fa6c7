"""The checks before step 1: what both roles are shown, and whether anything is lost between text and loss.

Self-distillation fails silently: a template that one role lacks, an end token the other does not know, a solution
cut off. Every check here has been somebody's lost run (cards S-A1 pitfalls 2 and 3, D-A16).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from workbench.engine.engine import Engine
from workbench.engine.rendering import Rendered
from workbench.errors import InputError
from workbench.recipe import Recipe
from workbench.records import Case, Judged, Problem, Request, Sampling
from workbench.train.batches import Denominators, Entry
from workbench.train.objective import objective
from verifiers import Verdict

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

    examples: tuple[tuple[Problem, Rendered, Rendered | None], ...]
    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> list[Finding]:
        """What is not fine but does not forbid training."""
        return [f for f in self.findings if not f.fine]


def audit(engine: Engine, recipe: Recipe, problems: Sequence[Problem], *, examples: int = 3) -> Audit:
    """Run every check. Raises InputError for what would make the run meaningless."""
    shown = []
    for problem in problems[:examples]:
        student = engine.prompt(recipe.student, Case(problem))
        teacher = engine.prompt(recipe.teacher, Case(problem)) if recipe.teacher else None
        shown.append((problem, student, teacher))
    findings = [
        _survived(engine, recipe, problems),
        _fits(engine, recipe, problems),
        _template(engine, shown),
        *_stops(engine),
        _thinking(recipe),
        _head(engine, shown[0][1]),
    ]
    if recipe.needs_teacher:
        findings.append(_same_is_zero(engine, recipe, problems[0]))
    return Audit(tuple(shown), tuple(findings))


def prompt_lengths(engine: Engine, recipe: Recipe, problems: Sequence[Problem]) -> list[tuple[int, int]]:
    """(student, teacher) prompt tokens of every problem."""
    out = []
    for problem in problems:
        student = len(engine.prompt(recipe.student, Case(problem)).ids)
        teacher = len(engine.prompt(recipe.teacher, Case(problem)).ids) if recipe.teacher else 0
        out.append((student, teacher))
    return out


def _survived(engine: Engine, recipe: Recipe, problems: Sequence[Problem]) -> Finding:
    """Question and privileged text stand in the rendered prompts word for word, and the student's holds no secret."""
    for problem in problems:
        texts = {"student": engine.prompt(recipe.student, Case(problem)).text}
        if recipe.teacher is not None:
            texts["teacher"] = engine.prompt(recipe.teacher, Case(problem)).text
        for role, context in (("student", recipe.student), ("teacher", recipe.teacher)):
            if context is None:
                continue
            for name in sorted(context.needs):
                value = _field(problem, name)
                if value and _squeezed(value) not in _squeezed(texts[role]):
                    raise InputError(
                        f"problem '{problem.id}': its {name} does not stand in the {role}'s rendered prompt. The chat template "
                        "drops or rewrites it. Look with --dry-run, or give --chat-template FILE."
                    )
    return Finding("content", f"question and privileged text stand in the prompts of all {len(problems)} problems")


def _fits(engine: Engine, recipe: Recipe, problems: Sequence[Problem]) -> Finding:
    """Nothing is truncated silently: both prompts and the completion fit the model."""
    lengths = prompt_lengths(engine, recipe, problems)
    budget = engine.max_length - recipe.sampling.max_new_tokens
    for problem, (student, teacher) in zip(problems, lengths, strict=True):
        for role, n in (("student", student), ("teacher", teacher)):
            if n > budget:
                share = 100 * sum(max(pair) > budget for pair in lengths) / len(lengths)
                raise InputError(
                    f"problem {problem.id}: {role} prompt {n} tokens, model takes {engine.max_length} with "
                    f"{recipe.sampling.max_new_tokens} for the completion. Nothing was cut. "
                    f"--max-prompt-tokens {max(budget, 1)} drops such problems ({share:.0f} %), or lower --max-new-tokens."
                )
    students, teachers = zip(*lengths, strict=True)
    text = f"student prompts {min(students)}-{max(students)} tokens, teacher {min(teachers)}-{max(teachers)}; nothing cut"
    return Finding("lengths", text)


def _template(engine: Engine, shown: Sequence[tuple[Problem, Rendered, Rendered | None]]) -> Finding:
    """Both roles end in the same generation prompt, and no prompt starts with two BOS tokens."""
    bos = engine.tokenizer.bos_token_id
    for problem, student, teacher in shown:
        for role, prompt in (("student", student), ("teacher", teacher)):
            if prompt is not None and bos is not None and prompt.ids[:2] == (bos, bos):
                raise InputError(f"problem '{problem.id}': the {role}'s prompt starts with two BOS tokens. Fix the chat template.")
    _, student, teacher = shown[0]
    if teacher is not None and student.ids[-2:] != teacher.ids[-2:]:
        first = f"student ends {student.text[-24:]!r}, teacher ends {teacher.text[-24:]!r}"
        return Finding("template", f"roles end differently ({first}): the first token is compared across two formats", fine=False)
    return Finding("template", "both roles end in the same generation prompt; no doubled BOS")


def _stops(engine: Engine) -> list[Finding]:
    """One stop class for both roles, and the template's own end of turn is in it (card D-A16)."""
    names = {i: engine.tokenizer.convert_ids_to_tokens(i) for i in sorted(engine.stop_ids)}
    text = ", ".join(f"{name} ({i})" for i, name in names.items())
    if engine.end_of_turn is None:
        return [
            Finding("stop", f"stop tokens {text}; the chat template ends a turn with none of them: completions will not end", fine=False)
        ]
    return [Finding("stop", f"both roles stop at {text}; the template ends a turn with {names[engine.end_of_turn]}; it is in the loss")]


def _thinking(recipe: Recipe) -> Finding:
    """Thinking mode of rollouts, teacher and evaluation: several published gains are one mode moving to another."""
    mode = {None: "the template's default", True: "on", False: "off"}
    student = mode[recipe.student.thinking]
    teacher = mode[recipe.teacher.thinking] if recipe.teacher else "-"
    return Finding("thinking", f"rollouts {student}; teacher {teacher}; evaluation {student}")


@torch.no_grad()
def _head(engine: Engine, prompt: Rendered) -> Finding:
    """The decoder and the head taken apart give the model's own logits, whatever its architecture."""
    from workbench.engine.engine import base_model, head_of

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
    twin = replace(recipe, teacher=recipe.student, gates=())
    sampling = Sampling(max_new_tokens=min(16, recipe.sampling.max_new_tokens), temperature=1.0)
    rollout = engine.generate([Request(problem, recipe.student, seed=(0, -1))], sampling)[0]
    prompt = engine.prompt(recipe.student, Case(problem)).ids
    entry = Entry(Judged(rollout, Verdict("unjudged")), prompt, prompt)
    where_written = tuple(replace(term, where=_everyone()) for term in twin.terms)  # type: ignore[type-var]
    twin = replace(twin, terms=where_written)
    _, signal = objective(twin, engine, [entry], Denominators.of(twin, [entry]), grad=False)
    compared = [k for k, term in enumerate(twin.terms) if "teacher" in term.needs]
    worst = float(signal.values[compared].abs().max())
    if not worst < SAME_LIMIT:
        raise InputError(
            f"equal contexts on equal weights differ by {worst:.2g} nats at a token, so scores are not the model's own. "
            "This is a bug or an unsupported architecture; please report the model."
        )
    return Finding("zero", f"same context, same weights: divergence {worst:.6f} at every token")


def _everyone() -> object:
    from workbench.parts.terms import anyone

    return anyone


def _field(problem: Problem, name: str) -> str | None:
    value: object = problem
    for part in name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, str) else None


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
