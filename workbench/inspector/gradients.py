"""Where a term pulls: the gradient of its loss at each token's logits, by the term's own value and autograd."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from workbench.divergence import Scored
from workbench.engine.engine import Engine
from workbench.errors import UsageError
from workbench.inspector.seen import Floats
from workbench.parts.terms import Term
from workbench.recipe import Recipe
from workbench.records import Judged, Tokens, TokenStats
from workbench.text import printable
from workbench.train.batches import entries, token_rows
from workbench.train.intervals import aligned


@dataclass(frozen=True, eq=False)
class Pull:
    """One term at the n tokens of one completion."""

    value: Floats
    """(n,) nats, before weights."""
    size: Floats
    """(n,) half the L1 norm of d value / d logits: the mass that moves up, which is the mass that moves down."""
    gradient: Tensor
    """(n, v) d value / d logits of the student, float64: rows add up to 0."""

    def fewest(self, part: float = 0.8) -> int:
        """How few tokens have `part` of the summed size; 0 where there is none."""
        running = np.cumsum(np.sort(self.size)[::-1])
        return int(np.searchsorted(running, part * running[-1] * (1 - 1e-12))) + 1 if running[-1] > 0 else 0


def both_roles(engine: Engine, recipe: Recipe, judged: Judged) -> Tokens:
    """One completion's n tokens under the recipe's contexts: both whole distributions (n, v), float64, no graph.

    Raises UsageError where the recipe shows the teacher nothing, or the teacher gives no whole distributions.
    """
    found = entries(engine, replace(recipe, gates=()), [[judged]])
    if not found or found[0].teacher_prompt is None:
        raise UsageError(
            f"recipe {recipe.name} has no teacher for this completion. A pull compares two roles. Use a recipe with a "
            "divergence, and a completion with tokens."
        )
    (one,), temperature = found, recipe.temperature
    with torch.no_grad():
        states = engine.score("student", [one.student_prompt], [one.tokens])
        teacher = engine.teach([one.teacher_prompt or ()], [one.tokens], temperature)
        if not isinstance(teacher, Scored):
            raise UsageError(
                "this teacher gives its likeliest entries alone. A pull takes whole distributions. Use a model."
            )
        student = engine.head("student", temperature).logits(states).double().log_softmax(-1)
        other = teacher.head.logits(teacher.hidden).double().log_softmax(-1)
    rows = token_rows([one], engine.settings.device)
    at = rows.ids[:, None]
    stats = TokenStats(
        ids=rows.ids,
        position=rows.position,
        student_logp=student.gather(1, at)[:, 0],
        teacher_logp=other.gather(1, at)[:, 0],
        behaviour=rows.behaviour,
        advantage=rows.advantage,
        student_entropy=torch.special.entr(student.exp()).sum(-1),
        teacher_entropy=torch.special.entr(other.exp()).sum(-1),
    )
    return Tokens(stats, student, other)


def pulls(tokens: Tokens, terms: Mapping[str, Term]) -> dict[str, Pull]:
    """What each term says and does at every token. Log-probs are logits whose log-sum-exp is 0, so they stand in."""
    out = {}
    for name, term in terms.items():
        logits = tokens.student.detach().clone().requires_grad_()
        value = term(replace(tokens, student=logits.log_softmax(-1)))
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        size = gradient.abs().sum(-1) / 2
        out[name] = Pull(value.detach().numpy(), size.numpy(), gradient)
    return out


def table(found: Mapping[str, Pull], part: float = 0.8) -> str:
    """Each term's value and pull, and on how few tokens most of the pull sits, for a terminal."""
    rows: list[tuple[str, ...]] = [
        ("term", "value, nat", "pull", f"tokens with {100 * part:.0f} % of the pull", "largest")
    ]
    for name, pull in found.items():
        total = pull.size.sum()
        largest = f"{100 * pull.size.max() / total:.0f} % at token {int(pull.size.argmax())}" if total > 0 else "-"
        few = f"{pull.fewest(part)} of {len(pull.size)}"
        rows.append((printable(name), f"{pull.value.sum():.3f}", f"{total:.3f}", few, largest))
    return aligned(rows)


def expected(tokens: Tokens, term: Term) -> Tensor:
    """(n, v) the gradient of a sampled-token term at the logits, averaged exactly over y_t ~ p_S.

    -u(y) d log p_S(y) / d logits = u(y) (p_S - e_y) for each y of the vocabulary, weighted with p_S(y):
    sum_y p_S(y) u(y) (p_S - e_y) = p_S <u> - p_S u. Raises UsageError for a term that is none of a sampled token.
    """
    coefficient = getattr(term, "coefficient", None)
    if coefficient is None or tokens.teacher is None:
        raise UsageError(f"{term!r} looks at the whole vocabulary. Nothing in it is drawn. Use a sampled term.")
    rows = []
    for student, teacher in zip(tokens.student, tokens.teacher, strict=True):
        every = torch.arange(len(student), device=student.device)
        zero = torch.zeros_like(student)
        u = coefficient(TokenStats(every, every * 0, student, teacher, student, zero))
        p = student.exp()
        rows.append(p * (p * u).sum() - p * u)
    return torch.stack(rows)


def agreement(one: Tensor, other: Tensor) -> float:
    """The largest relative distance of two gradients (n, v) over their tokens: max_t |a_t - b_t| / |b_t|, L2.

    Tokens at which both are 0 agree.
    """
    distance, size = (one - other).norm(dim=-1), other.norm(dim=-1)
    return float(torch.where(distance > 0, distance / size, distance).max())
