"""A head cut over two processes says what one process says, and sends numbers a token, never logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tests.test_fused import MIXTURES, N, V, advantage, entropy_gate, setting, some_dead
from tests.test_heads import adapted, warmed
from tests.test_sparse import cut
from workbench.divergence import (
    ALL,
    JSD,
    ForwardKL,
    Head,
    Options,
    Pair,
    Part,
    Scored,
    SparseTeacher,
    layouts,
    reference_loss,
)
from workbench.divergence.parallel import Shard, looks_ahead, parallel_loss
from workbench.divergence.sparse import counts
from workbench.errors import UsageError

CUT = 23
"""Where the vocabulary of 61 is cut: the second process holds more, and the cut is inside a block."""


class Ahead(ForwardKL):
    """Asks for a number of whole rows."""

    def prepare(self, pair: Pair, axis: int) -> Tensor:
        return pair.teacher.amax(axis)


CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def held(tensors: Sequence[Tensor | None], rank: int) -> list[Tensor | None]:
    """(hidden, weight, bias, down, up) of the process: all of what everyone holds whole, its piece of the rest."""
    piece = slice(0, CUT) if rank == 0 else slice(CUT, V)
    return [x if x is None or i in (0, 3) else x[piece] for i, x in enumerate(tensors)]


def leaves(scored: Scored) -> list[Tensor | None]:
    return [scored.hidden, *scored.head.tensors]


def local(scored: Scored, rank: int) -> Scored:
    """The role with a head cut as the process holds it, of new leaves."""
    hidden, weight, bias, down, up = (
        None if x is None else x.detach().clone().requires_grad_() for x in held(leaves(scored), rank)
    )
    assert hidden is not None
    assert weight is not None
    low_rank = scored.head.low_rank
    if low_rank is not None and down is not None and up is not None:
        low_rank = replace(low_rank, down=down, up=up)
    return Scored(hidden, replace(scored.head, weight=weight, bias=bias, low_rank=low_rank))


def compare(at, parts: list[Part], options: Options, rank: int, shard: Shard) -> None:
    """Loss, values, statistics and every gradient against the float64 reference of the whole head."""
    options = replace(options, entropies=True)
    expected = reference_loss(at.student, at.teacher, at.rows, parts, options)
    student = local(at.student, rank)
    teacher = local(at.teacher, rank) if isinstance(at.teacher, Scored) else at.teacher
    ours = parallel_loss(student, teacher, at.rows, parts, shard=shard, options=options)
    live = torch.stack([part.weight != 0 for part in parts]).any(0)
    close = torch.testing.assert_close
    close(ours.loss.detach(), expected.loss.detach(), **CLOSE)
    close(ours.values[:, live], expected.values[:, live], **CLOSE)
    for name in ("student_logp", "student_entropy", "teacher_logp", "teacher_entropy"):
        mine, theirs = (getattr(loss.stats, name) for loss in (ours, expected))
        if theirs is not None:
            close(mine[live], theirs[live], **CLOSE)
    if expected.turned is not None:
        assert ours.turned is not None
        assert torch.equal(ours.turned[live], expected.turned[live])
    wanted = [x for x in leaves(at.student) if x is not None and x.requires_grad]
    whole = iter(torch.autograd.grad(expected.loss * 1.7, wanted))
    gradients = held([None if x is None or not x.requires_grad else next(whole) for x in leaves(at.student)], rank)
    (ours.loss * 1.7).backward()
    for leaf, theirs in zip(leaves(student), gradients, strict=True):
        if theirs is not None:
            assert leaf is not None
            assert leaf.grad is not None
            close(leaf.grad, theirs, **CLOSE)


def compare_divergences(rank: int, shard: Shard) -> None:
    for divergence in ALL:
        padded = not counts(divergence)
        for at in (setting(), cut(setting(), padded=padded), cut(setting(), rest="renormalised", padded=padded)):
            if isinstance(at.teacher, SparseTeacher) or not looks_ahead(divergence):
                compare(at, [Part(some_dead(at.weight, 3, 7), divergence)], Options(chunk=19), rank, shard)


def compare_mixtures(rank: int, shard: Shard) -> None:
    options = Options(chunk=16)
    heads = {"scale": 0.6, "softcap": 2.0, "temperature": 1.7}
    for make in MIXTURES.values():
        for at in (warmed(setting(**heads)), cut(setting(**heads)), adapted(**heads)):
            compare(at, make(at), replace(options, token_weight=entropy_gate), rank, shard)
    alone = replace(setting(), teacher=None)
    compare(alone, [Part(alone.weight, sampled=advantage)], options, rank, shard)


def count_messages(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers sent a token, whatever the vocabulary: two roles' scans, D, c; then the hidden states' gradient."""
    at, sent = setting(bias=False), list[int]()
    student, teacher = local(at.student, shard.first and 1), at.teacher
    assert isinstance(teacher, Scored)
    original = dist.all_reduce

    def counted(x: Tensor, *args: object, **kwargs: object) -> object:
        sent.append(x.numel())
        return original(x, *args, **kwargs)

    monkeypatch.setattr(dist, "all_reduce", counted)
    parallel_loss(student, local(teacher, shard.first and 1), at.rows, [Part(at.weight, JSD())], shard=shard)
    monkeypatch.undo()
    assert sum(sent) == (2 * 3 + 2) * N + at.student.hidden.numel()


def refuse(rank: int, shard: Shard) -> None:
    at = setting()
    wrong = Head(torch.zeros(5, at.student.hidden.shape[1]).double())
    with pytest.raises(UsageError, match="A head of 5 entries"):
        parallel_loss(replace(at.student, head=wrong), None, at.rows, [], shard=shard)
    with pytest.raises(UsageError, match="whole vocabulary at once"):
        parallel_loss(at.student, at.teacher, at.rows, [Part(at.weight, Ahead())], shard=shard)
    student, ids = local(at.student, rank), at.rows.ids.clone()
    ids[0] = V
    with pytest.raises(UsageError, match=f"0..{V - 1}"):
        parallel_loss(student, None, replace(at.rows, ids=ids), [], shard=shard)
    assert isinstance(at.teacher, Scored)
    outside = SparseTeacher.of(at.teacher, 3)
    outside.ids[0, 0] = V
    with pytest.raises(UsageError, match=f"0..{V - 1}"):
        parallel_loss(student, outside, at.rows, [Part(at.weight, JSD())], shard=shard)


def work(rank: int, folder: str) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    shard = Shard(CUT if rank == 0 else V - CUT)
    assert (shard.first, shard.size(CUT if rank == 0 else V - CUT)) == (rank * CUT, V)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layouts, "CPU_BLOCK", 16 * 7)
        patch.setattr(layouts, "GPU_BLOCK", V * 5)
        count_messages(shard, patch)
    for kind in (layouts.Columns, layouts.Rows):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layouts, "CPU_BLOCK", 16 * 7)
            patch.setattr(layouts, "GPU_BLOCK", V * 5)
            patch.setattr(layouts, "layout_for", lambda device, kind=kind: kind)
            compare_mixtures(rank, shard)
            if kind is layouts.Columns:
                compare_divergences(rank, shard)
    refuse(rank, shard)
    dist.destroy_process_group()


def test_two_processes_say_what_one_does(tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
