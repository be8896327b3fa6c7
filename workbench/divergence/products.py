"""The products by which logits are made on a CPU: the same sums, by whichever library is quicker.

oneDNN takes a constant operand in the order its kernels want, and is quicker than what `torch.mm` calls: by a tenth
where many rows share the operand, by half where a few rows meet each weight once (decoding). torch keeps the operator
to itself, so it is looked for, tried, and done without where it is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


def constant(operand: Tensor, bias: Tensor | None = None, rows: int = 32) -> Callable[[Tensor], Tensor]:
    """X (..., H) -> x `operand`^T + `bias` for a float32 `operand` (V, H) on a CPU, laid out once for `rows` rows.

    No gradient reaches it. RuntimeError or AttributeError where torch has no such operator (see `has_constant`).
    """
    ops = torch.ops.mkldnn
    order = ops._reorder_linear_weight(operand.detach(), rows)
    offset = None if bias is None else bias.detach()

    def product(x: Tensor) -> Tensor:
        return ops._linear_pointwise(x, order, offset, "none", [], "")

    return product


def into(columns: Tensor, rows: int) -> Callable[[Tensor, Tensor], Tensor]:
    """(X (R, H), out (R, n)) -> out, which holds x `columns` (H, n) afterwards; R is `rows` as a rule."""
    if columns.shape[1] < 2 or not fits(columns):
        return lambda x, out: torch.mm(x, columns, out=out)
    quick = constant(columns.t(), rows=rows)
    return lambda x, out: out.copy_(quick(x))


def fits(operand: Tensor) -> bool:
    """Whether `constant` takes it."""
    return operand.dtype == torch.float32 and operand.device.type == "cpu" and has_constant()


@functools.cache
def has_constant() -> bool:
    """Whether this torch has the operator and it is right."""
    x, operand = torch.ones(2, 3), torch.arange(12.0).view(4, 3)
    try:
        return bool(torch.equal(constant(operand)(x), x @ operand.t()))
    except (AttributeError, RuntimeError):
        return False
