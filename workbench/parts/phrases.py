"""Contexts by the phrase they print as: what `--set teacher=...` and a run's description read back."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import replace

from workbench.errors import UsageError, nearest
from workbench.parts import contexts as c
from workbench.parts.contexts import (
    Instructed,
    Shown,
    WithFeedback,
    concise,
    concise_of,
    concise_percent,
    concise_words,
)

AnyContext = Shown | WithFeedback | Instructed

CONTEXTS: Mapping[str, AnyContext] = {
    repr(context): context
    for context in (
        c.question, c.question_boxed, c.question_v1, c.question_answer_line, c.question_answer_line_short,
        c.with_solution, c.with_solution_v1, c.with_solution_2026_03_10, c.told_solution,
        c.with_answer, c.with_document, c.with_demonstration, c.with_feedback,
        concise, c.concise_v2, concise_of(c.question),
        c.without_reference, c.without_reference_v1, c.without_reference_2026_03_10,
        c.with_solution_of_another, c.with_wrong_answer, c.told_solution_of_another, c.told_wrong_answer,
    )
}  # fmt: skip
"""Every context without a free parameter, by the phrase it prints as."""

_BUDGETS: Mapping[str, Callable[[int], Shown]] = {
    "concise_percent": concise_percent,
    "concise_words": concise_words,
}


def named(phrase: str) -> AnyContext:
    """The context that prints as `phrase`, for every phrase a context can print as.

    `question`, `concise_percent(50)`, `concise_of(question, concise_v2)`, `with_solution(thinking=False)`. The phrase
    is parsed, never evaluated. Raises UsageError with the nearest name.
    """
    try:
        tree = ast.parse(phrase.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    found = None if tree is None else _built(tree)
    if found is None:
        valid = (*CONTEXTS, *(f"{name}(50)" for name in _BUDGETS))
        raise UsageError(f"no context is called '{phrase[:80]}'. {nearest(phrase[:80], valid)}")
    return found


def _built(node: ast.expr) -> AnyContext | None:
    """The context a syntax tree means; None where it means none."""
    match node:
        case ast.Name(id=name):
            return CONTEXTS.get(name)
        case ast.Call(func=ast.Name(id="concise_of"), args=[base, *rest], keywords=[]) if len(rest) < 2:
            shown, instruction = _built(base), _built(rest[0]) if rest else concise
            return concise_of(shown, instruction) if shown and isinstance(instruction, Shown) else None
        case ast.Call(func=ast.Name(id=name), args=[ast.Constant(value=int(n))], keywords=[]) if name in _BUDGETS:
            return _BUDGETS[name](n)
        case ast.Call(
            func=ast.Name() | ast.Call() as base,
            args=[],
            keywords=[ast.keyword(arg="thinking", value=ast.Constant(value=(True | False | None) as thinking))],
        ):
            shown = _built(base)
            return shown and replace(shown, thinking=thinking)
    return None
