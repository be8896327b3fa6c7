"""Ours: the fused loss, the engine's decoding beside HF `generate`, and a whole training step."""

from __future__ import annotations

import importlib.util

import torch
from inputs import Inputs

from workbench.divergence import JSD, ForwardKL, Head, Options, Part, ReverseKL, Scored, TokenRows, fused_loss

KINDS = {"jsd": JSD(), "fkl": ForwardKL(), "rkl": ReverseKL()}
HAS_SPARSE = importlib.util.find_spec("workbench.divergence.sparse") is not None


class Fused(Inputs):
    """`fused_loss` on all tokens, or on those of a padded batch that count."""

    def __init__(self, case: str, n: int, kind: str = "jsd", frozen: bool = False, valid: int | None = None) -> None:
        super().__init__(case, n, frozen, valid)
        self.divergence, self.padded = KINDS[kind], valid is not None

    def run(self) -> None:
        hidden, other, ids = self.hidden, self.other, self.ids
        if self.padded:
            kept = self.mask.nonzero().squeeze(1)
            hidden, other, ids = hidden.index_select(0, kept), other.index_select(0, kept), ids[kept]
        self.backward(self.loss_of(hidden, other, ids))

    def teacher(self, other: torch.Tensor):
        return Scored(other, Head(self.teacher_weight))

    def loss_of(self, hidden: torch.Tensor, other: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        n = len(ids)
        rows = TokenRows(ids, torch.arange(n), torch.zeros(n), torch.zeros(n))
        part = Part(torch.full((n,), 1 / n), self.divergence)
        student = Scored(hidden, Head(self.weight))
        return fused_loss(student, self.teacher(other), rows, [part], Options()).loss


class Sparse(Fused):
    """The same against the teacher's K most probable tokens and one bucket for the rest."""

    def __init__(self, case: str, n: int, kind: str = "jsd", k: int = 64) -> None:
        super().__init__(case, n, kind)
        with torch.no_grad():
            logp, ids = zip(
                *((o @ self.teacher_weight.t()).log_softmax(-1).topk(k) for o in self.other.split(256)), strict=True
            )
        self.logp, self.top = torch.cat(logp), torch.cat(ids)

    def teacher(self, other: torch.Tensor):
        from workbench.divergence.sparse import SparseTeacher

        return SparseTeacher(self.top, self.logp, rest="bucket")
