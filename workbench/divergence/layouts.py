"""Where a chunk's logits live: vocabulary-major tiles on CPU, row-major tiles on accelerators.

A layout projects hidden states into a tile, hands the tiles out block by block (`Block`), and takes gradient blocks
into the two products they are for. What happens to a block is the business of `chunks.py`, the same for both layouts.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from workbench.divergence import compiled
from workbench.divergence.heads import (
    LowRank,
    Scored,
    begins,
    cap,
    floored_bias,
    inner,
    multiply,
    outer,
    product,
    settle,
    times,
    uncap,
)
from workbench.divergence.kernels import Asked, Look, Making, Marks, Step, Sums, scanned, stored, through
from workbench.divergence.loss import Call
from workbench.divergence.tiles import Apart, Block, Running, Scan, Sink, Tiles, Work

CPU_CHUNK = 256
"""Tokens a chunk: fewer stream the head from memory too often, more enlarge the tiles for nothing."""
CPU_BLOCK = 131_072
"""Entries a block, so that elementwise passes stay in cache."""
GPU_TILE_BYTES = 2 << 30
"""Bytes of a chunk's two float32 tiles. A chunk reads and writes V x H float32 sums of the head's gradient, for which
an H100 takes as long as for a thousand tokens' product. Never from V / H: a number of chunks is slow at small N."""
GPU_BLOCK = 1 << 24
"""Entries a block on accelerators: bounds the temporaries of the elementwise passes."""


class Layout(ABC):
    """Tiles for one chunk. `axis` is the vocabulary's."""

    axis: int
    run: Callable[..., Any] = staticmethod(compiled.plainly)
    """Runs a function of `kernels.py`."""
    keeps = True
    """Whether writing both tiles once more costs less than their exponentials."""

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

    def passes(self, function: Callable[..., Any], asked: Any) -> Iterator[Block]:
        """The tiles in the pieces that one pass of `function` is made over."""
        return self.blocks()

    def whole(self) -> Iterator[Block]:
        """The tiles in pieces that hold the whole vocabulary of some tokens, in the tokens' order."""
        return self.blocks()

    def step(self, making: Making, asked: Asked, sink: Sink) -> Step:
        """What every block of the gradient is used by."""
        return Step(making, asked, self.scored.head.form)

    @abstractmethod
    def use(self, block: Block, step: Step, work: Work, sink: Sink) -> Sums | None:
        """Make a block of the gradient in the chunk's logits and use it up; says what was measured with it."""

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

    def _tokens(self, step: int) -> Iterator[Block]:
        """The whole vocabulary of so many tokens at a time."""
        for lo in range(0, self.n, step):
            rows = slice(lo, min(self.n, lo + step))
            part = (slice(None), rows) if self.axis == 0 else (rows,)
            yield Block(0, self.held, rows, self.student[part], None if self.teacher is None else self.teacher[part])

    def _apart(self, z: Tensor, block: Block) -> contextlib.AbstractContextManager[None]:
        """The block without what stands apart, if anything does."""
        return contextlib.nullcontext() if self.apart is None else self.apart.without(z, self._span(block))


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
            with self._apart(z, block):
                running.see(z, 0, block.rows)

    def blocks(self) -> Iterator[Block]:
        """All tokens, some of the vocabulary."""
        step = max(1, CPU_BLOCK // max(1, self.n))
        for lo in range(0, self.held, step):
            hi = min(self.held, lo + step)
            teacher = None if self.teacher is None else self.teacher[lo:hi]
            yield Block(lo, hi, slice(None), self.student[lo:hi], teacher)

    def whole(self) -> Iterator[Block]:
        """At least a cache line of tokens, each a column."""
        return self._tokens(max(16, CPU_BLOCK // self.held))

    def use(self, block: Block, step: Step, work: Work, sink: Sink) -> Sums | None:
        """While it is in cache."""
        gradient, sums = step.making(step.asked, work.entries, *work.given)
        if work.hot is not None:
            self._hot(block, gradient, work.hot)
        if work.apart is not None:
            self.place(block, gradient, work.apart)
        self._take(block, gradient, sink)
        return sums

    def _hot(self, block: Block, gradient: Tensor, amount: Tensor) -> None:
        """Subtract `amount` (n,) at the tokens that were written, where they are in the block."""
        here = ((self.ids >= block.lo) & (self.ids < block.hi)).nonzero().squeeze(1)
        gradient[self.ids[here] - block.lo, here] -= amount[here]

    def _take(self, block: Block, gradient: Tensor, sink: Sink) -> None:
        """Both products; what multiplies a whole row is left to the hidden states."""
        head, grads, held = self.scored.head, sink.gradients, slice(block.lo, block.hi)
        uncap(head, block.student, gradient, self.temperature)
        if grads.hidden is not None:
            self._hidden().addmm_(head.weight[held].to(self.dtype).t(), gradient)
        if grads.weight is not None:
            grads.weight[held].addmm_(gradient, self._rows(sink), beta=0.0 if begins(sink.rows) else 1.0)
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

    Low-precision operands stay low in the products and give float32 tiles; sums are float32 throughout. On CUDA each
    elementwise pass is one compiled function over the whole chunk (`compiled.py`).
    """

    axis, keeps = 1, False

    def __init__(self, call: Call, tiles: Tiles) -> None:
        """As `Layout`; the gradient gets room of its own where products take another type than the tiles'."""
        super().__init__(call, tiles)
        self.compiles = compiled.works(self.student.device)
        self.run = compiled.quickly if self.compiles else compiled.plainly
        self.operand: Tensor | None = None

    def shape(self, tile: Tensor) -> Tensor:
        """[n, V]."""
        return tile[: self.held * self.n].view(self.n, self.held)

    def _span(self, block: Block) -> tuple[int, int]:
        return block.rows.start, block.rows.stop

    def project(self, scored: Scored, tile: Tensor, running: Running) -> None:
        """The scale is applied in float32, after the product."""
        head, form = scored.head, scored.head.form
        product(tile, scored.hidden, head.weight.t())
        if head.low_rank is not None:
            low = scored.hidden.to(self.dtype) @ head.low_rank.down.to(self.dtype).t() * head.low_rank.scale
            tile.addmm_(low, head.low_rank.up.to(self.dtype).t())
        bias = None if head.bias is None else floored_bias(head, self.dtype).mul(inner(form))
        look = Look(form if self.apart is None else None, running.moment is not None)
        for block in self.passes(scanned, look):
            z, warmth = tile[block.rows], self._column(self.temperature, block)
            if look.form is None:
                settle(form, z, bias, warmth)
            with self._apart(z, block):
                given = (None, None) if look.form is None else (bias, warmth)
                running.put(block.rows, *self.run(scanned, look, z, *given))

    def blocks(self) -> Iterator[Block]:
        """The whole vocabulary, some of the tokens."""
        return self._tokens(max(1, GPU_BLOCK // self.held))

    def passes(self, function: Callable[..., Any], asked: Any) -> Iterator[Block]:
        """One, if nothing is kept between operations."""
        one = self.compiles and compiled.ready(function, asked, (self.student,))
        return self._tokens(max(1, self.n)) if one else self.blocks()

    def step(self, making: Making, asked: Asked, sink: Sink) -> Step:
        """The tile keeps what is no product of low-precision operands: a bias, the thin factors."""
        head, grads = self.scored.head, sink.gradients
        exact = grads.bias is not None or head.low_rank is not None
        return Step(making, asked, head.form, both=exact and head.weight.dtype != self.dtype)

    def use(self, block: Block, step: Step, work: Work, sink: Sink) -> Sums | None:
        """Complete, into the operand of the products: the student's tile, or room of its own."""
        if self.operand is None:
            low = self.scored.head.weight.dtype
            self.operand = self.student if low == self.dtype else torch.empty_like(self.student, dtype=low)
        own = None if self.operand is self.student else self.operand[block.rows]
        ids, here = self._written()
        marks = self._marks(block, ids, None if work.hot is None else work.hot * here, sink)
        sums = self.run(stored, step, work.entries, work.given, marks, own)
        if work.apart is not None:
            self._place(block, work.apart, step, sink)
        return sums

    def _place(self, block: Block, numbers: Tensor, step: Step, sink: Sink) -> None:
        """What stands apart goes the way of the rest."""
        assert self.apart is not None
        marks = self._marks(Block(0, self.held, slice(None), self.student, None), self.ids, None, sink)
        complete = through(step.form, self.apart.logits, numbers[:, : self.apart.logits.shape[1]].clone(), marks)
        for tile in (self.operand, self.student) if step.both else (self.operand,):
            assert tile is not None
            self.place(block, tile[block.rows], complete.to(tile.dtype))

    def finish(self, sink: Sink) -> None:
        """The products of the chunk."""
        operand = self.student if self.operand is None else self.operand
        multiply(self.scored, operand, self.student, sink.gradients, sink.rows)

    def _marks(self, block: Block, ids: Tensor, hot: Tensor | None, sink: Sink) -> Marks:
        return Marks(self.row(ids, block), *(self._column(x, block) for x in (hot, self.temperature, sink.factor)))

    def _column(self, x: Tensor | None, block: Block) -> Tensor | None:
        return None if x is None else self.row(x, block)


def layout_for(device: torch.device) -> type[Layout]:
    """Columns on CPU, where `W h^T` is the faster product and blocks fit the cache; rows elsewhere."""
    return Columns if device.type == "cpu" else Rows
