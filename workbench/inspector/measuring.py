"""Every number that a record shows of a token, from both roles' hidden states: one chunk of tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.divergence import JSD, Divergence, ForwardKL, ReverseKL, Scored, SparseTeacher
from workbench.divergence.pair import LOG_FLOOR
from workbench.divergence.sparse import outside
from workbench.engine.teachers import Teaching
from workbench.inspector.seen import Floats, Ints, Tops

TILE = 64 << 20
"""Bytes of one tile of tokens times vocabulary; some eight of them exist at once."""
KNOWN: tuple[tuple[str, Divergence], ...] = (("forward_kl", ForwardKL()), ("reverse_kl", ReverseKL()), ("jsd", JSD()))
"""The divergences that every record shows, by name."""
FLOATS = ("student_logp", "teacher_logp", "forward_kl", "reverse_kl", "jsd", "student_entropy", "teacher_entropy")
RANKS = ("student_rank", "teacher_rank")


@dataclass(frozen=True, eq=False)
class Numbers:
    """What is known of n tokens; (n,), nats, NaN and -1 where it is not. The names are those of `Seen`."""

    student_logp: Floats
    teacher_logp: Floats
    forward_kl: Floats
    reverse_kl: Floats
    jsd: Floats
    student_entropy: Floats
    teacher_entropy: Floats
    student_rank: Ints
    teacher_rank: Ints
    tops: Tops | None
    asked: Floats
    """(m, n): the divergences that were asked for beside these."""

    def columns(self) -> dict[str, object]:
        """By the names of `Seen`."""
        return {name: getattr(self, name) for name in (*FLOATS, *RANKS, "tops")}

    def take(self, rows: slice) -> Numbers:
        """Some of the tokens."""
        return Numbers(
            **{name: getattr(self, name)[rows] for name in (*FLOATS, *RANKS)},
            tops=None if self.tops is None else self.tops.take(rows),
            asked=self.asked[:, rows],
        )

    @classmethod
    def unknown(cls, n: int, asked: int = 0) -> Numbers:
        """Nothing is known of n tokens."""
        nan = {name: np.full(n, np.nan) for name in FLOATS}
        return cls(**nan, **{r: np.full(n, -1) for r in RANKS}, tops=None, asked=np.full((asked, n), np.nan))

    @classmethod
    def joined(cls, parts: Sequence[Numbers]) -> Numbers:
        """One after the other; at least one."""
        tops = [part.tops for part in parts if part.tops is not None]
        whole = len(tops) == len(parts)
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in (*FLOATS, *RANKS)},
            tops=Tops(**{f: np.concatenate([getattr(t, f) for t in tops]) for f in Tops.__dataclass_fields__})
            if whole
            else None,
            asked=np.concatenate([part.asked for part in parts], axis=1),
        )


@torch.no_grad()
def numbers(
    student: Scored, teacher: Teaching | None, ids: Tensor, *, top: int = 10, asked: Sequence[Divergence] = ()
) -> Numbers:
    """What both roles say at N tokens, memory flat in N.

    Args:
        student: hidden states (N, H) with the head that reads them at the temperature of the loss.
        teacher: the same, or what is known of a teacher; None: there is none.
        ids: (N,) the written tokens.
        top: entries a role in `tops`; 0: none.
        asked: divergences beside the three that are always there.
    """
    dtype = torch.promote_types(student.hidden.dtype, torch.float32)
    size = max(8, TILE // (4 * len(student.head.weight)))
    parts = []
    for lo in range(0, len(ids), size):
        rows = slice(lo, lo + size)
        own = student.head.logits(student.hidden[rows].to(dtype)).log_softmax(-1)
        other: Tensor | SparseTeacher | None = None
        if isinstance(teacher, Scored):
            other = teacher.head.logits(teacher.hidden[rows].to(dtype)).log_softmax(-1)
        elif teacher is not None:
            other = teacher.take(rows)
        parts.append(of_logps(own, other, ids[rows], top=top, asked=asked))
    return Numbers.joined(parts) if parts else Numbers.unknown(0, len(asked))


def of_logps(
    student: Tensor, teacher: Tensor | SparseTeacher | None, ids: Tensor, *, top: int, asked: Sequence[Divergence] = ()
) -> Numbers:
    """The same from log-probs (n, V)."""
    found: dict[str, Tensor] = dict(_role("student", student, ids))
    compared: list[Tensor] = []
    if isinstance(teacher, Tensor):
        found |= _role("teacher", teacher, ids)
        found |= {name: divergence(teacher, student) for name, divergence in KNOWN}
        compared = [divergence(teacher, student) for divergence in asked]
    elif teacher is not None:
        found |= _sparse(teacher, ids, student.dtype)
    nothing = Numbers.unknown(len(ids), len(asked))
    columns = {name: _array(found[name]) if name in found else getattr(nothing, name) for name in (*FLOATS, *RANKS)}
    return Numbers(
        **columns,
        tops=_tops(student, teacher, top) if top else None,
        asked=np.stack([_array(x) for x in compared]) if compared else nothing.asked,
    )


def _role(role: str, logp: Tensor, ids: Tensor) -> Iterator[tuple[str, Tensor]]:
    own = logp.gather(-1, ids[:, None])
    yield f"{role}_logp", own[:, 0]
    yield f"{role}_entropy", torch.special.entr(logp.exp()).sum(-1)
    yield f"{role}_rank", (logp > own).sum(-1)


def _sparse(teacher: SparseTeacher, ids: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """A rank is known as long as the token is no less likely than the last entry that is known."""
    logp, entropy = teacher.known(ids, dtype)
    entries = teacher.logp.to(dtype).masked_fill(~teacher.kept, -torch.inf)
    among = (logp >= entries.min(-1).values.clamp(min=LOG_FLOOR)) & teacher.ranked
    rank = (entries > logp[:, None]).sum(-1).masked_fill(~among, -1)
    return {"teacher_logp": logp, "teacher_entropy": entropy, "teacher_rank": rank}


def _tops(student: Tensor, teacher: Tensor | SparseTeacher | None, top: int) -> Tops:
    k = min(top, student.shape[-1])
    first = student.topk(k, -1)
    columns = {
        "student_ids": first.indices,
        "student_logp": first.values,
        "student_tail": _tail(student, first.indices),
    }
    none = torch.full_like(first.values, torch.nan)
    if isinstance(teacher, Tensor):
        theirs = teacher.topk(k, -1)
        columns |= {
            "teacher_ids": theirs.indices,
            "teacher_logp": theirs.values,
            "teacher_tail": _tail(teacher, theirs.indices),
            "student_other": teacher.gather(-1, first.indices),
            "teacher_other": student.gather(-1, theirs.indices),
        }
    elif teacher is not None:
        columns |= _sparse_tops(student, teacher, first.indices)
    else:
        columns |= {"teacher_ids": torch.full_like(first.indices, -1), "teacher_logp": none}
        columns |= {"teacher_tail": none[:, 0], "student_other": none, "teacher_other": none}
    return Tops(**{name: _array(x) for name, x in columns.items()})


def _sparse_tops(student: Tensor, teacher: SparseTeacher, mine: Tensor) -> dict[str, Tensor]:
    """What it knows of them; what is beyond its entries is in its tail. Entries that were named are not its tops."""
    k = mine.shape[-1]
    logp, order = teacher.logp.to(student.dtype).masked_fill(~teacher.kept, -torch.inf).sort(-1, descending=True)
    ids = teacher.ids.gather(-1, order).long()
    match = (mine[:, :, None] == ids[:, None, :]) & logp.isfinite()[:, None, :]
    across = torch.where(match, logp[:, None, :], 0.0).sum(-1).masked_fill(~match.any(-1), torch.nan)
    beyond = (
        logp[:, k:].clamp(min=LOG_FLOOR).logsumexp(-1)
        if logp.shape[-1] > k
        else torch.full_like(logp[:, 0], -torch.inf)
    )
    tail = teacher.tail_logp
    rest = torch.log1p(-logp.exp().sum(-1).clamp(max=1.0)) if tail is None else tail.to(student.dtype)
    there = logp.isfinite()
    other = student.gather(-1, ids.masked_fill(~there, 0)).masked_fill(~there, torch.nan)
    ids, logp = ids.masked_fill(~there, -1), logp.masked_fill(~there, torch.nan)
    if not teacher.ranked:
        ids, logp, other, rest = torch.full_like(ids, -1), logp * torch.nan, other * torch.nan, rest * torch.nan
    return {
        "teacher_ids": _wide(ids[:, :k], k, -1),
        "teacher_logp": _wide(logp[:, :k], k, torch.nan),
        "teacher_other": _wide(other[:, :k], k, torch.nan),
        "teacher_tail": _floored(torch.logaddexp(rest, beyond)),
        "student_other": across,
    }


def _wide(x: Tensor, k: int, fill: float) -> Tensor:
    return x if x.shape[-1] == k else torch.cat((x, x.new_full((len(x), k - x.shape[-1]), fill)), -1)


def _tail(logp: Tensor, ids: Tensor) -> Tensor:
    """(n,) log of the mass outside `ids`, summed over the others."""
    return _floored(outside(logp.clamp(min=LOG_FLOOR), ids, torch.ones_like(ids, dtype=torch.bool)))


def _floored(logp: Tensor) -> Tensor:
    return logp.masked_fill(logp < LOG_FLOOR / 2, -torch.inf)


def _array(x: Tensor) -> np.ndarray:
    return x.double().cpu().numpy() if x.is_floating_point() else x.cpu().numpy()
