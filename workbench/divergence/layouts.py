"""Where a chunk's logits live: vocabulary-major tiles on CPU, row-major tiles on accelerators.

A layout projects hidden states into a tile, hands the tiles out block by block (`Block`), and takes gradient blocks
into the two products they are for. What happens to a block is the business of `chunks.py`, the same for both layouts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from workbench.divergence.heads import (
    LowRank,
    Scored,
    accumulate,
    cap,
    floored_bias,
    inner,
    outer,
    product,
    times,
    uncap,
)
from workbench.divergence.loss import Call
from workbench.divergence.tiles import Apart, Block, Running, Scan, Sink, Tiles

CPU_CHUNK = 256
"""Tokens a chunk: fewer stream the head from memory too often, more enlarge the tiles for nothing."""
CPU_BLOCK = 131_072
"""Entries a block, so that elementwise passes stay in cache."""
GPU_TILE_BYTES = 1 << 30
"""Bytes of a chunk's two float32 tiles. Never from V / H: a fixed number of chunks is slow at small N."""
GPU_BLOCK = 1 << 24
"""Entries a block on accelerators: bounds the temporaries of the elementwise passes."""


class Layout(ABC):
    """Tiles for one chunk. `axis` is the vocabulary's."""

    axis: int

    def __init__(self, call: Call, tiles: Tiles) -> None:
        """`call` holds the chunk's n tokens."""
        self.scored, self.vocabulary, self.n = call.student, call.vocabulary, len(call.rows.ids)
        self.held = len(self.scored.head.weight)
        self.dtype = tiles.student.dtype
        self.student = self.shape(tiles.student)
        self.teacher = None if tiles.teacher is None else self.shape(tiles.teacher)
        self.ids = call.rows.ids - self.vocabulary.first
        temperature = call.rows.temperature
        self.temperature = None if temperature is None else temperature.detach().to(self.dtype)
        self.apart: Apart | None = None
        """What the student's scan sees apart."""

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
        running.join(self.vocabulary)
        if self.apart is not None:
            self.apart.join(running, self.vocabulary)
        ids, here = self._written()
        target = tile.gather(self.axis, ids.unsqueeze(self.axis)).squeeze(self.axis) * here
        self.vocabulary.add(target)
        return running.scan(target)

    def row(self, x: Tensor, block: Block) -> Tensor:
        """A number a token, shaped to broadcast against the block."""
        return x[block.rows].unsqueeze(self.axis)

    def place(self, block: Block, gradient: Tensor, numbers: Tensor) -> None:
        """Overwrite what stands apart by `numbers` (n, K or more)."""
        assert self.apart is not None
        lo, hi = self._span(block)
        some = self.apart.within(lo, hi)
        gradient[self.apart.at(some, lo)] = self.apart.of(numbers, some)

    @abstractmethod
    def _span(self, block: Block) -> tuple[int, int]:
        """Where the block begins and ends, along the axis that is cut into blocks."""

    def _written(self) -> tuple[Tensor, Tensor]:
        """Where the written tokens are, and whether they are here (n,); somewhere, where they are not."""
        here = (self.ids >= 0) & (self.ids < self.held)
        return self.ids.clamp(0, self.held - 1), here

    def _see(self, running: Running, z: Tensor, block: Block) -> None:
        if self.apart is not None:
            self.apart.see(running, z, self._span(block), block.rows)
        else:
            running.see(z, self.axis, block.rows)


class Columns(Layout):
    """[V, n]: `W h^T` block by block of the vocabulary, each block used while it is in cache. The CPU's."""

    axis = 0

    def shape(self, tile: Tensor) -> Tensor:
        """[V, n]."""
        return tile[: self.held * self.n].view(self.held, self.n)

    def _span(self, block: Block) -> tuple[int, int]:
        return block.lo, block.hi

    def project(self, scored: Scored, tile: Tensor, running: Running) -> None:
        """One product a block; the scale is in the hidden states."""
        head, gain = scored.head, inner(scored.head)
        columns = times(scored.hidden.to(self.dtype), gain).t()
        low = None if head.low_rank is None else head.low_rank.down.to(self.dtype) @ columns * head.low_rank.scale
        for block in self.blocks():
            lo, hi = block.lo, block.hi
            z = torch.mm(head.weight[lo:hi].to(self.dtype), columns, out=tile[lo:hi])
            if head.low_rank is not None and low is not None:
                z.addmm_(head.low_rank.up[lo:hi].to(self.dtype), low)
            if head.bias is not None:
                z.add_(floored_bias(head, self.dtype)[lo:hi].mul(gain).unsqueeze(1))
            cap(head, z, self.temperature)
            self._see(running, z, block)

    def blocks(self) -> Iterator[Block]:
        """All tokens, some of the vocabulary."""
        step = max(1, CPU_BLOCK // max(1, self.n))
        for lo in range(0, self.held, step):
            hi = min(self.held, lo + step)
            teacher = None if self.teacher is None else self.teacher[lo:hi]
            yield Block(lo, hi, slice(None), self.student[lo:hi], teacher)

    def hot(self, block: Block, gradient: Tensor, amount: Tensor) -> None:
        """Only tokens whose id is in the block."""
        here = ((self.ids >= block.lo) & (self.ids < block.hi)).nonzero().squeeze(1)
        gradient[self.ids[here] - block.lo, here] -= amount[here]

    def take(self, block: Block, gradient: Tensor, sink: Sink) -> None:
        """Both products while the block is in cache; what multiplies a whole row is left to the hidden states."""
        head, grads, held = self.scored.head, sink.gradients, slice(block.lo, block.hi)
        uncap(head, block.student, gradient, self.temperature)
        if grads.hidden is not None:
            self._hidden().addmm_(head.weight[held].to(self.dtype).t(), gradient)
        if grads.weight is not None:
            grads.weight[held].addmm_(gradient, self._rows(sink))
        if grads.bias is not None:
            by = gradient if sink.factor is None else gradient * sink.factor
            grads.bias[held] += by.sum(1).mul_(outer(head))
        if head.low_rank is not None and grads.low:
            self._low(head.low_rank).addmm_(head.low_rank.up[held].to(self.dtype).t(), gradient)
        if head.low_rank is not None and grads.up is not None:
            grads.up[held].addmm_(gradient, self._low_rows(head.low_rank, sink))

    def finish(self, sink: Sink) -> None:
        """Transpose, scale, store."""
        grads, low_rank = sink.gradients, self.scored.head.low_rank
        if low_rank is not None and grads.low:
            low = self._low(low_rank).mul_(low_rank.scale)
            if grads.hidden is not None:
                self._hidden().addmm_(low_rank.down.to(self.dtype).t(), low)
            if grads.down is not None:
                grads.down.addmm_(low, self._rows(sink))
        if grads.hidden is not None:
            gradient = self._hidden().t() * outer(self.scored.head)
            grads.hidden[sink.rows] = gradient if sink.factor is None else gradient * sink.factor.unsqueeze(1)

    def _hidden(self) -> Tensor:
        """[H, n] accumulator."""
        if not hasattr(self, "_sum"):
            self._sum = torch.zeros(self.scored.hidden.shape[1], self.n, dtype=self.dtype)
        return self._sum

    def _low(self, low_rank: LowRank) -> Tensor:
        """[r, n] accumulator."""
        if not hasattr(self, "_low_sum"):
            self._low_sum = torch.zeros(len(low_rank.down), self.n, dtype=self.dtype)
        return self._low_sum

    def _rows(self, sink: Sink) -> Tensor:
        """[n, H]: what the head's gradient is a product with."""
        if not hasattr(self, "_left"):
            left = times(self.scored.hidden.to(self.dtype), outer(self.scored.head))
            self._left = left if sink.factor is None else left * sink.factor.unsqueeze(1)
        return self._left

    def _low_rows(self, low_rank: LowRank, sink: Sink) -> Tensor:
        """[n, r]: the same, of `up`."""
        if not hasattr(self, "_low_left"):
            self._low_left = self._rows(sink) @ low_rank.down.to(self.dtype).t() * low_rank.scale
        return self._low_left


class Rows(Layout):
    """[n, V]: one product a chunk, then elementwise work on some rows at a time. The accelerators'.

    Low-precision operands stay low in the products and give float32 tiles; sums are float32 throughout.
    """

    axis = 1

    def shape(self, tile: Tensor) -> Tensor:
        """[n, V]."""
        return tile[: self.held * self.n].view(self.n, self.held)

    def _span(self, block: Block) -> tuple[int, int]:
        return block.rows.start, block.rows.stop

    def project(self, scored: Scored, tile: Tensor, running: Running) -> None:
        """The scale is applied in float32, after the product."""
        head, gain = scored.head, inner(scored.head)
        product(scored.hidden, head.weight.t(), tile)
        if head.low_rank is not None:
            low = scored.hidden.to(self.dtype) @ head.low_rank.down.to(self.dtype).t() * head.low_rank.scale
            tile.addmm_(low, head.low_rank.up.to(self.dtype).t())
        for block in self.blocks():
            z = tile[block.rows]
            if gain != 1.0:
                z.mul_(gain)
            if head.bias is not None:
                z.add_(floored_bias(head, self.dtype).mul(gain))
            cap(head, z, self._warmth(block))
            self._see(running, z, block)

    def blocks(self) -> Iterator[Block]:
        """The whole vocabulary, some of the tokens."""
        step = max(1, GPU_BLOCK // self.held)
        for lo in range(0, self.n, step):
            rows = slice(lo, min(self.n, lo + step))
            teacher = None if self.teacher is None else self.teacher[rows]
            yield Block(0, self.held, rows, self.student[rows], teacher)

    def hot(self, block: Block, gradient: Tensor, amount: Tensor) -> None:
        """One entry a row."""
        ids, here = self._written()
        gradient.scatter_add_(1, ids[block.rows].unsqueeze(1), -(amount * here)[block.rows].unsqueeze(1))

    def take(self, block: Block, gradient: Tensor, sink: Sink) -> None:
        """Into the student's tile, complete, in float32: rounding to the operands' type comes last."""
        uncap(self.scored.head, block.student, gradient, self._warmth(block))
        if sink.factor is not None:
            gradient.mul_(self.row(sink.factor, block))
        torch.mul(gradient, outer(self.scored.head), out=block.student)

    def finish(self, sink: Sink) -> None:
        """The products of the chunk."""
        grads, head = sink.gradients, self.scored.head
        operand = self.student.to(head.weight.dtype)
        if grads.hidden is not None:
            product(operand, head.weight, grads.hidden[sink.rows])
        if grads.weight is not None:
            accumulate(grads.weight, operand.t(), self.scored.hidden.to(head.weight.dtype))
        if grads.bias is not None:
            grads.bias += self.student.sum(0)
        if head.low_rank is not None:
            self._finish_low(head.low_rank, sink)

    def _finish_low(self, low_rank: LowRank, sink: Sink) -> None:
        """The factors are thin: in the tile's own type."""
        grads, hidden = sink.gradients, self.scored.hidden.to(self.dtype)
        down = low_rank.down.to(self.dtype) * low_rank.scale
        if grads.low:
            low = self.student @ low_rank.up.to(self.dtype)
            if grads.hidden is not None:
                grads.hidden[sink.rows].addmm_(low, down)
            if grads.down is not None:
                grads.down.addmm_(low.t(), hidden, alpha=low_rank.scale)
        if grads.up is not None:
            grads.up.addmm_(self.student.t(), hidden @ down.t())

    def _warmth(self, block: Block) -> Tensor | None:
        return None if self.temperature is None else self.row(self.temperature, block)


def layout_for(device: torch.device) -> type[Layout]:
    """Columns on CPU, where `W h^T` is the faster product and blocks fit the cache; rows elsewhere."""
    return Columns if device.type == "cpu" else Rows
