"""The path for terms that are no sum over the vocabulary (ranking, sorted transport): autograd, one chunk at a time.

Every chunk is checkpointed, so its logits exist twice but never together with another chunk's: memory flat in the
number of tokens, six to seven products where the fused loop has four. Takes every kind of part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from workbench.divergence.heads import Scored
from workbench.divergence.loss import (
    Call,
    Found,
    Loss,
    Options,
    Part,
    TokenRows,
    assemble,
    needed,
    part_weights,
    statistics,
    token_numbers,
)
from workbench.divergence.sparse import SparseTeacher
from workbench.records import Tokens

CHUNK = 256
"""Tokens whose logits exist at once."""


def generic_loss(
    student: Scored,
    teacher: Scored | SparseTeacher | None,
    rows: TokenRows,
    parts: Sequence[Part],
    options: Options | None = None,
) -> Loss:
    """`fused_loss` by autograd, for parts of any kind; same arguments, same results, `turned` None.

    Token functions and terms run twice a chunk and must be pure. Raises UsageError (a ValueError) as `fused_loss`.
    """
    call = Call(student, teacher, rows, parts, options or Options()).checked()
    live = call.live()
    work = call if live is None else call.take(live)
    found = list[Found]()
    # Zero, and of everything that wants a gradient: no row may be alive.
    anchors = [x for x in (student.hidden, *student.head.tensors) if x is not None]
    total = torch.stack([x[:0].sum(dtype=call.dtype) for x in anchors]).sum()
    with torch.set_grad_enabled(call.options.grad and torch.is_grad_enabled()):
        for index in work.chunks(call.options.chunk or CHUNK):
            chunk = work.take(index)
            values = checkpoint(_values, chunk, chunk.student.hidden, use_reentrant=False)
            total = total + (values[0] * values[1]).sum()
            found.append(_found(chunk, values))
    out = assemble(call, live, found)
    return replace(out, loss=total) if total.requires_grad else out


def _values(chunk: Call, hidden: Tensor) -> tuple[Tensor, ...]:
    """Values and weights (K, n) and the statistics, flat, because a checkpoint returns tensors."""
    temperature, entropies = chunk.rows.temperature, chunk.options.entropies
    logp, teacher = chunk.student.head.logits(hidden.to(chunk.dtype), temperature).log_softmax(-1), None
    if isinstance(chunk.teacher, Scored):
        with torch.no_grad():
            logits = chunk.teacher.head.logits(chunk.teacher.hidden.to(chunk.dtype), temperature)
            teacher = logits.log_softmax(-1)
    roles = [_known(p, chunk.rows.ids, entropies) for p in (logp.detach(), teacher)]
    if isinstance(chunk.teacher, SparseTeacher):
        target, entropy = chunk.teacher.known(chunk.rows.ids, chunk.dtype)
        roles[1] = target, entropy if entropies else None
    tokens = Tokens(statistics(chunk.rows, *roles), logp, teacher)
    with torch.no_grad():
        weights = part_weights(chunk, tokens.stats)
    values = [_clipped(part, _value(part, tokens, chunk.teacher)) for part in chunk.parts]
    known = [x for role in roles for x in role if x is not None]
    return torch.stack(values) if values else torch.zeros_like(weights), weights, *known


def _known(logp: Tensor | None, ids: Tensor, entropy: bool) -> tuple[Tensor | None, Tensor | None]:
    if logp is None:
        return None, None
    target = logp.gather(1, ids[:, None])[:, 0]
    return target, torch.special.entr(logp.exp()).sum(-1) if entropy else None


def _found(chunk: Call, values: Sequence[Tensor]) -> Found:
    """The flat results by name."""
    rest = list(values[2:])
    asked = [True, chunk.options.entropies] * (1 if chunk.teacher is None else 2) + [False] * 2
    known = [rest.pop(0) if take else None for take in asked[:4]]
    return Found(values[0].detach(), values[1], statistics(chunk.rows, known[:2], known[2:]), None)


def _value(part: Part, tokens: Tokens, teacher: Scored | SparseTeacher | None) -> Tensor:
    if part.divergence is not None and isinstance(teacher, SparseTeacher):
        return part.divergence(*teacher.pair(tokens.student))
    if part.divergence is not None:
        assert tokens.teacher is not None
        return part.divergence(tokens.teacher, tokens.student)
    if part.sampled is not None:
        advantage = token_numbers(part.sampled, tokens.stats, "sampled", needed(teacher, [part.weight]))
        return -advantage * tokens.student.gather(1, tokens.stats.ids[:, None])[:, 0]
    assert part.term is not None
    return part.term(tokens)


def _clipped(part: Part, value: Tensor) -> Tensor:
    return value if part.token_clip is None else value.clamp(max=part.token_clip)
