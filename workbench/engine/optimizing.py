"""AdamW on what trains: one update a step, skipped and counted where the gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.engine.modes import can_fuse
from workbench.engine.replicas import whole
from workbench.errors import TrainingError
from workbench.recipe import Optimizer


class Updates:
    """The optimizer of one module."""

    def __init__(self, student: Any, settle: Callable[[], None]) -> None:
        """`student` is the module whose parameters with `requires_grad` are moved; `settle` comes before each look."""
        self._student, self._settle = student, settle
        self._adamw: torch.optim.AdamW | None = None
        self.skipped = 0
        """Updates in a row that a non-finite gradient cost."""

    def parameters(self) -> dict[str, Tensor]:
        """What trains, by name; a tied weight stands once. A rank that keeps a part of each has that part."""
        self._settle()
        return {name: p for name, p in self._student.named_parameters() if p.requires_grad}

    def adamw(self, optimizer: Optimizer) -> torch.optim.AdamW:
        """The optimizer, made when it is first needed."""
        if self._adamw is None:
            trained = list(self.parameters().values())
            self._adamw = torch.optim.AdamW(
                trained, lr=0.0, weight_decay=optimizer.weight_decay, fused=can_fuse(trained)
            )
        return self._adamw

    def step(self, optimizer: Optimizer) -> float:
        """One AdamW step on the gathered gradients; returns their norm before clipping.

        A non-finite norm skips the step, which is counted; three in a row raise TrainingError.
        """
        adamw, named = self.adamw(optimizer), self.parameters()
        total = whole(torch.nn.utils.get_total_norm([p.grad for p in named.values() if p.grad is not None]))
        norm, first = float(total), ""
        if math.isfinite(norm):
            assert isinstance(optimizer.lr, (int, float)), "Recipe.at has replaced schedules by numbers"
            torch.nn.utils.clip_grads_with_norm_(list(named.values()), optimizer.max_grad_norm, total)
            for group in adamw.param_groups:
                group["lr"], group["weight_decay"] = float(optimizer.lr), optimizer.weight_decay
            adamw.step()
            self.skipped = 0
        else:
            self.skipped += 1
            bad = (n for n, p in named.items() if p.grad is not None and not whole(p.grad).isfinite().all())
            first = next(bad, "the sum")
        self.forget()
        if self.skipped >= 3:
            raise TrainingError(
                f"the gradient was not finite in 3 steps in a row (norm {norm}, first in {first}). "
                "These steps changed nothing. Lower --lr, or look at the rollouts."
            )
        return norm

    def forget(self) -> None:
        """Drop gathered gradients: before a step, and before a batch is tried again in smaller pieces."""
        for p in self.parameters().values():
            p.grad = None
