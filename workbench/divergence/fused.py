"""Hidden states to loss, per-token values and gradients, chunk by chunk: the hot loop.

The gradient is formed where the logits live, so a dense divergence costs four matrix products (three with a frozen
head, two without gradients, three for the student alone or with a sparse teacher), and memory does not grow with the
number of tokens: two tiles of chunk x V (one with a sparse teacher), and V x H for the head's gradient. `backward` only
multiplies by the upstream scalar. `benchmarks/fused.py` measures it against its own matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.divergence.chunks import Chunk
from workbench.divergence.heads import Gradients, Scored
from workbench.divergence.layouts import CPU_CHUNK, GPU_TILE_BYTES
from workbench.divergence.loss import Call, Found, Loss, Options, Part, TokenRows, assemble
from workbench.divergence.sparse import SparseTeacher
from workbench.divergence.sparse_chunks import SparseChunk
from workbench.divergence.tiles import Tiles
from workbench.errors import UsageError


def fused_loss(
    student: Scored,
    teacher: Scored | SparseTeacher | None,
    rows: TokenRows,
    parts: Sequence[Part],
    options: Options | None = None,
) -> Loss:
    """The loss sum_k sum_i w_ki value_ki over N tokens, with its gradient already formed.

    Args:
        student: hidden states (N, H) and head. Whatever of hidden and the head's tensors requires grad gets one.
        teacher: hidden states (N, H_t) and head of the same vocabulary, or some entries a token (`SparseTeacher`);
            constants; None if no part compares.
        rows: what each row predicts.
        parts: the summands; they share the projections.
        options: see `Options`.

    Returns:
        `Loss`: values in nats, float32 (float64 for float64 hidden states). Rows without weight in any part are
        dropped before the first product: values 0, statistics NaN.

    Raises:
        UsageError: (a ValueError) for shapes that do not fit, a comparison without teacher, or a `term` part, which
            needs `generic_loss`.
    """
    return formed(Call(student, teacher, rows, parts, options or Options()))


def formed(call: Call) -> Loss:
    """`fused_loss` of a call, whatever of the vocabulary it holds."""
    call, student, parts = call.checked(), call.student, call.parts
    if any(part.term is not None for part in parts):
        raise UsageError("fused_loss got a `term` part. Its gradient has no closed form here. Use generic_loss.")
    wanted = call.options.grad and torch.is_grad_enabled()
    with torch.no_grad():
        live = call.live()
        work = call if live is None else call.take(live)
        n = len(work.rows.ids)
        gradients = Gradients.of(student, n, call.dtype, written=n > 0 and len(parts) > 0) if wanted else Gradients()
        out = assemble(call, live, _compute(work, gradients))
        call.vocabulary.add(gradients.hidden, gradients.down)
        if live is not None and gradients.hidden is not None:
            whole = gradients.hidden.new_zeros(student.hidden.shape)
            gradients.hidden = whole.index_copy_(0, live, gradients.hidden)
    if not gradients.wanted:
        return out
    attach = cast(Callable[..., Tensor], _Formed.apply)
    return replace(out, loss=attach(out.loss, gradients, student.hidden, *student.head.tensors))


class _Formed(torch.autograd.Function):
    """A scalar whose gradients exist already; they are handed over once, scaled in place."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Gradients, *inputs: Tensor | None) -> Tensor:
        """Keep the gradients, pass the loss."""
        ctx.gradients = gradients
        ctx.dtypes = [None if x is None else x.dtype for x in inputs]
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Upstream times what was stored."""
        if ctx.gradients is None:
            raise RuntimeError(
                "Backward ran twice through one fused loss. Its gradients were handed over the first time."
                " Call fused_loss again."
            )
        stored, ctx.gradients = ctx.gradients, None
        # On an accelerator looking at the number would wait for it, which costs more than the pass.
        as_is = upstream.device.type == "cpu" and upstream.item() == 1.0
        scaled = [g if g is None or as_is else g.mul_(upstream) for g in stored.all]
        return (None, None, *(g if g is None else g.to(d) for g, d in zip(scaled, ctx.dtypes, strict=True)))


def _compute(call: Call, gradients: Gradients) -> list[Found]:
    """All chunks, through one pair of tiles."""
    vocabulary = len(call.student.head.weight)
    chunks = call.chunks(call.options.chunk or _chunk(call))
    longest = max((rows.stop - rows.start for rows in chunks), default=0)
    compares = any(part.divergence is not None for part in call.parts)
    sparse = compares and isinstance(call.teacher, SparseTeacher)
    tiles = Tiles(longest * vocabulary, call.student.hidden, call.dtype, compares and not sparse)
    kind = SparseChunk if sparse else Chunk
    return [kind(call.take(rows), tiles, gradients, rows).run() for rows in chunks]


def _chunk(call: Call) -> int:
    """How many tokens' logits exist at once."""
    on_cpu = call.student.hidden.device.type == "cpu"
    return CPU_CHUNK if on_cpu else tokens_in(GPU_TILE_BYTES, len(call.student.head.weight))


def tokens_in(room: int, vocabulary: int) -> int:
    """Tokens whose two float32 tiles fit into `room` bytes: a multiple of 128 from 512 to 4096."""
    return min(4096, max(512, room // (8 * vocabulary) // 128 * 128))
