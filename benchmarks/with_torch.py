"""The matrix products alone, plain autograd, activation checkpointing, and the exact answer in float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from inputs import Inputs
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK, BLOCK = 512, 256
"""Tokens and vocabulary entries at once: the fastest of the layouts tried for the products alone."""


def divergence(kind: str, teacher: Tensor, student: Tensor) -> Tensor:
    """(n,) nats from log-probs (n, v): JSD at 1/2, KL(teacher || student) or KL(student || teacher)."""
    if kind == "fkl":
        return (teacher.exp() * (teacher - student)).sum(-1)
    if kind == "rkl":
        return (student.exp() * (student - teacher)).sum(-1)
    mixture = torch.logaddexp(teacher, student) - math.log(2.0)
    return (teacher.exp() * (teacher - mixture) + student.exp() * (student - mixture)).sum(-1) / 2


class Floor(Inputs):
    """`products` matrix products: 4 dense, 3 with a frozen head, 3 (`sparse`) without a teacher's."""

    def __init__(self, case: str, n: int, frozen: bool = False, sparse: bool = False) -> None:
        super().__init__(case, n, frozen)
        self.sparse = sparse
        v, h = self.weight.shape
        self.tile = torch.empty(v * min(CHUNK, n))
        self.gradient = None if frozen else torch.zeros(v, h)

    def facts(self) -> dict[str, Any]:
        return {}

    def run(self) -> None:
        weight, teacher = self.weight.detach(), self.teacher_weight
        v = len(weight)
        for h, o in zip(self.hidden.detach().split(CHUNK), self.other.split(CHUNK), strict=True):
            z = self.tile[: v * len(h)].view(v, len(h))
            out = torch.zeros(h.shape[1], len(h))
            for lo in range(0, 0 if self.sparse else v, BLOCK):
                torch.mm(teacher[lo : lo + BLOCK], o.t(), out=z[lo : lo + BLOCK])
            for lo in range(0, v, BLOCK):
                torch.mm(weight[lo : lo + BLOCK], h.t(), out=z[lo : lo + BLOCK])
            for lo in range(0, v, BLOCK):
                out.addmm_(weight[lo : lo + BLOCK].t(), z[lo : lo + BLOCK])
                if self.gradient is not None:
                    self.gradient[lo : lo + BLOCK].addmm_(z[lo : lo + BLOCK], h)


class Plain(Inputs):
    """Both models' whole logits, and autograd."""

    def __init__(self, case: str, n: int, kind: str = "jsd", frozen: bool = False) -> None:
        super().__init__(case, n, frozen)
        self.kind = kind

    def dense(self, hidden: Tensor, other: Tensor) -> Tensor:
        student = (hidden @ self.weight.t()).log_softmax(-1)
        with torch.no_grad():
            teacher = (other @ self.teacher_weight.t()).log_softmax(-1)
        return divergence(self.kind, teacher, student).sum() / self.n

    def run(self) -> None:
        self.backward(self.dense(self.hidden, self.other))


class Checkpointed(Plain):
    """The same, 256 tokens at a time, computed again in the backward pass."""

    def run(self) -> None:
        chunks = zip(self.hidden.split(256), self.other.split(256), strict=True)
        self.backward(torch.stack([checkpoint(self.dense, h, o, use_reentrant=False) for h, o in chunks]).sum())


class Exact(Inputs):
    """Everything in float64; `logits` rounds both models' logits to float32 on the way: no float32 loss does better."""

    def __init__(self, case: str, n: int, kind: str = "jsd", logits: bool = False) -> None:
        super().__init__(case, n)
        self.kind, self.logits = kind, logits

    def project(self, hidden: Tensor, weight: Tensor) -> Tensor:
        if self.logits:
            return (hidden.detach() @ weight.detach().t()).double().log_softmax(-1)
        return (hidden.detach().double() @ weight.detach().double().t()).log_softmax(-1)

    def run(self) -> None:
        student = self.project(self.hidden, self.weight)
        teacher = self.project(self.other, self.teacher_weight)
        p, q = student.exp(), teacher.exp()
        if self.kind == "fkl":
            gradient = p - q
        elif self.kind == "rkl":
            push = student - teacher
            gradient = p * (push - (p * push).sum(-1, keepdim=True))
        else:
            push = (student - torch.logaddexp(student, teacher) + math.log(2.0)) / 2
            gradient = p * (push - (p * push).sum(-1, keepdim=True))
        gradient /= self.n
        self.loss = float(divergence(self.kind, teacher, student).mean())
        self.exact = {"hidden": gradient @ self.weight.detach().double(), "weight": gradient.t() @ self.hidden.double()}

    def save(self, path: str) -> None:
        kept = {name: x.detach() for name, x in self.exact.items()}
        torch.save({**kept, "loss": torch.tensor(self.loss, dtype=torch.float64)}, path)


class Compared:
    """How far saved gradients are from the exact ones."""

    def __init__(self, exact: str, others: dict[str, str]) -> None:
        self.exact, self.others = exact, others

    def run(self) -> None:
        truth = torch.load(self.exact, weights_only=True)
        self.found: dict[str, dict[str, float]] = {}
        for name, path in self.others.items():
            mine = torch.load(path, weights_only=True)
            self.found[name] = {
                key: float((mine[key].double() - truth[key]).norm() / truth[key].norm()) for key in truth if key in mine
            }

    def facts(self) -> dict[str, Any]:
        return self.found
