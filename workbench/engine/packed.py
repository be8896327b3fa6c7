"""Linear layers for decoding on a CPU: weights laid out once for the products that every step repeats.

A step multiplies a few rows by every weight of the model, and a third of such a product goes into bringing the weight
into the order the kernel wants. oneDNN takes weights that are in that order already. They cost a second copy of the
weights while decoding lasts, so they are made where that is a small part of the machine's memory; elsewhere, and for
anything but float32 on a CPU, layers stay what they are. A product is the same sum in another order, so what decides
must be the same after a resume: the size of the memory, never what is free of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from workbench.divergence import Head
from workbench.divergence.products import constant, fits

Projection = Callable[[Tensor], Tensor]

_SHARE = 16
"""The copy may take one part in this many of the machine's memory."""


@contextlib.contextmanager
def packed(decoder: nn.Module, head: Head) -> Iterator[Projection]:
    """Run the decoder's linear layers on packed weights, without gradient; gives what turns hidden states to logits."""
    layers = [m for m in decoder.modules() if type(m) is nn.Linear and "forward" not in m.__dict__ and fits(m.weight)]
    plain = head.bias is None and head.softcap is None and head.scale == head.temperature == 1.0
    weights = [m.weight for m in layers] + ([head.weight] if plain and fits(head.weight) else [])
    if not weights or _SHARE * sum(w.nbytes for w in weights) > _memory():
        yield head.logits
        return
    try:
        for layer in layers:  # an attribute of the instance hides the method of its class
            layer.__dict__["forward"] = constant(layer.weight, layer.bias)
        yield constant(head.weight) if len(weights) > len(layers) else head.logits
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _memory() -> int:
    """Bytes of memory; 0 where the system does not say."""
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0
