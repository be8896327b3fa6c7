"""Two measures of memory: bytes of tensors alive at once, and how far the resident set grew."""

from __future__ import annotations

import contextlib
import weakref
from pathlib import Path

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Peak(TorchDispatchMode):
    """Bytes allocated inside and alive at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.known.update(x.untyped_storage()._cdata for x in args if isinstance(x, Tensor))
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(key)
                self.alive += storage.nbytes()
                self.most = max(self.most, self.alive)
                weakref.finalize(storage, self.drop, key, storage.nbytes())
        return out

    def drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def resident(most: bool = False) -> int:
    """Bytes of this process in memory now, or at most since `forget_most`. 0 where the kernel does not say."""
    name = "VmHWM:" if most else "VmRSS:"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
    return 0


def forget_most() -> None:
    """Start the maximum anew (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def available() -> int:
    """Bytes that could be allocated without pushing anything out; 0 where the kernel does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0
