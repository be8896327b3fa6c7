"""What turns hidden states into logits, and the arithmetic that both layouts share for it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.divergence.pair import LOG_FLOOR
from workbench.errors import UsageError


@dataclass(frozen=True, eq=False)
class LowRank:
    """A low-rank update of a head: W + scale * up down, never formed. LoRA (2106.09685) names the factors A and B.

    Each factor gets a gradient if it requires one; W may stay frozen, which saves a matrix product and V x H numbers.
    """

    down: Float[Tensor, "r h"]
    up: Float[Tensor, "v r"]
    scale: float = 1.0


@dataclass(frozen=True)
class Form:
    """The numbers in which heads differ; those of `Head`."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Head:
    """What turns hidden states into logits: softcap(scale * (h W^T + b)) / temperature, softcap(x) = s tanh(x / s).

    `weight` may be the embedding (tied): its gradient is returned for the shared parameter. Gemma caps, Cohere scales.
    With `low_rank` W is W + scale * up down.
    """

    weight: Float[Tensor, "v h"]
    bias: Float[Tensor, " v"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    low_rank: LowRank | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What may require a gradient, in the order of `Gradients`: weight, bias, the factors."""
        factors = (None, None) if self.low_rank is None else (self.low_rank.down, self.low_rank.up)
        return (self.weight, self.bias, *factors)

    @property
    def form(self) -> Form:
        """Its numbers."""
        return Form(self.scale, self.softcap, self.temperature)

    def logits(self, hidden: Float[Tensor, "n h"], temperature: Float[Tensor, " n"] | None = None) -> Tensor:
        """(n, v), by autograd, in the dtype of `hidden`: for the inspector, the generic path and the reference.

        `temperature` (n,) divides each row's logits once more.
        """
        dtype = hidden.dtype
        z = hidden @ self.weight.to(dtype).t()
        if self.low_rank is not None:
            low = hidden @ self.low_rank.down.to(dtype).t() * self.low_rank.scale
            z = z + low @ self.low_rank.up.to(dtype).t()
        if self.bias is not None:
            z = z + self.bias.to(dtype)
        z = z * self.scale
        if self.softcap is not None:
            z = torch.tanh(z / self.softcap) * self.softcap
        z = z / self.temperature
        return z if temperature is None else z / temperature.detach().to(dtype).unsqueeze(-1)

    def take(self, entries: slice | Tensor) -> Head:
        """The head of some entries of the vocabulary, by autograd; what it holds whole it shares."""
        low_rank = self.low_rank
        return replace(
            self,
            weight=self.weight[entries],
            bias=None if self.bias is None else self.bias[entries],
            low_rank=None if low_rank is None else replace(low_rank, up=low_rank.up[entries]),
        )

    def checked(self, role: str) -> Head:
        """Itself, or UsageError (a ValueError) for factors that do not fit the weight."""
        if self.low_rank is not None:
            (v, h), down, up = self.weight.shape, self.low_rank.down, self.low_rank.up
            if down.shape[1:] != (h,) or up.shape != (v, len(down)):
                raise UsageError(
                    f"The {role}'s low-rank update has factors {tuple(down.shape)} and {tuple(up.shape)} for a weight"
                    f" of {(v, h)}. down is (r, h) and up (v, r). Check which factor is which."
                )
        return self


@dataclass(frozen=True, eq=False)
class Scored:
    """One role's hidden states, each of which predicts one completion token, and the head that reads them."""

    hidden: Float[Tensor, "n h"]
    head: Head


@dataclass
class Gradients:
    """Accumulators of one call, float32 (or float64); None where nothing asks."""

    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None

    @classmethod
    def of(cls, scored: Scored, n: int, dtype: torch.dtype, written: bool) -> Gradients:
        """Zeros for what requires grad, with hidden states of n rows.

        `written`: chunks will come, and the first writes the weight's (`begins`), which is read and written less often
        by two passes over V x H than if it began as zeros.
        """

        def room(x: Tensor | None, *shape: int) -> Tensor | None:
            return x.new_zeros(shape or x.shape, dtype=dtype) if x is not None and x.requires_grad else None

        hidden = room(scored.hidden, n, scored.hidden.shape[1])
        weight, *others = scored.head.tensors
        if not written or weight is None or not weight.requires_grad:
            return cls(hidden, room(weight), *map(room, others))
        return cls(hidden, torch.empty_like(weight, dtype=dtype), *map(room, others))

    @property
    def all(self) -> tuple[Tensor | None, ...]:
        """All of them; None where nothing asks."""
        return self.hidden, self.weight, self.bias, self.down, self.up

    @property
    def wanted(self) -> bool:
        """Whether any gradient is wanted."""
        return any(g is not None for g in self.all)

    @property
    def low(self) -> bool:
        """Whether the gradient in h down^T is needed on the way, given that there are factors."""
        return self.hidden is not None or self.down is not None


def begins(rows: slice) -> bool:
    """Whether these rows of a call are those whose products overwrite the weight's gradient."""
    return rows.start == 0


def product(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`out = a @ b` (float32 or float64); low-precision operands stay as they are where that is possible."""
    if a.dtype == b.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda and a.dtype == b.dtype:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def accumulate(into: Tensor, a: Tensor, b: Tensor) -> None:
    """`into += a @ b`, summed in the type of `into`."""
    if a.is_cuda and a.dtype == b.dtype != into.dtype and _adds_wider(a.device, a.dtype, into.dtype):
        torch.addmm(into, a, b, out_dtype=into.dtype, out=into)
    elif a.is_cuda and a.dtype == b.dtype != into.dtype:
        into.add_(torch.mm(a, b, out_dtype=into.dtype))
    else:
        into.addmm_(a.to(into.dtype), b.to(into.dtype))


def multiply(scored: Scored, operand: Tensor, exact: Tensor, gradients: Gradients, rows: slice) -> None:
    """Adds what a row-major gradient (n, V) comes to: `operand` is in the weight's type, `exact` in that of the sums.

    `exact` is read only for what is no product with the weight's type: bias and factors.
    """
    head, low_rank = scored.head, scored.head.low_rank
    if gradients.hidden is not None:
        product(gradients.hidden[rows], operand, head.weight)
    if gradients.weight is not None:
        into = product if begins(rows) else accumulate
        into(gradients.weight, operand.t(), scored.hidden.to(head.weight.dtype))
    if gradients.bias is not None:
        gradients.bias += exact.sum(0)
    if low_rank is not None:
        _multiply_thin(low_rank, scored.hidden.to(exact.dtype), exact, gradients, rows)


def _multiply_thin(low_rank: LowRank, hidden: Tensor, exact: Tensor, gradients: Gradients, rows: slice) -> None:
    """The factors are thin: in the type of the sums."""
    down = low_rank.down.to(exact.dtype) * low_rank.scale
    if gradients.low:
        low = exact @ low_rank.up.to(exact.dtype)
        if gradients.hidden is not None:
            gradients.hidden[rows].addmm_(low, down)
        if gradients.down is not None:
            gradients.down.addmm_(low.t(), hidden, alpha=low_rank.scale)
    if gradients.up is not None:
        gradients.up.addmm_(exact.t(), hidden @ down.t())


@functools.cache
def _adds_wider(device: torch.device, operands: torch.dtype, sums: torch.dtype) -> bool:
    """Whether this torch adds a low-precision product to wider numbers; the first that multiply to such refuse."""
    a = torch.zeros(16, 16, dtype=operands, device=device)
    into = torch.zeros(16, 16, dtype=sums, device=device)
    try:
        torch.addmm(into, a, a, out_dtype=sums, out=into)
    except RuntimeError:
        return False
    return True


def inner(head: Head | Form) -> float:
    """What multiplies h W^T + b before the cap, or altogether without one."""
    return head.scale / (head.temperature if head.softcap is None else head.softcap)


def outer(head: Head | Form) -> float:
    """Slope of a logit in h W^T + b, less the cap's own and the row's temperature."""
    return head.scale / head.temperature


def times(x: Tensor, by: float) -> Tensor:
    """`x * by`, or `x` itself."""
    return x if by == 1.0 else x * by


def floored_bias(head: Head, dtype: torch.dtype) -> Tensor:
    """Floored, because a bias of -inf is how vocabularies are cut and differences of logits must stay numbers."""
    assert head.bias is not None
    return head.bias.to(dtype).clamp(min=LOG_FLOOR)


def cap(head: Head | Form, z: Tensor, temperature: Tensor | None) -> None:
    """In place, from what `inner` scaled to logits; `temperature` is each row's own, shaped to broadcast."""
    if head.softcap is not None:
        z.tanh_().mul_(head.softcap / head.temperature)
    if temperature is not None:
        z.div_(temperature)


def settle(form: Form, z: Tensor, bias: Tensor | None, temperature: Tensor | None) -> None:
    """Row-major h W^T to logits, in place; `bias` (V,) is scaled already."""
    if inner(form) != 1.0:
        z.mul_(inner(form))
    if bias is not None:
        z.add_(bias)
    cap(form, z, temperature)


def uncap(head: Head | Form, logits: Tensor, gradient: Tensor, temperature: Tensor | None) -> None:
    """Through the cap: the slope of s tanh(x / s) is 1 - tanh^2."""
    if head.softcap is not None:
        level = logits * (head.temperature / head.softcap)
        if temperature is not None:
            level.mul_(temperature)
        gradient.mul_(level.square_().neg_().add_(1.0))
