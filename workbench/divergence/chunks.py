"""One chunk of tokens, while its logits exist: statistics, values, gradient. The same lines for both layouts.

    1. project both roles; log-normalisers, the written token's log-probs, entropies        (2 products)
    2. per-token weights, from what is now known
    3. D_k and c_k of every part, from r = (z_T - z_S) - (lse_T - lse_S)
    4. the gradient sum_k w_k [p_S (A_k - c_k) - p_T B_k], used block by block as it is made   (2 products)

A sampled part needs neither 3 nor a teacher tile: its gradient is w u (p_S - onehot).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from workbench.divergence import layouts
from workbench.divergence.heads import Gradients, Scored
from workbench.divergence.kernels import (
    Asked,
    Entries,
    Making,
    Sums,
    compared,
    measured,
    prepared,
    recalled,
    shared,
    stored,
)
from workbench.divergence.loss import Call, Found, needed, part_weights, statistics, token_numbers
from workbench.divergence.pair import Divergence, looks_ahead
from workbench.divergence.sparse import SparseTeacher
from workbench.divergence.tiles import Block, Scan, Sink, Tiles, Vocabulary, Work


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
        divergences = tuple(divergence for _, divergence in self.compared)
        self.asked = Asked(divergences, self.layout.axis, gradients.wanted)
        self.prepared: tuple[Tensor, ...] = ()
        self.alignments = [Alignment(like) for _ in self.asked.clipped]

    def run(self) -> Found:
        """Steps 2 to 4; step 3 joins step 4 where no gradient waits for it."""
        weights, measured = part_weights(self.call, self.stats), self._measured_with_gradient()
        sources, self.prepared = self._prepare()
        self.asked = replace(self.asked, sources=sources)
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
        only = len(self.call.parts) == 1 and self.compared[0][1].centre is None
        kept = self._overwrites() and only and self.gradients.wanted
        self.asked = replace(self.asked, kept=kept, spends=kept and self._spends())
        for block in self.layout.passes(measured, self.asked):
            self._count(self.layout.run(measured, self.asked, self._entries(block)), block)
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

    def _entries(self, block: Block) -> Entries:
        row, rows = self.layout.row, tuple(x[:, block.rows] for x in self.prepared)
        student = block.student, row(self.student.normaliser, block)
        if self.teacher is None:
            return Entries(*student)
        return Entries(*student, block.teacher, row(self.teacher.normaliser, block), rows)

    def _prepare(self) -> tuple[tuple[Divergence, ...], tuple[Tensor, ...]]:
        """The divergences that need numbers of whole rows before their entries, and the numbers, (S, n) each."""
        sources = tuple(d for d in dict.fromkeys(d.source for _, d in self.compared) if looks_ahead(d))
        if not sources:
            return (), ()
        asked, run = replace(self.asked, sources=sources), self.layout.run
        pieces = [run(prepared, asked, self._entries(block)) for block in self.layout.whole()]
        found = {d: torch.cat(xs, 1) for d, *xs in zip(sources, *pieces, strict=True) if xs[0] is not None}
        return tuple(found), tuple(found.values())

    def _count(self, sums: Sums, block: Block) -> None:
        """What a block adds to values, centres and alignments."""
        for (k, _), distance, centre in zip(self.compared, sums.distances, sums.centres, strict=True):
            self.distances[k, block.rows] += distance
            if centre is not None:
                self.centres[k, block.rows] += centre
        for alignment, numbers in zip(self.alignments, sums.alignments, strict=True):
            alignment.sums[:, block.rows] += numbers

    def _gradient(self, scales: Tensor, measure: bool) -> None:
        """Step 4. With one part, what multiplies its rows stays out of the blocks altogether."""
        alone = len(self.call.parts) == 1
        ones = torch.ones_like(scales) if alone else scales
        sampled = [k for k, part in enumerate(self.call.parts) if part.sampled is not None]
        sink = Sink(self.gradients, self.rows, self._factor(scales if alone else None))
        centre, hot = (ones * self.centres).sum(0), ones[sampled].sum(0) if sampled else None
        step = self.layout.step(*self._making(measure), sink)
        for block in self.layout.passes(stored, step):
            sums = self.layout.use(block, step, self._work(block, None if alone else scales, centre, hot), sink)
            if sums is not None:
                self._count(sums, block)
        self.layout.finish(sink)

    def _factor(self, scales: Tensor | None) -> Tensor | None:
        """What multiplies whole rows: the only part's weight, and the slope of the token's temperature."""
        temperature = self.layout.temperature
        factor = None if scales is None else scales[0]
        if temperature is None:
            return factor
        return 1.0 / temperature if factor is None else factor / temperature

    def _making(self, measure: bool) -> tuple[Making, Asked]:
        """How blocks of the gradient are made."""
        if self.asked.kept:
            return recalled, self.asked
        return (compared if self.compared else shared), replace(self.asked, joined=measure, spends=self._spends())

    def _overwrites(self) -> bool:
        """Whether tiles may be written over: a cap's slope would be read off the logits."""
        return self.layout.keeps and self.call.student.head.softcap is None

    def _spends(self) -> bool:
        """Whether they may be before the pair has been asked for everything."""
        return self._overwrites() and not any(divergence.reads_logps for _, divergence in self.compared)

    def _work(self, block: Block, scales: Tensor | None, centre: Tensor, hot: Tensor | None) -> Work:
        """From what; `scales` (K, n), None: 1."""
        row, entries = self.layout.row, self._entries(block)
        if not self.compared:
            return Work(entries, (row(-centre, block),), hot)
        by = None if scales is None else tuple(row(scales[k], block) for k, _ in self.compared)
        return Work(entries, (row(centre, block), by), hot)


class Alignment:
    """Whether a clipped gradient points with the unclipped one, from sums over the vocabulary.

    g = U - c p_S for both, so <g, g'> = <U, U'> - c' <U, p> - c <U', p> + c c' <p, p>.
    """

    def __init__(self, like: Tensor) -> None:
        """`like`: (n,)."""
        self.sums = torch.zeros(8, len(like), dtype=like.dtype, device=like.device)

    def turned(self, vocabulary: Vocabulary) -> Tensor:
        """Cosine < 0, where it can be told from rounding."""
        vocabulary.add(self.sums)
        both, clipped_p, whole_p, pp, c, c_whole, clipped2, whole2 = self.sums
        dot = both - c_whole * clipped_p - c * whole_p + c * c_whole * pp
        rounding = torch.finfo(dot.dtype).eps * 64 * (clipped2 * whole2).sqrt()
        return dot < -rounding
