"""What passes between a chunk and its layout: tiles, blocks of them, running sums, entries that stand apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.divergence.heads import Gradients
from workbench.divergence.kernels import Entries
from workbench.divergence.pair import lowered, per_nat, raised_

HIDDEN = -(2.0**100)
"""A logit that is not there: far below any other; its products with finite numbers stay finite, and are exact, so that
a block of nothing else still differs from its peak by 0."""


class Vocabulary:
    """Which of the vocabulary this process holds: here all of it. `parallel.Shard` holds some."""

    first = 0
    """The id of the first entry held."""

    def size(self, held: int) -> int:
        """Entries of the whole vocabulary, of which `held` are here."""
        return held

    def add(self, *numbers: Tensor | None) -> None:
        """Replace each tensor by its sum over everyone who holds some of the vocabulary."""

    def highest(self, numbers: Tensor) -> Tensor:
        """Entry by entry, the largest of everyone's."""
        return numbers


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
    """Log-sum-exp and entropy of n rows of logits that arrive block by block; exponents count as `per_nat` says."""

    def __init__(self, n: int, like: Tensor, entropy: bool) -> None:
        """Nothing seen yet."""
        self.total = torch.zeros(n, dtype=like.dtype, device=like.device)
        self.peak = torch.full_like(self.total, torch.finfo(like.dtype).min / 4)
        self.moment = torch.zeros_like(self.total) if entropy else None  # sum e^(z - peak) (z - peak)
        self.by = per_nat(like)

    def see(self, z: Tensor, axis: int, rows: slice) -> None:
        """Some more of the vocabulary, for some of the rows."""
        old = self.peak[rows]
        peak = torch.maximum(old, z.amax(axis).mul_(self.by))
        shifted = lowered(z, peak.unsqueeze(axis))
        powers = raised_(shifted if self.moment is None else shifted.clone())
        step = old - peak
        shrink = raised_(step.clone())
        if self.moment is not None:
            moved = (self.moment[rows] + self.total[rows] * step) * shrink
            self.moment[rows] = moved + shifted.mul_(powers).sum(axis)
        self.total[rows] = self.total[rows] * shrink + powers.sum(axis)
        self.peak[rows] = peak

    def put(self, rows: slice, peak: Tensor, total: Tensor, moment: Tensor | None) -> None:
        """All of the vocabulary held here, for some of the rows."""
        self.peak[rows], self.total[rows] = peak, total
        if self.moment is not None and moment is not None:
            self.moment[rows] = moment

    def join(self, vocabulary: Vocabulary) -> None:
        """What everyone who holds some of the vocabulary has seen."""
        peak = vocabulary.highest(self.peak)
        shift = self.peak - peak
        if self.moment is not None:
            self.moment.add_(self.total * shift).mul_(raised_(shift.clone()))
        self.total.mul_(raised_(shift))
        self.peak = peak
        vocabulary.add(self.total, self.moment)

    @property
    def normaliser(self) -> Tensor:
        """Log sum e^z of what has been seen, nats."""
        return (self.total.double().log() + self.peak.double() / self.by).to(self.total.dtype)

    def scan(self, target: Tensor) -> Scan:
        """The results, when all has been seen."""
        entropy = None if self.moment is None else self.total.log() - self.moment / self.total / self.by
        return Scan(self.normaliser, target, entropy)


@dataclass
class Work:
    """What the gradient of one block is made from."""

    entries: Entries
    given: tuple[Any, ...]
    """What `kernels.Making` takes besides."""
    hot: Tensor | None = None
    """(n,) what is taken off at the tokens that were written."""
    apart: Tensor | None = None
    """(n, K or more) what stands at the entries apart instead, whatever is taken off included."""


@dataclass
class Sink:
    """Where a chunk's gradient goes."""

    gradients: Gradients
    rows: slice
    """Which rows of the call this chunk is."""
    factor: Tensor | None
    """(n,) what multiplies a token's whole gradient and is not yet in the blocks."""


class Tiles:
    """Flat storage for one chunk's logits, allocated once a call."""

    def __init__(self, size: int, like: Tensor, dtype: torch.dtype, teacher: bool) -> None:
        """`size` entries a role; `teacher`: whether the whole teacher distribution is needed."""
        self.student = torch.empty(size, dtype=dtype, device=like.device)
        self.teacher = torch.empty_like(self.student) if teacher else None


class Apart:
    """Up to K entries a token that stand apart from the rest of the vocabulary, the tail.

    They are kept in the order in which a layout's blocks come, so that each block finds its own by bisection.
    """

    def __init__(self, ids: Tensor, kept: Tensor, held: int, axis: int) -> None:
        """`ids` (n, K) counted from the first of the `held` entries of this process; `kept` (n, K): which stand apart.

        `axis` is the layout's.
        """
        self.axis, self.kept = axis, kept
        token, place = (kept & (ids >= 0) & (ids < held)).nonzero(as_tuple=True)
        entry = ids[token, place]
        order = entry.argsort() if axis == 0 else slice(None)
        self.token, self.place, self.entry = token[order], place[order], entry[order]
        self.logits = torch.empty(0)
        """(n, K), once seen; 0 where none stands."""
        self.tail = torch.empty(0)
        """(n,) log sum e^z over the tail, once seen."""

    @contextlib.contextmanager
    def without(self, z: Tensor, span: tuple[int, int]) -> Iterator[None]:
        """A block, from `span[0]` to `span[1]` along the blocked axis, without what stands apart; that is kept."""
        if not self.logits.numel():
            self.logits = z.new_zeros(self.kept.shape)
        some = self.within(*span)
        where = self.at(some, span[0])
        logits = z[where]
        z[where] = HIDDEN
        yield
        z[where] = logits
        self.logits[self.token[some], self.place[some]] = logits

    def join(self, running: Running, vocabulary: Vocabulary) -> None:
        """When the tail has been seen: keep its normaliser, and show `running` the rest."""
        self.tail = running.normaliser
        vocabulary.add(self.logits)
        running.see(torch.where(self.kept, self.logits, HIDDEN), 1, slice(None))

    def within(self, lo: int, hi: int) -> slice:
        """Those in blocks from `lo` up to `hi` along the blocked axis: entries if it is 0, tokens if it is 1."""
        key = self.entry if self.axis == 0 else self.token
        first, last = torch.searchsorted(key, torch.tensor((lo, hi), device=key.device)).tolist()
        return slice(first, last)

    def at(self, some: slice, lo: int) -> tuple[Tensor, Tensor]:
        """Where they are in the block that starts at `lo`."""
        if self.axis == 0:
            return self.entry[some] - lo, self.token[some]
        return self.token[some] - lo, self.entry[some]

    def of(self, numbers: Tensor, some: slice) -> Tensor:
        """Their numbers out of (n, K or more)."""
        return numbers[self.token[some], self.place[some]]
