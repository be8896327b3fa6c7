"""Where a chunk's logits live: vocabulary-major tiles on CPU, row-major tiles on accelerators.

A layout projects hidden states into a tile, hands the tiles out block by block (`Block`), and takes gradient blocks
into the two products they are for. What happens to a block is the business of `chunks.py`, the same for both layouts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.divergence.loss import Head, Scored
from workbench.divergence.pair import LOG_FLOOR, exp_

CPU_CHUNK = 256
"""Tokens a chunk: fewer stream the head from memory too often, more enlarge the tiles for nothing."""
CPU_BLOCK = 131_072
"""Entries a block, so that elementwise passes stay in cache."""
GPU_TILE_BYTES = 1 << 30
"""Bytes of a chunk's two float32 tiles. Never from V / H: a fixed number of chunks is slow at small N."""
GPU_BLOCK = 1 << 24
"""Entries a block on accelerators: bounds the temporaries of the elementwise passes."""


@dataclass
class Gradients:
    """Accumulators of one call, float32 (or float64); None where nothing asks."""

    hidden: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def wanted(self) -> bool:
        """Whether any gradient is wanted."""
        return any(g is not None for g in (self.hidden, self.weight, self.bias))


@dataclass
class Block:
    """A piece of the tiles: vocabulary entries from `lo` up to `hi`, of the chunk's tokens `rows`."""

    lo: int
    hi: int
    rows: slice
    student: Tensor
    teacher: Tensor | None


@dataclass
class Scan:
    """What one role's logits come to, a number a token."""

    normaliser: Tensor
    """log sum_v e^z."""
    target: Tensor
    """The logit of the token that was written."""
    entropy: Tensor | None

    @property
    def logp(self) -> Tensor:
        """Log-prob of the token that was written, nats."""
        return self.target - self.normaliser


class Running:
    """Log-sum-exp and entropy of n rows of logits that arrive block by block."""

    def __init__(self, n: int, like: Tensor, entropy: bool) -> None:
        """Nothing seen yet."""
        self.total = torch.zeros(n, dtype=like.dtype, device=like.device)
        self.peak = torch.full_like(self.total, torch.finfo(like.dtype).min / 4)
        self.moment = torch.zeros_like(self.total) if entropy else None  # sum e^(z - peak) (z - peak)

    def see(self, z: Tensor, axis: int, rows: slice) -> None:
        """Some more of the vocabulary, for some of the rows."""
        old = self.peak[rows]
        peak = torch.maximum(old, z.amax(axis))
        shifted = z - peak.unsqueeze(axis)
        powers = exp_(shifted.clone() if self.moment is not None else shifted)
        shrink = (old - peak).exp_()
        if self.moment is not None:
            moved = (self.moment[rows] + self.total[rows] * (old - peak)) * shrink
            self.moment[rows] = moved + shifted.mul_(powers).sum(axis)
        self.total[rows] = self.total[rows] * shrink + powers.sum(axis)
        self.peak[rows] = peak

    def scan(self, target: Tensor) -> Scan:
        """The results, when all has been seen."""
        entropy = None if self.moment is None else self.total.log() - self.moment / self.total
        return Scan(self.total.log() + self.peak, target, entropy)


@dataclass
class Sink:
    """Where a chunk's gradient goes."""

    gradients: Gradients
    rows: slice
    """Which rows of the call this chunk is."""
    factor: Tensor | None
    """(n,) what multiplies a token's whole gradient and is not yet in the blocks."""


class Layout(ABC):
    """Tiles for one chunk. `axis` is the vocabulary's."""

    axis: int

    def __init__(self, student: Scored, ids: Tensor, tiles: Tiles) -> None:
        """`student` and `ids` of the chunk's n tokens."""
        self.scored, self.ids, self.n = student, ids, len(ids)
        self.dtype = tiles.student.dtype
        self.student = self.shape(tiles.student)
        self.teacher = None if tiles.teacher is None else self.shape(tiles.teacher)

    @abstractmethod
    def shape(self, tile: Tensor) -> Tensor:
        """A flat tile in this layout's shape."""

    @abstractmethod
    def project(self, scored: Scored, tile: Tensor, running: Running) -> None:
        """Fill a tile with logits and let `running` see them."""

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """The tiles, piece by piece."""

    @abstractmethod
    def hot(self, block: Block, gradient: Tensor, amount: Tensor) -> None:
        """Subtract `amount` (n,) from the entries of the tokens that were written."""

    @abstractmethod
    def take(self, block: Block, gradient: Tensor, sink: Sink) -> None:
        """Use a block of the gradient in the chunk's logits. Overwrites it."""

    @abstractmethod
    def finish(self, sink: Sink) -> None:
        """After the last block."""

    def scan(self, scored: Scored, role: str, entropy: bool) -> Scan:
        """Project a role. A teacher without a tile of its own borrows the student's, so it goes first."""
        tile = self.student if role == "student" or self.teacher is None else self.teacher
        running = Running(self.n, tile, entropy)
        self.project(scored, tile, running)
        target = tile.gather(self.axis, self.ids.unsqueeze(self.axis)).squeeze(self.axis)
        return running.scan(target)

    def row(self, x: Tensor, block: Block) -> Tensor:
        """A number a token, shaped to broadcast against the block."""
        return x[block.rows].unsqueeze(self.axis)


class Tiles:
    """Flat storage for one chunk's logits, allocated once a call."""

    def __init__(self, size: int, like: Tensor, dtype: torch.dtype, teacher: bool) -> None:
        """`size` entries a role; `teacher`: whether the whole teacher distribution is needed."""
        self.student = torch.empty(size, dtype=dtype, device=like.device)
        self.teacher = torch.empty_like(self.student) if teacher else None


class Columns(Layout):
    """[V, n]: `W h^T` block by block of the vocabulary, each block used while it is in cache. The CPU's."""

    axis = 0

    def shape(self, tile: Tensor) -> Tensor:
        """[V, n]."""
        vocabulary = len(self.scored.head.weight)
        return tile[: vocabulary * self.n].view(vocabulary, self.n)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        vocabulary = len(self.scored.head.weight)
        step = max(1, CPU_BLOCK // max(1, self.n))
        for lo in range(0, vocabulary, step):
            yield lo, min(vocabulary, lo + step)

    def project(self, scored: Scored, tile: Tensor, running: Running) -> None:
        """One product a block; the scale is in the hidden states."""
        head, gain = scored.head, _inner(scored.head)
        columns = _times(scored.hidden.to(self.dtype), gain).t()
        for lo, hi in self._ranges():
            torch.mm(head.weight[lo:hi].to(self.dtype), columns, out=tile[lo:hi])
            if head.bias is not None:
                tile[lo:hi].add_(_bias(head, self.dtype)[lo:hi].mul(gain).unsqueeze(1))
            _cap(head, tile[lo:hi])
            running.see(tile[lo:hi], 0, slice(None))

    def blocks(self) -> Iterator[Block]:
        """All tokens, some of the vocabulary."""
        for lo, hi in self._ranges():
            teacher = None if self.teacher is None else self.teacher[lo:hi]
            yield Block(lo, hi, slice(None), self.student[lo:hi], teacher)

    def hot(self, block: Block, gradient: Tensor, amount: Tensor) -> None:
        """Only tokens whose id is in the block."""
        here = ((self.ids >= block.lo) & (self.ids < block.hi)).nonzero().squeeze(1)
        gradient[self.ids[here] - block.lo, here] -= amount[here]

    def take(self, block: Block, gradient: Tensor, sink: Sink) -> None:
        """Both products while the block is in cache; what multiplies a whole row is left to the hidden states."""
        head, grads = self.scored.head, sink.gradients
        _uncap(head, block.student, gradient)
        if grads.hidden is not None:
            self._hidden().addmm_(head.weight[block.lo : block.hi].to(self.dtype).t(), gradient)
        if grads.weight is not None:
            grads.weight[block.lo : block.hi].addmm_(gradient, self._rows(sink))
        if grads.bias is not None:
            by = gradient if sink.factor is None else gradient * sink.factor
            grads.bias[block.lo : block.hi] += by.sum(1).mul_(_outer(head))

    def finish(self, sink: Sink) -> None:
        """Transpose, scale, store."""
        if sink.gradients.hidden is not None:
            gradient = self._hidden().t() * _outer(self.scored.head)
            sink.gradients.hidden[sink.rows] = gradient if sink.factor is None else gradient * sink.factor.unsqueeze(1)

    def _hidden(self) -> Tensor:
        """[H, n] accumulator."""
        if not hasattr(self, "_sum"):
            self._sum = torch.zeros(self.scored.hidden.shape[1], self.n, dtype=self.dtype)
        return self._sum

    def _rows(self, sink: Sink) -> Tensor:
        if not hasattr(self, "_left"):
            left = _times(self.scored.hidden.to(self.dtype), _outer(self.scored.head))
            self._left = left if sink.factor is None else left * sink.factor.unsqueeze(1)
        return self._left


class Rows(Layout):
    """[n, V]: one product a chunk, then elementwise work on some rows at a time. The accelerators'.

    Low-precision operands stay low in the products and give float32 tiles; sums are float32 throughout.
    """

    axis = 1

    def shape(self, tile: Tensor) -> Tensor:
        """[n, V]."""
        vocabulary = len(self.scored.head.weight)
        return tile[: vocabulary * self.n].view(self.n, vocabulary)

    def _ranges(self) -> Iterator[slice]:
        step = max(1, GPU_BLOCK // len(self.scored.head.weight))
        for lo in range(0, self.n, step):
            yield slice(lo, min(self.n, lo + step))

    def project(self, scored: Scored, tile: Tensor, running: Running) -> None:
        """The scale is applied in float32, after the product."""
        head, gain = scored.head, _inner(scored.head)
        product(scored.hidden, head.weight.t(), tile)
        for rows in self._ranges():
            z = tile[rows]
            if gain != 1.0:
                z.mul_(gain)
            if head.bias is not None:
                z.add_(_bias(head, self.dtype).mul(gain))
            _cap(head, z)
            running.see(z, 1, rows)

    def blocks(self) -> Iterator[Block]:
        """The whole vocabulary, some of the tokens."""
        for rows in self._ranges():
            teacher = None if self.teacher is None else self.teacher[rows]
            yield Block(0, len(self.scored.head.weight), rows, self.student[rows], teacher)

    def hot(self, block: Block, gradient: Tensor, amount: Tensor) -> None:
        """One entry a row."""
        gradient.scatter_add_(1, self.ids[block.rows].unsqueeze(1), -amount[block.rows].unsqueeze(1))

    def take(self, block: Block, gradient: Tensor, sink: Sink) -> None:
        """Into the student's tile, complete, in float32: rounding to the operands' type comes last."""
        _uncap(self.scored.head, block.student, gradient)
        if sink.factor is not None:
            gradient.mul_(self.row(sink.factor, block))
        torch.mul(gradient, _outer(self.scored.head), out=block.student)

    def finish(self, sink: Sink) -> None:
        """Both products of the chunk."""
        grads, weight = sink.gradients, self.scored.head.weight
        operand = self.student.to(weight.dtype)
        if grads.hidden is not None:
            product(operand, weight, grads.hidden[sink.rows])
        if grads.weight is not None:
            accumulate(grads.weight, operand.t(), self.scored.hidden.to(weight.dtype))
        if grads.bias is not None:
            grads.bias += self.student.sum(0)


def layout_for(device: torch.device) -> type[Layout]:
    """Columns on CPU, where `W h^T` is the faster product and blocks fit the cache; rows elsewhere."""
    return Columns if device.type == "cpu" else Rows


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """`a @ b` into `out` (float32 or float64); low-precision operands stay as they are where that is possible."""
    if a.dtype == b.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda and a.dtype == b.dtype:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return torch.mm(a.to(out.dtype), b.to(out.dtype), out=out)


def accumulate(into: Tensor, a: Tensor, b: Tensor) -> None:
    """`into += a @ b`, summed in the type of `into`."""
    if a.is_cuda and a.dtype == b.dtype != into.dtype:
        torch.addmm(into, a, b, out_dtype=into.dtype, out=into)
    else:
        into.addmm_(a.to(into.dtype), b.to(into.dtype))


def _inner(head: Head) -> float:
    """What multiplies h W^T + b before the cap, or altogether without one."""
    return head.scale / (head.temperature if head.softcap is None else head.softcap)


def _outer(head: Head) -> float:
    """Slope of a logit in h W^T + b, less the cap's own."""
    return head.scale / head.temperature


def _times(x: Tensor, by: float) -> Tensor:
    return x if by == 1.0 else x * by


def _bias(head: Head, dtype: torch.dtype) -> Tensor:
    """Floored, because a bias of -inf is how vocabularies are cut and differences of logits must stay numbers."""
    assert head.bias is not None
    return head.bias.to(dtype).clamp(min=LOG_FLOOR)


def _cap(head: Head, z: Tensor) -> None:
    if head.softcap is not None:
        z.tanh_().mul_(head.softcap / head.temperature)


def _uncap(head: Head, logits: Tensor, gradient: Tensor) -> None:
    """Through the cap: the slope of s tanh(x / s) is 1 - tanh^2."""
    if head.softcap is not None:
        slope = (logits * (head.temperature / head.softcap)).square_().neg_().add_(1.0)
        gradient.mul_(slope)
