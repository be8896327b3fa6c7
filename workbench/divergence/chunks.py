"""One chunk of tokens, while its logits exist: statistics, values, gradient. The same lines for both layouts.

    1. project both roles; log-normalisers, the written token's log-probs, entropies        (2 products)
    2. per-token weights, from what is now known
    3. D_k and c_k of every part, from r = (z_T - z_S) - (lse_T - lse_S)
    4. the gradient sum_k w_k [p_S (A_k - c_k) - p_T B_k], used block by block as it is made   (2 products)

A sampled part needs neither 3 nor a teacher tile: its gradient is w u (p_S - onehot).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.divergence import layouts
from workbench.divergence.family import EntryClipped
from workbench.divergence.layouts import Block, Gradients, Sink, Tiles
from workbench.divergence.loss import Found, Request, part_weights, statistics, token_numbers
from workbench.divergence.pair import Coefficient, Pair


class Chunk:
    """A chunk at work. `request` holds the chunk's rows only; `rows` says which of the call's they are."""

    def __init__(self, request: Request, tiles: Tiles, gradients: Gradients, rows: slice) -> None:
        """Project both roles; the teacher first, because it may borrow the student's tile."""
        self.request, self.gradients, self.rows = request, gradients, rows
        kind = layouts.layout_for(request.student.hidden.device)
        self.layout = kind(request.student, request.rows.ids, tiles)
        entropy = request.options.entropies
        teacher = request.teacher
        self.teacher = None if teacher is None else self.layout.scan(teacher, "teacher", entropy)
        self.student = self.layout.scan(request.student, "student", entropy)
        self.stats = statistics(
            request.rows,
            (self.student.logp, self.student.entropy),
            (None, None) if self.teacher is None else (self.teacher.logp, self.teacher.entropy),
        )

    def run(self) -> Found:
        """Steps 2 to 4."""
        parts = self.request.parts
        weights = part_weights(self.request, self.stats)
        distances, centres, turned = self._distances()
        values, scales = distances.clone(), weights.clone()
        for k, part in enumerate(parts):
            if part.sampled is not None:
                advantage = token_numbers(part.sampled, self.stats, "sampled")
                values[k] = -advantage * self.stats.student_logp
                scales[k] *= advantage
                centres[k] = -1.0
            if part.token_clip is not None:
                scales[k] *= values[k] <= part.token_clip
                values[k].clamp_(max=part.token_clip)
        if self.gradients.wanted and len(parts):
            self._gradient(scales, centres)
        return Found(values, weights, self.stats, turned)

    def _pair(self, block: Block) -> Pair:
        assert self.teacher is not None
        assert block.teacher is not None
        row = self.layout.row
        teacher, student = row(self.teacher.normaliser, block), row(self.student.normaliser, block)
        return Pair(block.teacher, block.student, teacher, student)

    def _distances(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """D and c per part (K, n), zero for sampled parts; turned."""
        shape = (len(self.request.parts), self.layout.n)
        distances = torch.zeros(shape, dtype=self.layout.dtype, device=self.stats.ids.device)
        centres = torch.zeros_like(distances)
        compared = [(k, p.divergence) for k, p in enumerate(self.request.parts) if p.divergence is not None]
        alignments = [Alignment(d, distances[0]) for _, d in compared if isinstance(d, EntryClipped)]
        for block in self.layout.blocks() if compared else ():
            pair = self._pair(block)
            for k, divergence in compared:
                density, push = divergence.both(pair)
                total = density.sum(self.layout.axis)
                distances[k, block.rows] += total
                if self.gradients.wanted:
                    centres[k, block.rows] += total if push is density else push.sum(self.layout.axis)
            for alignment in alignments:
                alignment.see(pair, self.layout.axis, block.rows)
        turned = torch.stack([a.turned() for a in alignments]).any(0) if alignments else None
        return distances, centres, turned

    def _gradient(self, scales: Tensor, centres: Tensor) -> None:
        """Step 4. With one part, what multiplies its rows stays out of the blocks altogether."""
        alone = len(self.request.parts) == 1
        ones = torch.ones_like(scales) if alone else scales
        sampled = [k for k, part in enumerate(self.request.parts) if part.sampled is not None]
        sink = Sink(self.gradients, self.rows, scales[0] if alone else None)
        centre, hot = (ones * centres).sum(0), ones[sampled].sum(0)
        for block in self.layout.blocks():
            gradient = self._gradient_block(block, None if alone else scales, centre)
            if sampled:
                self.layout.hot(block, gradient, hot)
            self.layout.take(block, gradient, sink)
        self.layout.finish(sink)

    def _gradient_block(self, block: Block, scales: Tensor | None, centre: Tensor) -> Tensor:
        """P_S (sum_k w_k A_k - centre) - p_T sum_k w_k B_k: a new tensor."""
        row = self.layout.row
        a: Coefficient = None
        b: Coefficient = None
        if all(part.divergence is None for part in self.request.parts):
            p = (block.student - row(self.student.normaliser, block)).exp_()
            return p.mul_(row(-centre, block))
        pair = self._pair(block)
        for k, part in enumerate(self.request.parts):
            if part.divergence is not None:
                slope = part.divergence.slope(pair)
                by = 1.0 if scales is None else row(scales[k], block)
                a, b = _plus(a, slope[0], by), _plus(b, slope[1], by)
        gradient = pair.student * (row(-centre, block) if a is None else a - row(centre, block))
        if isinstance(b, Tensor):
            gradient.addcmul_(pair.teacher, b, value=-1.0)
        elif b is not None:
            gradient.sub_(pair.teacher, alpha=b)
        return gradient


def _plus(total: Coefficient, more: Coefficient, by: Tensor | float) -> Coefficient:
    if more is None:
        return total
    scaled = more if isinstance(by, float) else more * by
    return scaled if total is None else total + scaled


class Alignment:
    """Whether a clipped gradient points with the unclipped one, from sums over the vocabulary.

    g = U - c p_S for both, so <g, g'> = <U, U'> - c' <U, p> - c <U', p> + c c' <p, p>.
    """

    def __init__(self, divergence: EntryClipped, like: Tensor) -> None:
        """`like`: (n,)."""
        self.divergence = divergence
        self.sums = torch.zeros(8, len(like), dtype=like.dtype, device=like.device)

    def see(self, pair: Pair, axis: int, rows: slice) -> None:
        """One more block."""
        p = pair.student
        clipped, whole = self.divergence.both(pair)[1], self.divergence.unclipped.both(pair)[1]
        products = (clipped * whole, clipped * p, whole * p, p * p, clipped, whole, clipped.square(), whole.square())
        for k, x in enumerate(products):
            self.sums[k, rows] += x.sum(axis)

    def turned(self) -> Tensor:
        """Cosine < 0, where it can be told from rounding."""
        both, clipped_p, whole_p, pp, c, c_whole, clipped2, whole2 = self.sums
        dot = both - c_whole * clipped_p - c * whole_p + c * c_whole * pp
        rounding = torch.finfo(dot.dtype).eps * 64 * (clipped2 * whole2).sqrt()
        return dot < -rounding
