"""What happens to a block of logits, from tensors to tensors: the lines that both layouts run and a compiler can trace.

Every function takes first what does not change from block to block (a frozen dataclass, which decides what is compiled)
and then tensors. None branches on which divergence it has: a member's own functions are called, and traced with it.
What a token has one number of arrives shaped to broadcast against the block; `axis` is the vocabulary's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workbench.divergence.family import EntryClipped
from workbench.divergence.heads import Form, outer, settle, uncap
from workbench.divergence.pair import Coefficient, Divergence, Pair, exp_of, lowered, per_nat, raised_


class Entries(NamedTuple):
    """A block of one role's logits or of both, and what is known of its tokens."""

    student: Tensor
    student_lse: Tensor
    teacher: Tensor | None = None
    teacher_lse: Tensor | None = None
    rows: tuple[Tensor, ...] = ()
    """(S, n) each: what `Asked.sources` prepared."""


@dataclass(frozen=True)
class Asked:
    """What a call asks of its blocks."""

    divergences: tuple[Divergence, ...]
    """One a part that compares."""
    axis: int
    gradients: bool
    """Whether there are sums that gradients wait for."""
    sources: tuple[Divergence, ...] = ()
    """Those that look at whole rows before there are entries."""
    joined: bool = False
    """Whether values are measured while the gradient is made: nothing of it waits for them."""
    kept: bool = False
    """Whether `measured` leaves p_S and p_S A - p_T B of the only divergence in place of the logits, for `recalled`."""
    spends: bool = False
    """Whether the pass may write over the student's logits as soon as it has read them."""

    @property
    def clipped(self) -> tuple[EntryClipped, ...]:
        """Those whose gradient may turn."""
        return tuple(d for d in self.divergences if isinstance(d, EntryClipped))

    def pair(self, entries: Entries) -> Pair:
        """Both roles of a block."""
        assert entries.teacher is not None
        rows = {d: x.unsqueeze(self.axis + 1) for d, x in zip(self.sources, entries.rows, strict=False)}
        return Pair(entries.teacher, entries.student, entries.teacher_lse, entries.student_lse, rows)


class Sums(NamedTuple):
    """What a block adds to its tokens' numbers, (n,) each."""

    distances: tuple[Tensor, ...]
    """D of every divergence."""
    centres: tuple[Tensor | None, ...]
    """The c of every divergence; None where it is known beforehand or nobody needs it."""
    alignments: tuple[Tensor, ...]
    """(8, n) of every `EntryClipped`: see `Alignment`."""


class Made(NamedTuple):
    """A block's gradient in the logits but for the written tokens, free to be overwritten, and what was measured."""

    gradient: Tensor
    sums: Sums | None


def prepared(asked: Asked, entries: Entries) -> tuple[Tensor | None, ...]:
    """(S, n) of every source, from whole rows."""
    pair = asked.pair(entries)
    return tuple(source.prepare(pair, asked.axis) for source in asked.sources)


def measured(asked: Asked, entries: Entries) -> Sums:
    """Values, and every c that is a sum."""
    pair = asked.pair(entries)
    if asked.spends:
        pair.spend()
    sums, push = _measured(asked, pair)
    if asked.kept and push is not None and entries.teacher is not None:
        if not asked.spends:
            entries.student.copy_(pair.student)
        entries.teacher.copy_(push)
    return sums


def _measured(asked: Asked, pair: Pair) -> tuple[Sums, Tensor | None]:
    """And the last divergence's p_S A - p_T B, if it was needed."""
    axis, push = asked.axis, None
    distances: list[Tensor] = []
    centres: list[Tensor | None] = []
    for divergence in asked.divergences:
        if divergence.centre is not None or not asked.gradients:
            distances.append(divergence.density(pair).sum(axis))
            centres.append(None)
            continue
        density, push = divergence.both(pair)
        total = density.sum(axis)
        distances.append(total)
        centres.append(total if push is density else push.sum(axis))
    return Sums(tuple(distances), tuple(centres), tuple(_aligned(d, pair, axis) for d in asked.clipped)), push


def _aligned(divergence: EntryClipped, pair: Pair, axis: int) -> Tensor:
    p = pair.student
    clipped, whole = divergence.both(pair)[1], divergence.unclipped.both(pair)[1]
    products = (clipped * whole, clipped * p, whole * p, p * p, clipped, whole, clipped.square(), whole.square())
    return torch.stack([x.sum(axis) for x in products])


def compared(asked: Asked, entries: Entries, centre: Tensor, scales: tuple[Tensor, ...] | None) -> Made:
    """P_S (sum_k w_k A_k - centre) - p_T sum_k w_k B_k; `scales` are the w_k, None: 1, of the only part."""
    pair = asked.pair(entries)
    if asked.spends:
        pair.spend()
    sums = _measured(asked, pair)[0] if asked.joined else None
    a: Coefficient = None
    b: Coefficient = None
    for k, divergence in enumerate(asked.divergences):
        slope = divergence.slope(pair)
        by = 1.0 if scales is None else scales[k]
        a, b = _plus(a, slope[0], by), _plus(b, slope[1], by)
    extras = [divergence.extra_slope(pair) for divergence in asked.divergences]
    gradient = pair.student.mul_(-centre if a is None else a - centre)  # its last use: room of its own is a cache miss
    if isinstance(b, Tensor):
        gradient.addcmul_(pair.teacher, b, value=-1.0)
    elif b is not None:
        gradient.sub_(pair.teacher, alpha=b)
    for k, extra in enumerate(extras):
        if extra is not None:
            gradient.add_(extra if scales is None else extra * scales[k])
    return Made(gradient, sums)


def _plus(total: Coefficient, more: Coefficient, by: Tensor | float) -> Coefficient:
    if more is None:
        return total
    scaled = more if isinstance(by, float) else more * by
    return scaled if total is None else total + scaled


def recalled(asked: Asked, entries: Entries, centre: Tensor, scales: None) -> Made:
    """`compared` of a single divergence, from what `measured` left: no exponential, and no new tensor."""
    assert entries.teacher is not None
    return Made(entries.teacher.addcmul_(entries.student, centre, value=-1.0), None)


def shared(asked: Asked, entries: Entries, amount: Tensor) -> Made:
    """Softmax times a number a token: of sampled parts, and of the tail beside a sparse teacher."""
    return Made(exp_of(entries.student, entries.student_lse).mul_(amount), None)


Making = Callable[..., Made]
"""`compared`, `recalled` or `shared`."""


@dataclass(frozen=True)
class Step:
    """How a row-major gradient is made and what is done to it before it is kept."""

    making: Making
    asked: Asked
    form: Form
    """The student's head's."""
    both: bool = False
    """Whether the tile keeps the gradient too, before it is rounded to the operand's type."""


class Marks(NamedTuple):
    """What the written tokens and whole rows add to a row-major gradient, (n, 1) each."""

    ids: Tensor
    hot: Tensor | None
    """What is taken off at `ids`; None: nothing."""
    warmth: Tensor | None
    """Each token's own temperature."""
    factor: Tensor | None
    """What multiplies whole rows."""


def stored(step: Step, entries: Entries, given: tuple[Any, ...], marks: Marks, operand: Tensor | None) -> Sums | None:
    """A block's gradient, complete, into `operand` or, without one, over the student's logits.

    Computed in the logits' type: rounding to the operand's comes last.
    """
    gradient, sums = step.making(step.asked, entries, *given)
    if marks.hot is not None:
        entry = torch.arange(gradient.shape[1], device=gradient.device)
        gradient = torch.where(entry == marks.ids, gradient - marks.hot, gradient)
    gradient = through(step.form, entries.student, gradient, marks)
    if operand is not None:
        operand.copy_(gradient)
    if operand is None or step.both:
        entries.student.copy_(gradient)
    return sums


def through(form: Form, logits: Tensor, gradient: Tensor, marks: Marks) -> Tensor:
    """From the gradient in logits to that in h W^T; overwrites `gradient`."""
    uncap(form, logits, gradient, marks.warmth)
    if marks.factor is not None:
        gradient.mul_(marks.factor)
    return gradient.mul_(outer(form))


@dataclass(frozen=True)
class Look:
    """How products become logits, and what is asked of them."""

    form: Form | None
    """None: they are logits already."""
    entropy: bool


class Seen(NamedTuple):
    """Of whole rows (n,): the largest logit, sum e^(z - peak), sum e^(z - peak) (z - peak) if asked; see `Running`."""

    peak: Tensor
    total: Tensor
    moment: Tensor | None


def scanned(look: Look, z: Tensor, bias: Tensor | None, warmth: Tensor | None) -> Seen:
    """Row-major products to logits, in place, and what their rows come to. `bias` (V,) is scaled already."""
    if look.form is not None:
        settle(look.form, z, bias, warmth)
    peak = z.amax(1, keepdim=True).mul_(per_nat(z))
    shifted = lowered(z, peak)
    powers = raised_(shifted.clone() if look.entropy else shifted)
    moment = (shifted * powers).sum(1) if look.entropy else None
    return Seen(peak.squeeze(1), powers.sum(1, keepdim=True).squeeze(1), moment)
