"""What both roles think of a rollout, for a screen: the measures of the inspector, behind the fields of the screen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import verifiers
from workbench.errors import InputError
from workbench.inspector import trajectory
from workbench.inspector.live import branch, live
from workbench.inspector.measuring import Numbers
from workbench.inspector.pieces import pieces
from workbench.inspector.seen import Seen, Tops
from workbench.parts.schedules import Clock
from workbench.records import Author, Judged, Problem, Rollout
from workbench.screens import asking
from workbench.screens.asking import Ask
from workbench.screens.session import Ticket
from workbench.train.evaluate import verify_with

if TYPE_CHECKING:
    from workbench.engine.engine import Engine


@dataclass(frozen=True)
class Wish:
    """Another token at a position of a rollout, and who goes on from it."""

    rollout: str
    at: int
    token: int
    text: str
    author: Author = "student"


@dataclass(frozen=True)
class Scene:
    """Who is asked what."""

    ask: Ask
    stage: trajectory.Stage
    problem: Problem
    ticket: Ticket

    @property
    def engine(self) -> Engine:
        """Both roles."""
        return self.stage.engine


def scene(ask: Ask, ticket: Ticket) -> Scene:
    """The engine, loaded if need be, and the recipe at the start of a run. Hold the model's lock.

    Raises UsageError and InputError for whatever the fields cannot mean.
    """
    problem, plan = asking.problem_of(ask), asking.planned(ask)
    engine = asking.engine_of(ask)
    if plan.recipe.refresh.external and engine.external is None:
        raise InputError(
            f"recipe {plan.recipe.name} is taught by another model, and none was given. Name one under Whose weights "
            "teach, or choose another recipe."
        )
    recipe = plan.recipe.at(Clock(0, plan.steps))

    return Scene(
        ask,
        trajectory.Stage(engine, recipe, verify_with(plan.verifier), problems={problem.id: problem}),
        problem,
        ticket,
    )


def again(scene: Scene, seen: Seen) -> Iterator[Seen]:
    """A rollout that is there already, scored now. Raises InputError where the model reads its tokens as other text."""
    # A rollout that was stopped inside a character ends without the sign for half of one.
    here = "".join(pieces(scene.engine.tokenizer, seen.token_ids)).rstrip(HALF)
    if here != seen.completion.rstrip(HALF):
        raise InputError(
            f"{scene.ask.model} reads these tokens as another text. It does not share a vocabulary with the model that "
            "wrote them, so they cannot be laid side by side. Choose models of one family."
        )
    text = scene.engine.decoded(seen.token_ids)
    rollout = Rollout(scene.problem, seen.author, seen.token_ids, text, None, seen.stop, index=seen.index)
    verdict = seen.verdict or (scene.stage.verify(rollout) if scene.stage.verify else verifiers.Verdict("unjudged"))
    yield from trajectory.measure(scene.stage, [[Judged(rollout, verdict)]])


def first(scene: Scene) -> Iterator[Seen]:
    """A rollout, a piece a token, and last of all the whole with its verdict."""
    return live(scene.stage, scene.problem, (scene.ask.seed,), stopped=scene.ticket.stopped)


def other(scene: Scene, seen: Seen, wish: Wish) -> Iterator[Seen]:
    """What stands before a position, another token there, and how a role goes on."""
    return branch(scene.stage, seen, wish.at, wish.token, wish.author, scene.ticket.stopped)


def nothing() -> Seen:
    """A record of no tokens, to begin with."""
    columns: dict[str, Any] = {**Numbers.unknown(0).columns(), "tops": None}
    return Seen("", (), (), **columns, weight=np.zeros(0), why=())


def joined(a: Seen, b: Seen) -> Seen:
    """Two pieces as one, the later one in its place; what is known of the whole is what it says."""
    a = a.take(slice(0, b.start - a.start))
    if not len(a):
        return b
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        mine, other = getattr(a, name), getattr(b, name)
        columns[name] = mine + other if isinstance(mine, tuple) else np.concatenate([mine, other])
    both = a.tops is not None and b.tops is not None
    tops = (
        {f: np.concatenate([getattr(a.tops, f), getattr(b.tops, f)]) for f in Tops.__dataclass_fields__} if both else {}
    )
    return replace(
        b,
        **columns,
        values=np.concatenate([a.values, b.values], axis=1),
        weights=np.concatenate([a.weights, b.weights], axis=1),
        tops=Tops(**tops) if both else None,
        pieces={**a.pieces, **b.pieces},
        start=a.start,
    )


HALF = "\ufffd"
"""What decoders put for bytes that are no character."""
COLUMNS = (
    "token_ids", "text", "student_logp", "teacher_logp", "forward_kl", "reverse_kl", "jsd", "student_entropy",
    "teacher_entropy", "student_rank", "teacher_rank", "weight", "why",
)  # fmt: skip
"""Of a record: a value a token."""
