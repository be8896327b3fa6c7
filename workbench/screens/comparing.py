"""One rollout under two asks: written once, scored twice, and where the divergence goes in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from workbench.errors import InputError, WorkbenchError
from workbench.inspector.diagnostics.classes import CLASSES, classify, divergence_by_class
from workbench.inspector.diagnostics.record import TokenRecord
from workbench.inspector.page.value import divergence_name, prompts
from workbench.inspector.seen import Seen
from workbench.screens import asking, scoring
from workbench.screens.asking import Ask
from workbench.screens.rolling import paced, progress
from workbench.screens.session import MODEL, STORE, Kept, Ticket
from workbench.screens.sheet import Node, node, number, said, table

CLASS_WORDS = {
    "copied": "copied from what only the teacher sees",
    "format": "format: special tokens, space, mark-up",
    "maths": "maths: digits, operators, LaTeX",
    "style": "style: connectives, talk about the work",
    "words": "other words",
}


@dataclass(frozen=True)
class Beside:
    """What the screen Compare shows next; None: as it was."""

    status: list[Node] | None = None
    left: str | None = None
    """Ids of the store."""
    right: str | None = None
    left_off: int | None = None
    right_off: int | None = None
    totals: list[Node] | None = None
    running: bool = True


def compare(left: Ask, right: Ask, owner: str, given: Kept | None = None) -> Iterator[Beside]:
    """Write a rollout as the left fields say (or take `given`), and score it under both sides."""
    ticket = MODEL.ticket(owner)
    if ticket is None:
        yield Beside(status=[said("Stopped before it began.")], running=False)
        return
    try:
        with MODEL.entered(ticket) as mine:
            if mine:
                yield from _both(left, right, ticket, given)
            else:
                yield Beside(status=[said("Stopped before it began.")], running=False)
    except WorkbenchError as error:
        yield Beside(status=[said(error, "error")], running=False)


def _both(left: Ask, right: Ask, ticket: Ticket, given: Kept | None) -> Iterator[Beside]:
    name = STORE.name()
    kept = Kept(scoring.nothing(), left.recipe, model=left.model, asked=left)
    if text := asking.loading(left):
        yield Beside(status=[said(text, "busy")])
    scene = scoring.scene(left, ticket)
    ticket.total = left.tokens
    pieces = scoring.first(scene) if given is None else scoring.again(scene, given.seen)
    sent = 0
    for piece in paced(pieces):
        kept = replace(kept, seen=replace(scoring.joined(kept.seen, piece), rollout=name, run=""))
        STORE.put(kept, name)
        ticket.done = len(kept.seen)
        yield Beside([said(progress(kept, left.tokens), "busy")], name, left_off=min(sent, piece.start))
        sent = ticket.done
    if not len(kept.seen):
        yield Beside(status=[said("Stopped before the first token.")], running=False)
        return
    if text := asking.loading(right):
        yield Beside(status=[said(text, "busy")])
    yield from _other(kept, right, name, ticket)


def _other(kept: Kept, right: Ask, left_name: str, ticket: Ticket) -> Iterator[Beside]:
    scene = scoring.scene(right, ticket)
    name = STORE.name()
    for piece in scoring.again(scene, kept.seen):
        other = replace(piece, rollout=name, run="")
    STORE.put(Kept(other, right.recipe, model=right.model, asked=right), name)
    yield Beside(
        status=[said(verdict_line(kept.seen, other))],
        left=left_name,
        right=name,
        right_off=0,
        totals=totals(kept.seen, other),
        running=False,
    )


def verdict_line(a: Seen, b: Seen) -> str:
    """What the comparison says, in one line."""
    mine, other = mean(a, a.reverse_kl), mean(b, b.reverse_kl)
    if not mine > 0:
        return "Left, both roles say the same everywhere: there is nothing to compare with."
    share = 100.0 * other / mine
    both = float(np.corrcoef(a.difference, b.difference)[0, 1]) if len(a) > 2 else float("nan")
    related = "" if np.isnan(both) else f" Token by token, teacher minus student correlates at {both:.2f}."
    return f"Reverse KL: left {mine:.3f}, right {other:.3f} nat/token, {share:.0f} % of it.{related}"


def mean(seen: Seen, values: np.ndarray) -> float:
    """Nats a token over the tokens in the loss; over all where none is."""
    counted = seen.weight > 0
    chosen = values[counted] if counted.any() else values
    return float(np.nanmean(chosen)) if len(chosen) and not np.isnan(chosen).all() else float("nan")


def totals(a: Seen, b: Seen) -> list[Node]:
    """Both sides in numbers, and where their divergence goes by kind of token."""
    rows: list[list[Node]] = [
        ["recipe", a.recipe, b.recipe],
        ["tokens in the loss", str(int((a.weight > 0).sum())), str(int((b.weight > 0).sum()))],
        ["prompt of the student, tokens", str(len(a.student_prompt)), str(len(b.student_prompt))],
        ["prompt of the teacher, tokens", str(len(a.teacher_prompt)), str(len(b.teacher_prompt))],
        ["in the loss, nat/token", *(f"{divergence_name(s)} {number(mean(s, s.divergence))}" for s in (a, b))],
        ["forward KL = KL(teacher || student), nat/token", *(number(mean(s, s.forward_kl)) for s in (a, b))],
        ["reverse KL = KL(student || teacher), nat/token", *(number(mean(s, s.reverse_kl)) for s in (a, b))],
        ["JSD, nat/token", *(number(mean(s, s.jsd)) for s in (a, b))],
        [
            "reverse KL, sum in nat",
            *(number(mean(s, s.reverse_kl) * max(1, int((s.weight > 0).sum()))) for s in (a, b)),
        ],
    ]
    left, right = by_class(a), by_class(b)
    kinds: list[list[Node]] = [
        [CLASS_WORDS[kind], *(cell for side in (left, right) for cell in (str(side[kind][0]), _bar(side[kind][1])))]
        for kind in CLASSES
        if left[kind][0] or right[kind][0]
    ]
    return [
        node("h3", "Totals"),
        table(["", "left", "right"], rows),
        node("h3", "Where the reverse KL goes, by kind of token"),
        table(["", "left, tokens", "share", "right, tokens", "share"], kinds),
        said(
            "One rollout says nothing of a method: the report of a run has these shares over problems, with "
            "intervals. With opsd_other_problem on the right the teacher reads another problem's solution: what is "
            "left there is not knowledge of this one."
        ),
    ]


def by_class(seen: Seen) -> dict[str, tuple[int, float]]:
    """Kind -> counted tokens, share of the reverse KL from 0 to 1 (NaN: there is none, or it is not known)."""
    kinds = classify(seen.text, privileged_text(seen), seen.question)
    try:
        record = TokenRecord.of(seen, "reverse_kl")  # on both sides the same, whatever their recipes compare by
    except InputError:
        return {kind: (kinds.count(kind), float("nan")) for kind in CLASSES}
    shares = divergence_by_class([record], [kinds])
    return {share.name: (share.tokens, share.of_divergence.value) for share in shares}


def privileged_text(seen: Seen) -> str:
    """What only the teacher was shown, as it stood in its prompt."""
    return "".join(text for text, differs in prompts(seen)["teacher"]["parts"] if differs)


def _bar(share: float) -> Node:
    if np.isnan(share):
        return "not known"
    return node(
        "span", node("span", kind="fill", share=round(share, 4)), node("span", f"{share:.2f}", kind="value"), kind="bar"
    )
