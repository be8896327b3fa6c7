"""A head cut along the vocabulary over several processes: each holds rows W[first : first + held] of both roles' heads.

Everyone has the same hidden states, rows and parts. What is exchanged, a few numbers a token and never a logit:

    each role's scan    the largest logit; then sum e^z, its moment, the written token's logit
    each comparison     D and c, when they have been summed over the own entries; a sparse teacher's K logits
    at the end          the gradients of what everyone holds whole: hidden states (N, H), a factor `down`

The gradient of what is cut (weight, bias, a factor `up`) stays where it is, and so does its memory. This pays where
processes x tokens < V (bytes of gathered hidden states against bytes of gathered weight).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor

from workbench.divergence.fused import formed
from workbench.divergence.heads import Scored
from workbench.divergence.loss import Call, Loss, Options, Part, TokenRows
from workbench.divergence.pair import looks_ahead
from workbench.divergence.sparse import SparseTeacher
from workbench.divergence.tiles import Vocabulary
from workbench.errors import UsageError


class Shard(Vocabulary):
    """The piece of the vocabulary that this process holds, its place found by asking everyone once."""

    def __init__(self, held: int, group: dist.ProcessGroup | None = None) -> None:
        """`held` entries, behind those of the processes of lower rank in `group` (None: everyone)."""
        self._group = group
        pieces = [0] * dist.get_world_size(group)
        dist.all_gather_object(pieces, held, group)
        self.first, self._held, self._size = sum(pieces[: dist.get_rank(group)]), held, sum(pieces)

    def size(self, held: int) -> int:
        """Entries of the whole vocabulary. UsageError (a ValueError) if a head does not hold its piece."""
        if held != self._held:
            raise UsageError(
                f"A head of {held} entries was given for a shard of {self._held}. Both roles are cut alike."
                " Cut the heads at the same places, or make a new Shard."
            )
        return self._size

    def add(self, *numbers: Tensor | None) -> None:
        """All-reduce, in place."""
        for x in numbers:
            if x is not None and x.numel():
                dist.all_reduce(x, group=self._group)

    def highest(self, numbers: Tensor) -> Tensor:
        """All-reduce of a copy."""
        most = numbers.clone()
        dist.all_reduce(most, dist.ReduceOp.MAX, group=self._group)
        return most


def parallel_loss(
    student: Scored,
    teacher: Scored | SparseTeacher | None,
    rows: TokenRows,
    parts: Sequence[Part],
    *,
    shard: Shard,
    options: Options | None = None,
) -> Loss:
    """`fused_loss` of heads that hold one `shard` of the vocabulary each; ids count in the whole one.

    Every process of the shard's group calls it with the same rows and parts, and gets the same loss, values and
    statistics, the whole gradient of the hidden states, and its own piece of the head's. A sparse teacher is given
    whole. Raises UsageError (a ValueError) as `fused_loss`, on every process alike, and for a divergence that looks
    at a token's whole vocabulary before it has entries.
    """
    for part in parts:
        if part.divergence is not None and isinstance(teacher, Scored) and looks_ahead(part.divergence):
            raise UsageError(
                f"{part.divergence} needs a token's whole vocabulary at once, and no process has it."
                " Only sums over entries can be shared. Use another divergence, or a head that is not cut."
            )
    return formed(Call(student, teacher, rows, parts, options or Options(), shard))
