"""How fast this machine is at the two things a step is made of: products of matrices, and reading weights.

Both are measured on the run's own device and weights, in a fraction of a second, so that a phase can be given as a
multiple of what the machine could do at best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from workbench.engine.replicas import held

_SIDE, _SIDE_ON_DEVICE = 768, 8192
"""Of the square matrices multiplied."""
_READ = 1 << 28
"""Bytes of weights read, at most."""
_TIMES = 3
"""The best of so many counts: whatever else the machine does only slows."""


@dataclass(frozen=True)
class Machine:
    """Rates at best."""

    flops: float
    """Of a matrix product, FLOP/s, in the type that products are computed in."""
    bytes: float
    """Of weights multiplied by one vector, byte/s."""

    def seconds(self, flops: float, size: float = 0.0) -> float:
        """The least that so many FLOPs on so many bytes take: whichever takes longer."""
        return max(flops / self.flops, size / self.bytes)

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@torch.no_grad()
def measured(model: Any, device: torch.device) -> Machine:
    """Time both on `device` with the weights of `model`."""
    weights = [held(p.detach()) for p in model.parameters() if p.ndim == 2]
    on_device = device.type == "cuda"
    kind = torch.bfloat16 if on_device else weights[0].dtype
    side = _SIDE_ON_DEVICE if on_device else _SIDE
    left = torch.ones(side, side, dtype=kind, device=device)
    right, out = left.clone(), left.clone()
    product = _best(lambda: torch.mm(left, right, out=out), device)
    chosen, size = [], 0
    for weight in sorted(weights, key=torch.numel, reverse=True):
        if size < _READ:
            chosen.append((weight, torch.ones(weight.shape[1], dtype=weight.dtype, device=weight.device)))
            size += weight.nbytes
    read = _best(lambda: [weight @ vector for weight, vector in chosen], device)
    return Machine(2.0 * side**3 / product, size / read)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds; the first time is not counted."""
    found = []
    for _ in range(_TIMES + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return max(min(found[1:]), 1e-9)
