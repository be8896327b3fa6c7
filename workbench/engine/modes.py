"""How a module is run: without dropout, for decoding, by one optimizer kernel; and what says that it did not fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Decoding keeps a cache, which HF refuses while it checkpoints activations."""
    training = model.training
    if not training:  # walking through every module at every token costs a tenth of a live rollout
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def without_dropout(model: Any) -> None:
    """No draws of torch's in a forward pass: ours are functions of the seed."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def can_fuse(parameters: list[Tensor]) -> bool:
    """Whether AdamW can run as one kernel."""
    return all(p.device.type in {"cpu", "cuda"} and p.is_floating_point() for p in parameters)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on the CPU torch raises a plain RuntimeError for it."""
    said = isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "not enough memory" in str(error)
    )
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))
