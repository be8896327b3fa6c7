"""The same loss in plain float64 autograd over full logits: slow, obvious, to compare with; never in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workbench.divergence.family import EntryClipped
from workbench.divergence.heads import Scored
from workbench.divergence.loss import Loss, Options, Part, TokenRows, needed, token_numbers
from workbench.divergence.pair import Divergence
from workbench.divergence.sparse import SparseTeacher
from workbench.records import Tokens, TokenStats


def reference_loss(
    student: Scored,
    teacher: Scored | SparseTeacher | None,
    rows: TokenRows,
    parts: Sequence[Part],
    options: Options | None = None,
) -> Loss:
    """`fused_loss` as one would write it on a board; also takes `term` parts. N x V logits of both roles exist at once.

    Differences: statistics exist for every row, and second derivatives for those who ask.
    """
    options = options or Options()
    logp_s = student.head.logits(student.hidden.double(), rows.temperature).log_softmax(-1)
    logp_t = None
    if isinstance(teacher, Scored):
        with torch.no_grad():
            logp_t = teacher.head.logits(teacher.hidden.double(), rows.temperature).log_softmax(-1)
    stats = _statistics(rows, logp_s.detach(), logp_t)
    if isinstance(teacher, SparseTeacher):
        compared = [part.divergence for part in parts if part.divergence is not None]
        logp, entropy = teacher.checked(len(logp_s), logp_s.shape[1], compared).known(rows.ids, torch.float64)
        stats = replace(stats, teacher_logp=logp, teacher_entropy=entropy)
    factor = torch.ones_like(stats.student_logp)
    if options.token_weight is not None:
        counted = needed(teacher, [part.weight for part in parts])
        factor = token_numbers(options.token_weight, stats, "token_weight", counted)
    values, weights = [], []
    for part in parts:
        value = _value(part, Tokens(stats, logp_s, logp_t), teacher)
        values.append(value if part.token_clip is None else value.clamp(max=part.token_clip))
        own = factor if part.gate is None else factor * part.gate(stats).detach().double()
        weights.append(part.weight.detach().double() * own)
    value_rows = torch.stack(values) if values else factor.new_zeros(0, len(factor))
    weight_rows = torch.stack(weights) if weights else factor.new_zeros(0, len(factor))
    known = teacher if isinstance(teacher, SparseTeacher) else logp_t
    turned = [_turned(p.divergence, known, logp_s) for p in parts if isinstance(p.divergence, EntryClipped)]
    return Loss(
        loss=(value_rows * weight_rows).sum(),
        values=value_rows.detach(),
        weights=weight_rows,
        stats=stats,
        turned=torch.stack(turned).any(0) if turned else None,
    )


def _value(part: Part, tokens: Tokens, teacher: Scored | SparseTeacher | None) -> Tensor:
    """(n,) of one part."""
    if part.divergence is not None:
        known = teacher if isinstance(teacher, SparseTeacher) else tokens.teacher
        return _distance(part.divergence, known, tokens.student)
    if part.sampled is not None:
        target = tokens.student.gather(1, tokens.stats.ids[:, None])[:, 0]
        return -token_numbers(part.sampled, tokens.stats, "sampled", needed(teacher, [part.weight])) * target
    assert part.term is not None
    return part.term(tokens)


def _distance(divergence: Divergence, teacher: SparseTeacher | Tensor | None, student: Tensor) -> Tensor:
    """Over what the teacher knows."""
    assert teacher is not None
    return divergence(*teacher.pair(student)) if isinstance(teacher, SparseTeacher) else divergence(teacher, student)


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


def _turned(divergence: EntryClipped, teacher: SparseTeacher | Tensor | None, student: Tensor) -> Tensor:
    """Whether the two gradients in the logits have a negative inner product."""
    clipped, whole = (_slope(d, teacher, student) for d in (divergence, divergence.unclipped))
    return (clipped * whole).sum(-1) < -1e-12


def _slope(divergence: Divergence, teacher: SparseTeacher | Tensor | None, student: Tensor) -> Tensor:
    logits = student.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(_distance(divergence, teacher, logits.log_softmax(-1)).sum(), logits)
    return gradient
