"""A chunk whose teacher is sparse: the divergence is computed on K + 1 buckets, the tiles hold the student alone.

While the student's logits are projected its K entries are kept out of the running sums, so that the tail's mass is a
sum over the tail and not a difference. With P_b = p_S(b) dD/dp_S(b) and c their sum the gradient in a logit is

    in the tail     q_v (P_tail - p_tail c),   q_v = e^(z_v) / sum over the tail: no quotient of masses
    at entry k      P_k - p_k c
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.divergence.chunks import Chunk
from workbench.divergence.family import EntryClipped
from workbench.divergence.kernels import Asked, Entries, Making, shared
from workbench.divergence.pair import Divergence, Pair, exp_of
from workbench.divergence.sparse import SparseTeacher
from workbench.divergence.tiles import HIDDEN, Apart, Block, Scan, Work


class SparseChunk(Chunk):
    """A chunk with a sparse teacher and at least one comparison."""

    def _student(self) -> Scan:
        """The student's projection, with the tail's sum on the way."""
        teacher, layout = self.call.teacher, self.layout
        assert isinstance(teacher, SparseTeacher)
        first, held = layout.vocabulary.first, layout.held
        apart = layout.apart = Apart(teacher.ids.long() - first, teacher.kept, held, layout.axis)
        scan = super()._student()
        lse = scan.normaliser
        self.normaliser = torch.where(apart.tail < HIDDEN / 2, lse, apart.tail)
        """Of q; where there is no tail, any finite number."""
        entries = torch.where(teacher.kept, apart.logits - lse.unsqueeze(1), HIDDEN)
        tail = (apart.tail - lse).clamp(min=HIDDEN)
        self.masses = torch.cat((entries, tail.unsqueeze(1)), 1).exp()
        """(n, K + 1): the student's, the tail last, whatever is compared."""
        compared = teacher.teacher(layout.vocabulary.size(held), lse.dtype), teacher.student(entries, tail)
        self.pair, self.renormalised = Pair.of(*compared), teacher.rest == "renormalised"
        self.pushes: list[Tensor] = []
        self.corrected: Tensor | None = None
        self.turns: list[Tensor] = []
        return scan

    def _measured_with_gradient(self) -> bool:
        """Values cost nothing here, so they come first."""
        return False

    def _prepare(self) -> tuple[tuple[Divergence, ...], tuple[Tensor, ...]]:
        """Nothing: the pair of buckets is whole."""
        return (), ()

    def _compare(self) -> None:
        """D, P and c of every part, on the buckets alone."""
        spread = self._spread() if self.alignments else None
        for k, divergence in self.compared:
            self.distances[k], push = self._both(divergence)
            self.centres[k] = push.sum(-1)
            self.pushes.append(push)
            if isinstance(divergence, EntryClipped) and spread is not None:
                self.turns.append(self._turn(push, self._both(divergence.unclipped)[1], spread))

    def _both(self, divergence: Divergence) -> tuple[Tensor, Tensor]:
        """D (n,) and P (n, K + 1), whose last column is 0 where the tail is not compared."""
        density, push = divergence.both(self.pair)
        if divergence.offset:
            push = push + self.pair.student * divergence.offset
        if self.renormalised:  # through the student's softmax over S
            push = push - self.pair.student * push.sum(-1, keepdim=True)
        missing = self.masses.shape[1] - push.shape[1]
        return density.sum(-1), torch.nn.functional.pad(push, (0, missing)) if missing else push

    def _making(self, measure: bool) -> tuple[Making, Asked]:
        """The tail's gradient, whatever is compared; the entries' are put in their places."""
        return shared, Asked((), self.layout.axis, gradients=True)

    def _work(self, block: Block, scales: Tensor | None, centre: Tensor, hot: Tensor | None) -> Work:
        if self.corrected is None:
            total = -self.masses * centre.unsqueeze(1)
            for (k, _), push in zip(self.compared, self.pushes, strict=True):
                total += push if scales is None else push * scales[k].unsqueeze(1)
            self.tail, self.corrected = total[:, -1].clone(), self._cooled(total, hot)
        row = self.layout.row
        entries = Entries(block.student, row(self.normaliser, block))
        return Work(entries, (row(self.tail, block),), hot, self.corrected)

    def _cooled(self, total: Tensor, hot: Tensor | None) -> Tensor:
        """With what is taken off at the written tokens, where those are entries."""
        teacher = self.call.teacher
        if hot is not None and isinstance(teacher, SparseTeacher):
            written = (teacher.ids == self.call.rows.ids.unsqueeze(1)) & teacher.kept
            total[:, :-1] -= written * hot.unsqueeze(1)
        return total

    def _share(self, block: Block) -> Tensor:
        """Q in the tail, anything elsewhere."""
        return exp_of(block.student, self.layout.row(self.normaliser, block))

    def _spread(self) -> Tensor:
        """(n,) sum of q^2 over the tail."""
        spread, none = torch.zeros_like(self.normaliser), torch.zeros_like(self.masses)
        for block in self.layout.blocks():
            share = self._share(block)
            self.layout.place(block, share, none)
            spread[block.rows] += share.square_().sum(self.layout.axis)
        self.call.vocabulary.add(spread)
        return spread

    def _turn(self, clipped: Tensor, whole: Tensor, spread: Tensor) -> Tensor:
        """Whether the two gradients in the logits have a negative inner product, beyond rounding."""
        a, b = (push - self.masses * push.sum(-1, keepdim=True) for push in (clipped, whole))
        products = a * b
        products[:, -1] *= spread
        rounding = torch.finfo(a.dtype).eps * 64 * (clipped.square().sum(-1) * whole.square().sum(-1)).sqrt()
        return products.sum(-1) < -rounding

    def _turned(self) -> list[Tensor]:
        """Known since the comparison: the tile is overwritten by now."""
        return self.turns
