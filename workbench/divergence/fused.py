"""Hidden states to loss, per-token values and gradients, chunk by chunk: the hot loop.

The gradient is formed where the logits live, so a dense divergence costs four matrix products (three with a frozen
head, two without gradients, three for the student alone), and memory does not grow with the number of tokens: two
tiles of chunk x V, and V x H for the head's gradient. `backward` only multiplies by the upstream scalar.
`benchmarks/fused.py` measures it against its own matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from workbench.divergence.chunks import Chunk
from workbench.divergence.layouts import CPU_CHUNK, GPU_TILE_BYTES, Gradients, Tiles
from workbench.divergence.loss import Call, Found, Loss, Options, Part, Scored, TokenRows, assemble
from workbench.errors import UsageError


def fused_loss(
    student: Scored,
    teacher: Scored | None,
    rows: TokenRows,
    parts: Sequence[Part],
    options: Options | None = None,
) -> Loss:
    """The loss sum_k sum_i w_ki value_ki over N tokens, with its gradient already formed.

    Args:
        student: hidden states (N, H) and head. Whatever of hidden, head.weight and head.bias requires grad gets one.
        teacher: hidden states (N, H_t) and head of the same vocabulary, constants; None if no part compares.
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
    call = Call(student, teacher, rows, parts, options or Options()).checked()
    if any(part.term is not None for part in parts):
        raise UsageError("fused_loss got a `term` part. Its gradient has no closed form here. Use generic_loss.")
    wanted = call.options.grad and torch.is_grad_enabled()
    with torch.no_grad():
        live = call.live()
        work = call if live is None else call.take(live)
        gradients = _room(call, len(work.rows.ids)) if wanted else Gradients()
        out = assemble(call, live, _compute(work, gradients))
        if live is not None and gradients.hidden is not None:
            whole = gradients.hidden.new_zeros(student.hidden.shape)
            gradients.hidden = whole.index_copy_(0, live, gradients.hidden)
    if not gradients.wanted:
        return out
    head, attach = student.head, cast(Callable[..., Tensor], _Formed.apply)
    return replace(out, loss=attach(student.hidden, head.weight, head.bias, out.loss, gradients))


class _Formed(torch.autograd.Function):
    """A scalar whose gradients exist already; they are handed over once, scaled in place."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: Tensor, gradients: Gradients
    ) -> Tensor:
        """Keep the gradients, pass the loss."""
        ctx.gradients = gradients
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
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
        triple = (stored.hidden, stored.weight, stored.bias)
        return (
            *(None if g is None else g.mul_(upstream).to(dtype) for g, dtype in zip(triple, ctx.dtypes, strict=True)),
            None,
            None,
        )


def _room(call: Call, n: int) -> Gradients:
    """Accumulators for what requires grad, hidden states of n rows."""
    hidden, head = call.student.hidden, call.student.head

    def room(x: Tensor | None, *shape: int) -> Tensor | None:
        return x.new_zeros(shape, dtype=call.dtype) if x is not None and x.requires_grad else None

    v, h = head.weight.shape
    return Gradients(room(hidden, n, h), room(head.weight, v, h), room(head.bias, v))


def _compute(call: Call, gradients: Gradients) -> list[Found]:
    """All chunks, through one pair of tiles."""
    vocabulary = len(call.student.head.weight)
    chunks = call.chunks(call.options.chunk or _chunk(call))
    longest = max((rows.stop - rows.start for rows in chunks), default=0)
    compares = any(part.divergence is not None for part in call.parts)
    tiles = Tiles(longest * vocabulary, call.student.hidden, call.dtype, compares)
    return [Chunk(call.take(rows), tiles, gradients, rows).run() for rows in chunks]


def _chunk(call: Call) -> int:
    """How many tokens' logits exist at once."""
    if call.student.hidden.device.type == "cpu":
        return CPU_CHUNK
    tokens = GPU_TILE_BYTES // (8 * len(call.student.head.weight))
    return min(4096, max(512, tokens // 128 * 128))
