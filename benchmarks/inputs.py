"""What the loss ways share: hidden states and heads from a file (see `states.py`), and where the gradients are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Inputs:
    """The first `n` tokens of a case. Weights are mapped, not read: processes share their pages."""

    def __init__(self, case: str, n: int, frozen: bool = False, valid: int | None = None) -> None:
        """`valid`: of the n positions this many count, as the first ones of 8 rows of uneven length."""
        kept = torch.load(case, mmap=True, weights_only=True)
        self.n, self.frozen = n, frozen
        self.hidden = kept["hidden"][:n].clone().requires_grad_()
        self.other = kept["other"][:n].clone()
        self.ids = kept["ids"][:n].clone()
        self.weight: Tensor = kept["weight"].requires_grad_(not frozen)
        self.teacher_weight: Tensor = kept["teacher_weight"]
        self.mask = torch.ones(n, dtype=torch.long) if valid is None else uneven(n, valid)
        self.count = int(self.mask.sum())
        self.loss = 0.0

    def backward(self, loss: Tensor) -> None:
        """What every way ends with."""
        loss.backward()
        self.loss = float(loss)

    def facts(self) -> dict[str, Any]:
        return {"loss": self.loss}

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def save(self, path: str) -> None:
        gradients = {"hidden": self.hidden.grad, "loss": torch.tensor(self.loss, dtype=torch.float64)}
        if not self.frozen:
            gradients["weight"] = self.weight.grad
        torch.save(gradients, path)


def uneven(n: int, valid: int, rows: int = 8) -> Tensor:
    """(n,) a mask of `rows` padded rows: one is full, the others are short, `valid` positions in all."""
    width = n // rows
    rest = valid - width
    mask = torch.zeros(rows, width, dtype=torch.long)
    mask[0] = 1
    for row in range(1, rows):
        length = min(width, max(1, round(2 * rest * row / (rows * (rows - 1)))))
        mask[row, :length] = 1
    return mask.flatten()
