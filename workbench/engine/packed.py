"""Linear layers for decoding on a CPU: weights laid out once for the products that every step repeats.

A step multiplies a few rows by every weight of the model, and a third of such a product goes into bringing the weight
into the order the kernel wants. oneDNN takes weights that are in that order already. They cost a second copy of the
weights while decoding lasts, so they are made where that is a small part of the machine's memory; elsewhere, and for
anything but float32 on a CPU, layers stay what they are. A product is the same sum in another order, so what decides
must be the same after a resume: the size of the memory, never what is free of it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from workbench.divergence import Head

Projection = Callable[[Tensor], Tensor]

_SHARE = 16
"""The copy may take one part in this many of the machine's memory."""
_ROWS = 32
"""The number of rows the layout is made for; others work."""


class Packing:
    """A decoder's linear layers on packed weights, for as long as it is entered; as often as one likes.

    Between two times the module is what it was. It holds the weights as they were when it was made.
    """

    def __init__(self, decoder: nn.Module, head: Head) -> None:
        """Lay the weights out; `project` turns hidden states to logits, without gradient."""
        layers = [
            m for m in decoder.modules() if type(m) is nn.Linear and "forward" not in m.__dict__ and _fits(m.weight)
        ]
        bare = all(x is None for x in (head.bias, head.softcap, head.low_rank))
        plain = bare and head.scale == head.temperature == 1.0
        weights = [m.weight for m in layers] + ([head.weight] if plain and _fits(head.weight) else [])
        self.project: Projection = head.logits
        self.packs_head = False
        """Whether `project` is a product of its own; else it is the head's."""
        self._layers: list[tuple[nn.Module, Projection]] = []
        if not weights or not _supported() or _SHARE * sum(w.nbytes for w in weights) > _memory():
            return
        self._layers = [(layer, _product(layer.weight, layer.bias)) for layer in layers]
        if len(weights) > len(layers):
            self.project, self.packs_head = _product(head.weight, None), True

    def __enter__(self) -> Projection:
        """What turns hidden states to logits."""
        for layer, product in self._layers:  # an attribute of the instance hides the method of its class
            layer.__dict__["forward"] = product
        return self.project

    def __exit__(self, *_: object) -> None:
        """The layers are their own again."""
        for layer, _product in self._layers:
            layer.__dict__.pop("forward", None)


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the second copy that decoding with all of `model` makes; 0 where it makes none."""
    layers = [m.weight for m in model.modules() if type(m) is nn.Linear and _fits(m.weight)]
    size = sum(weight.nbytes for weight in layers)
    return size if _supported() and _SHARE * size <= _memory() else 0


def _product(weight: Tensor, bias: Tensor | None) -> Projection:
    """What maps x to x W^T + b."""
    ops = torch.ops.mkldnn
    order = ops._reorder_linear_weight(weight.detach(), _ROWS)
    offset = None if bias is None else bias.detach()

    def product(x: Tensor) -> Tensor:
        return ops._linear_pointwise(x, order, offset, "none", [], "")

    return product


def _fits(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu"


@functools.cache
def _supported() -> bool:
    """Whether this torch has the operator and it is right."""
    x, weight = torch.ones(2, 3), nn.Parameter(torch.arange(12.0).view(4, 3))
    try:
        return bool(torch.equal(_product(weight, None)(x), x @ weight.detach().t()))
    except (AttributeError, RuntimeError):
        return False


def _memory() -> int:
    """Bytes of memory; 0 where the system does not say."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0
