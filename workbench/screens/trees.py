"""What stands beside and below a token view, as trees: both prompts, the verdict, the rollouts of a page."""

from __future__ import annotations

from collections.abc import Sequence

from workbench.inspector.page.value import divergence_name, prompts
from workbench.inspector.seen import Seen
from workbench.screens.session import Kept
from workbench.screens.sheet import Node, node, number, said
from workbench.text import printable

STATUS_WORDS = {
    "correct": "correct",
    "wrong": "wrong",
    "unparsed": "an answer was marked, and cannot be read",
    "no_answer": "nothing is marked as an answer",
    "truncated": "cut before an answer",
    "timeout": "comparing took too long",
    "error": "the judge failed",
    "unjudged": "there is nothing to compare with",
}
STOP_WORDS = {
    "stop": "ended with its end token",
    "length": "truncated: cut at its last token",
    "cancelled": "unfinished",
}


def prompt(seen: Seen, role: str) -> list[Node]:
    """What a role was shown, word for word, what only it was shown marked, special tokens and ids visible."""
    ids = seen.student_prompt if role == "student" else seen.teacher_prompt
    about = prompts(seen)[role]
    if not about["parts"]:
        return [said(f"The {role}'s prompt was not recorded.", "empty")]
    only = sum(1 for _, differs in about["parts"] if differs)
    other = "teacher" if role == "student" else "student"
    marked = f" What the {other} does not see is underlined." if only else f" The {other} sees all of it."
    head = f"{about['tokens']} tokens, all of them: nothing was cut.{marked}"
    parts = [node("span", _lines(text), kind="only" if differs else None) for text, differs in about["parts"]]
    end = f"Here the completion begins: {len(seen)} tokens, {STOP_WORDS.get(seen.stop, seen.stop)}."
    tree: list[Node] = [
        said(head),
        node("div", *parts, kind="prompt", tabindex=0, role="region", aria_label=f"{role} sees"),
    ]
    tree.append(said(end))
    if ids:
        tree.append(
            node("details", node("summary", f"Token ids ({len(ids)})"), node("p", " ".join(map(str, ids)), kind="mono"))
        )
    return tree


def verdict(seen: Seen) -> list[Node]:
    """Extracted, gold, verifier, reason."""
    found = seen.verdict
    if found is None:
        return [said("Nobody has judged this rollout yet.", "empty")]
    rows: list[tuple[str, str]] = [
        ("verdict", STATUS_WORDS.get(found.status, found.status)),
        ("extracted", "nothing" if found.extracted is None else found.extracted),
        ("gold", "none" if seen.answer is None else seen.answer),
        ("reason", found.reason or "none given"),
        ("verifier", f"the workbench's own, decided at level {found.level}"),
    ]
    if found.feedback:
        rows.append(("feedback", found.feedback))
    if seen.question:
        rows.append(("problem", seen.question))
    if seen.solution:
        rows.append(("solution", seen.solution))
    return [
        node(
            "dl", *(part for name, text in rows for part in (node("dt", name), node("dd", printable(text, lines=True))))
        )
    ]


def rollouts(kept: Sequence[tuple[str, Kept]], current: str) -> list[Node]:
    """The rollouts of a page, branches under what they branch from; a button shows one, and none is overwritten."""
    if not kept:
        return []
    names = {name: number for number, (name, _) in enumerate(kept, 1)}
    rows = []
    for name, one in kept:
        origin = ""
        if one.parent is not None:
            number = names.get(one.parent)
            origin = f"from {'a rollout no longer held' if number is None else f'rollout {number}'}" + (
                "" if one.at is None else f" at token {one.at}"
            )
        rows.append(
            node(
                "li",
                node("button", f"Rollout {names[name]}", act=f"show:{name}", aria_pressed=str(name == current).lower()),
                node("span", printable(one.label)),
                node("span", origin, kind="quiet") if origin else None,
                node("span", _short(one.seen), kind="quiet numbers"),
            )
        )
    return [node("h3", "Rollouts of this page"), node("ul", *rows)]


def _short(seen: Seen) -> str:
    counted = seen.divergence[seen.weight > 0]
    mean = float(counted.mean()) if len(counted) else float("nan")
    return f"{len(seen)} tokens, {divergence_name(seen)} {number(mean)} nat/token"


def _lines(text: str) -> str:
    """A prompt's text: line ends kept and seen, everything invisible as an escape."""
    return printable(text, lines=True).replace("\n", "\u21b5\n")
