"""One chunk of tokens, while its logits exist: statistics, values, gradient. The same lines for both layouts.

    1. project both roles; log-normalisers, the written token's log-probs, entropies        (2 products)
    2. per-token weights, from what is now known
    3. D_k and c_k of every part, from r = (z_T - z_S) - (lse_T - lse_S)
    4. the gradient sum_k w_k [p_S (A_k - c_k) - p_T B_k], used block by block as it is made   (2 products)

A sampled part needs neither 3 nor a teacher tile: its gradient is w u (p_S - onehot).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from workbench.divergence import layouts
from workbench.divergence.family import EntryClipped
from workbench.divergence.heads import Gradients, Scored
from workbench.divergence.loss import Call, Found, needed, part_weights, statistics, token_numbers
from workbench.divergence.pair import Coefficient, Divergence, Pair, exp_
from workbench.divergence.sparse import SparseTeacher
from workbench.divergence.tiles import Block, Scan, Sink, Tiles, Vocabulary


class Chunk:
    """A chunk at work. `call` holds the chunk's rows only; `rows` says which of the call's they are."""

    def __init__(self, call: Call, tiles: Tiles, gradients: Gradients, rows: slice) -> None:
        """Project both roles; the teacher first, because it may borrow the student's tile."""
        self.call, self.gradients, self.rows = call, gradients, rows
        kind = layouts.layout_for(call.student.hidden.device)
        self.layout = kind(call, tiles)
        self.teacher: Scan | None = None
        known = self._teacher(call.teacher)
        self.student = self._student()
        self.stats = statistics(call.rows, (self.student.logp, self.student.entropy), known)
        self.compared = [(k, p.divergence) for k, p in enumerate(call.parts) if p.divergence is not None]
        self.distances = self.student.normaliser.new_zeros(len(call.parts), self.layout.n)
        self.centres = torch.zeros_like(self.distances)
        like = self.student.normaliser
        self.prepared: dict[Divergence, Tensor] = {}
        self.alignments = [Alignment(d, like) for _, d in self.compared if isinstance(d, EntryClipped)]
        self.kept = False
        """Whether step 3 left p_S and p_S A - p_T B in the tiles, so that step 4 needs no exponential."""

    def run(self) -> Found:
        """Steps 2 to 4; step 3 joins step 4 where no gradient waits for it."""
        weights, measured = part_weights(self.call, self.stats), self._measured_with_gradient()
        self.prepared = self._prepare()
        scales = self._sampled(weights)
        if self.compared and not measured:
            self._compare()
        values = self._clip(scales)
        if self.gradients.wanted and self.call.parts:
            self._gradient(scales, measured)
        if measured:
            values = self._joined()
        turned = self._turned()
        return Found(values, weights, self.stats, torch.stack(turned).any(0) if turned else None)

    def _turned(self) -> list[Tensor]:
        return [alignment.turned(self.call.vocabulary) for alignment in self.alignments]

    def _teacher(self, teacher: Scored | SparseTeacher | None) -> tuple[Tensor | None, Tensor | None]:
        """(log-prob of the written token, entropy)."""
        entropy = self.call.options.entropies
        if isinstance(teacher, Scored):
            self.teacher = self.layout.scan(teacher, "teacher", entropy)
            return self.teacher.logp, self.teacher.entropy
        if teacher is None:
            return None, None
        logp, known = teacher.known(self.call.rows.ids, self.call.dtype)
        return logp, known if entropy else None

    def _student(self) -> Scan:
        return self.layout.scan(self.call.student, "student", self.call.options.entropies)

    def _compare(self) -> None:
        """Step 3. A single divergence leaves what step 4 needs, where nobody needs the logits again."""
        head, only = self.call.student.head, len(self.call.parts) == 1 and self.compared[0][1].centre is None
        self.kept = only and self.gradients.wanted and head.softcap is None
        for block in self.layout.blocks():
            pair = self._pair(block)
            push = self._measure(pair, block)
            if self.kept:
                assert block.teacher is not None
                assert push is not None
                block.student.copy_(pair.student)
                block.teacher.copy_(push)
        self._joined()

    def _joined(self) -> Tensor:
        """Distances, once they and the c that are no constants are sums over the whole vocabulary."""
        compared = [k for k, _ in self.compared]
        open_ = [k for k, divergence in self.compared if divergence.centre is None]
        sums = torch.cat((self.distances[compared], self.centres[open_]))
        self.call.vocabulary.add(sums)
        self.distances[compared], self.centres[open_] = sums[: len(compared)], sums[len(compared) :]
        return self.distances

    def _sampled(self, weights: Tensor) -> Tensor:
        """What multiplies each part's gradient (K, n); values of sampled parts; every c that is known beforehand."""
        scales = weights.clone()
        for k, part in enumerate(self.call.parts):
            if part.sampled is not None:
                counted = needed(self.call.teacher, [part.weight])
                advantage = token_numbers(part.sampled, self.stats, "sampled", counted)
                self.distances[k] = -advantage * self.stats.student_logp
                self.centres[k], scales[k] = -1.0, scales[k] * advantage
            elif part.divergence is not None and part.divergence.centre is not None:
                self.centres[k] = part.divergence.centre
        return scales

    def _clip(self, scales: Tensor) -> Tensor:
        """Values (K, n) below their ceilings; no gradient where one binds."""
        values = self.distances.clone()
        for k, part in enumerate(self.call.parts):
            if part.token_clip is not None:
                scales[k] *= values[k] <= part.token_clip
                values[k].clamp_(max=part.token_clip)
        return values

    def _measured_with_gradient(self) -> bool:
        """Whether every c is known beforehand and no value decides about a gradient."""
        fixed = all(divergence.centre is not None for _, divergence in self.compared)
        return self.gradients.wanted and fixed and all(part.token_clip is None for part in self.call.parts)

    def _pair(self, block: Block) -> Pair:
        assert self.teacher is not None
        assert block.teacher is not None
        row = self.layout.row
        teacher, student = row(self.teacher.normaliser, block), row(self.student.normaliser, block)
        rows = {d: x[:, block.rows].unsqueeze(self.layout.axis + 1) for d, x in self.prepared.items()}
        return Pair(block.teacher, block.student, teacher, student, rows)

    def _prepare(self) -> dict[Divergence, Tensor]:
        """(S, n) of every divergence that needs numbers of whole rows before its entries."""
        found: dict[Divergence, list[Tensor]] = {}
        for block in _whole(self.layout) if self.compared else ():
            pair = self._pair(block)
            for asking in {divergence.source for _, divergence in self.compared}:
                numbers = asking.prepare(pair, self.layout.axis)
                if numbers is not None:
                    found.setdefault(asking, []).append(numbers)
            if not found:
                break
        return {asking: torch.cat(pieces, 1) for asking, pieces in found.items()}

    def _measure(self, pair: Pair, block: Block) -> Tensor | None:
        """Step 3 for one block; the last push, if there was one."""
        push = None
        for k, divergence in self.compared:
            if divergence.centre is not None or not self.gradients.wanted:
                self.distances[k, block.rows] += divergence.density(pair).sum(self.layout.axis)
                continue
            density, push = divergence.both(pair)
            total = density.sum(self.layout.axis)
            self.distances[k, block.rows] += total
            self.centres[k, block.rows] += total if push is density else push.sum(self.layout.axis)
        for alignment in self.alignments:
            alignment.see(pair, self.layout.axis, block.rows)
        return push

    def _gradient(self, scales: Tensor, measure: bool) -> None:
        """Step 4. With one part, what multiplies its rows stays out of the blocks altogether."""
        alone = len(self.call.parts) == 1
        ones = torch.ones_like(scales) if alone else scales
        sampled = [k for k, part in enumerate(self.call.parts) if part.sampled is not None]
        sink = Sink(self.gradients, self.rows, self._factor(scales if alone else None))
        centre, hot = (ones * self.centres).sum(0), ones[sampled].sum(0)
        for block in self.layout.blocks():
            gradient = self._made(block, None if alone else scales, centre, measure)
            if sampled:
                self.layout.hot(block, gradient, hot)
            self.layout.take(block, gradient, sink)
        self.layout.finish(sink)

    def _factor(self, scales: Tensor | None) -> Tensor | None:
        """What multiplies whole rows: the only part's weight, and the slope of the token's temperature."""
        temperature = self.layout.temperature
        factor = None if scales is None else scales[0]
        if temperature is None:
            return factor
        return 1.0 / temperature if factor is None else factor / temperature

    def _made(self, block: Block, scales: Tensor | None, centre: Tensor, measure: bool) -> Tensor:
        """The block's gradient but for the written tokens."""
        if self.kept:
            assert block.teacher is not None
            return block.teacher.addcmul_(block.student, self.layout.row(centre, block), value=-1.0)
        if not self.compared:
            shifted = block.student - self.layout.row(self.student.normaliser, block)
            return exp_(shifted).mul_(self.layout.row(-centre, block))
        pair = self._pair(block)
        gradient = self._compared_gradient(pair, block, scales, centre)
        if measure:
            self._measure(pair, block)
        return gradient

    def _compared_gradient(self, pair: Pair, block: Block, scales: Tensor | None, centre: Tensor) -> Tensor:
        """P_S (sum_k w_k A_k - centre) - p_T sum_k w_k B_k: a new tensor."""
        row = self.layout.row
        a: Coefficient = None
        b: Coefficient = None
        for k, divergence in self.compared:
            slope = divergence.slope(pair)
            by = 1.0 if scales is None else row(scales[k], block)
            a, b = _plus(a, slope[0], by), _plus(b, slope[1], by)
        gradient = pair.student * (row(-centre, block) if a is None else a - row(centre, block))
        if isinstance(b, Tensor):
            gradient.addcmul_(pair.teacher, b, value=-1.0)
        elif b is not None:
            gradient.sub_(pair.teacher, alpha=b)
        for k, divergence in self.compared:
            extra = divergence.extra_slope(pair)
            if extra is not None:
                gradient.add_(extra if scales is None else extra * row(scales[k], block))
        return gradient


def _whole(layout: layouts.Layout) -> Iterator[Block]:
    """The tiles in pieces that hold the whole vocabulary of some tokens, in the tokens' order."""
    vocabulary = layout.student.shape[layout.axis]
    step = max(16, layouts.CPU_BLOCK // vocabulary)  # at least a cache line where a token is a column
    for lo in range(0, layout.n, step):
        rows = slice(lo, min(layout.n, lo + step))
        part = (slice(None), rows) if layout.axis == 0 else (rows,)
        teacher = None if layout.teacher is None else layout.teacher[part]
        yield Block(0, vocabulary, rows, layout.student[part], teacher)


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

    def turned(self, vocabulary: Vocabulary) -> Tensor:
        """Cosine < 0, where it can be told from rounding."""
        vocabulary.add(self.sums)
        both, clipped_p, whole_p, pp, c, c_whole, clipped2, whole2 = self.sums
        dot = both - c_whole * clipped_p - c * whole_p + c * c_whole * pp
        rounding = torch.finfo(dot.dtype).eps * 64 * (clipped2 * whole2).sqrt()
        return dot < -rounding
