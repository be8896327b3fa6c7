"""Keep freed memory in the process, so that big tensors do not pay for fresh pages again and again.

glibc maps every tensor above 32 MB afresh and gives it back on free. Where a fresh page is dear, as on many virtual
machines, that costs more than the arithmetic (`OPSD_RETAIN_HEAP=0 python benchmarks/fused.py` shows how much). The
price: resident memory never shrinks, and fragments.
"""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4


def retain_heap() -> bool:
    """Tell glibc to keep what is freed; returns whether it did. Linux with glibc only, for CPU runs, once is enough.

    Commands call it unless `OPSD_RETAIN_HEAP=0` is set; importing anything never does. It cannot be undone in a running
    process.
    """
    if sys.platform != "linux" or os.environ.get("OPSD_RETAIN_HEAP") == "0":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings)
