"""The same loss in plain float64 autograd over full logits: slow, obvious, to compare with; never in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.divergence.family import EntryClipped
from workbench.divergence.loss import Loss, Options, Part, Scored, TokenRows
from workbench.divergence.pair import Divergence
from workbench.records import Tokens, TokenStats


def reference_loss(
    student: Scored,
    teacher: Scored | None,
    rows: TokenRows,
    parts: Sequence[Part],
    options: Options | None = None,
) -> Loss:
    """`fused_loss` as one would write it on a board; also takes `term` parts. N x V logits of both roles exist at once.

    Differences: statistics exist for every row, and second derivatives for those who ask.
    """
    options = options or Options()
    logp_s = student.head.logits(student.hidden.double()).log_softmax(-1)
    logp_t = None
    if teacher is not None:
        with torch.no_grad():
            logp_t = teacher.head.logits(teacher.hidden.double()).log_softmax(-1)
    stats = _statistics(rows, logp_s.detach(), logp_t)
    factor = torch.ones_like(stats.student_logp)
    if options.token_weight is not None:
        factor = options.token_weight(stats).detach().double()
    values, weights = [], []
    for part in parts:
        value = _value(part, Tokens(stats, logp_s, logp_t))
        values.append(value if part.token_clip is None else value.clamp(max=part.token_clip))
        own = factor if part.gate is None else factor * part.gate(stats).detach().double()
        weights.append(part.weight.detach().double() * own)
    value_rows = torch.stack(values) if values else factor.new_zeros(0, len(factor))
    weight_rows = torch.stack(weights) if weights else factor.new_zeros(0, len(factor))
    turned = [_turned(p.divergence, logp_t, logp_s) for p in parts if isinstance(p.divergence, EntryClipped)]
    return Loss(
        loss=(value_rows * weight_rows).sum(),
        values=value_rows.detach(),
        weights=weight_rows,
        stats=stats,
        turned=torch.stack(turned).any(0) if turned else None,
    )


def _value(part: Part, tokens: Tokens) -> Tensor:
    """(n,) of one part."""
    if part.divergence is not None:
        assert tokens.teacher is not None
        return part.divergence(tokens.teacher, tokens.student)
    if part.sampled is not None:
        target = tokens.student.gather(1, tokens.stats.ids[:, None])[:, 0]
        return -part.sampled(tokens.stats).detach().double() * target
    assert part.term is not None
    return part.term(tokens)


def _statistics(rows: TokenRows, student: Tensor, teacher: Tensor | None) -> TokenStats:
    at = rows.ids[:, None]
    return TokenStats(
        ids=rows.ids,
        position=rows.position,
        student_logp=student.gather(1, at)[:, 0],
        teacher_logp=None if teacher is None else teacher.gather(1, at)[:, 0],
        behaviour=rows.behaviour,
        advantage=rows.advantage,
        student_entropy=_entropy(student),
        teacher_entropy=None if teacher is None else _entropy(teacher),
    )


def _entropy(logp: Tensor) -> Tensor:
    return torch.special.entr(logp.exp()).sum(-1)


def _turned(divergence: EntryClipped, teacher: Tensor | None, student: Tensor) -> Tensor:
    """Whether the two gradients in the logits have a negative inner product."""
    assert teacher is not None
    clipped, whole = (_slope(d, teacher, student) for d in (divergence, divergence.unclipped))
    return (clipped * whole).sum(-1) < -1e-12


def _slope(divergence: Divergence, teacher: Tensor, student: Tensor) -> Tensor:
    logits = student.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(divergence(teacher, logits.log_softmax(-1)).sum(), logits)
    return gradient
