"""The fused loss beside its matrix products while working on it; `run.py` is what is reported.

    python benchmarks/fused.py [--tokens 512 2048] [--repeat 5] [--vocabulary 49152] [--width 576] [--only jsd]

One thread and process CPU time, because machines are shared; the products alone are timed directly before and after
every cell, and a cell's figure is its time over their mean: median of the repetitions, [least, greatest]. Plain
autograd materialises logits and is skipped where they would not fit. Peak memory is what was allocated inside and alive
at once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from memory import Peak
from torch import Tensor
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from workbench.divergence import (
    JSD,
    Divergence,
    EntryClipped,
    ForwardKL,
    Head,
    Options,
    Part,
    ReverseKL,
    Scored,
    TokenRows,
    fused_loss,
)
from workbench.engine.allocator import retain_heap

PLAIN_LIMIT = 1024
"""Tokens above which full logits are not tried."""


class Case:
    """Hidden states, heads and one divergence; every way to its gradient."""

    def __init__(self, n: int, vocabulary: int, width: int, divergence: Divergence, frozen: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(n, width, generator=generator)
        self.weight = (torch.randn(vocabulary, width, generator=generator) * 0.15).requires_grad_(not frozen)
        self.hidden = base.clone().requires_grad_()
        self.other = base + 0.3 * torch.randn(n, width, generator=generator)
        self.teacher_weight = self.weight.detach()
        self.divergence, self.n, self.frozen = divergence, n, frozen
        ids = torch.randint(0, vocabulary, (n,), generator=generator)
        self.rows = TokenRows(ids, torch.arange(n), torch.zeros(n), torch.zeros(n))

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def ours(self) -> None:
        student, teacher = Scored(self.hidden, Head(self.weight)), Scored(self.other, Head(self.teacher_weight))
        part = Part(torch.full((self.n,), 1 / self.n), self.divergence)
        fused_loss(student, teacher, self.rows, [part], Options()).loss.backward()

    def dense(self, hidden: Tensor, other: Tensor) -> Tensor:
        student = (hidden @ self.weight.t()).log_softmax(-1)
        with torch.no_grad():
            teacher = (other @ self.teacher_weight.t()).log_softmax(-1)
        return self.divergence(teacher, student).sum() / self.n

    def plain(self) -> None:
        self.dense(self.hidden, self.other).backward()

    def checkpointed(self) -> None:
        chunks = zip(self.hidden.split(256), self.other.split(256), strict=True)
        sum(checkpoint(self.dense, h, o, use_reentrant=False) for h, o in chunks).backward()

    def products(self, tile: Tensor) -> None:
        """The four products (three with a frozen head) alone, by 256 tokens, in the layout ours uses."""
        weight, gradient = self.weight.detach(), None if self.frozen else torch.zeros_like(self.weight)
        for h, o in zip(self.hidden.detach().split(256), self.other.split(256), strict=True):
            z = tile[: len(weight) * len(h)].view(len(weight), len(h))
            torch.mm(self.teacher_weight, o.t(), out=z)
            torch.mm(weight, h.t(), out=z)
            torch.mm(z.t(), weight)
            if gradient is not None:
                gradient.addmm_(z, h)


def seconds(function: Callable[[], None]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(case: Case, name: str, tile: Tensor, repeat: int) -> str:
    way = getattr(case, name)
    way(), case.clear()
    ratios = []
    for _ in range(repeat):
        before = seconds(lambda: case.products(tile))
        ours = seconds(way)
        case.clear()
        ratios.append(2 * ours / (before + seconds(lambda: case.products(tile))))
    case.clear()
    with Peak() as peak:
        way()
    case.clear()
    return f"{statistics.median(ratios):5.2f} [{min(ratios):.2f}, {max(ratios):.2f}] x floor {peak.most / 1e6:8.0f} MB"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--tokens", type=int, nargs="+", default=[512])
    ask.add_argument("--repeat", type=int, default=5)
    ask.add_argument("--vocabulary", type=int, default=49152)
    ask.add_argument("--width", type=int, default=576)
    ask.add_argument("--only", default="", help="cells whose name contains this")
    ask.add_argument("--ours", action="store_true", help="no comparisons")
    given = ask.parse_args()
    torch.set_num_threads(1)
    retained = retain_heap()
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, heap retained: {retained}")
    print(f"V = {given.vocabulary}, H = {given.width}, float32, one thread; floor: the matrix products alone")
    cells = {
        "jsd": (JSD(), False),
        "forward kl": (ForwardKL(), False),
        "reverse kl": (ReverseKL(), False),
        "jsd, frozen head": (JSD(), True),
        "clipped forward kl": (EntryClipped(ForwardKL(), 0.05), False),
    }
    tile = torch.empty(given.vocabulary * 256)
    for n in given.tokens:
        for name, (divergence, frozen) in cells.items():
            if given.only not in name:
                continue
            case = Case(n, given.vocabulary, given.width, divergence, frozen)
            for way in ("ours",) if given.ours else ("ours", "plain", "checkpointed"):
                if way == "plain" and n > PLAIN_LIMIT:
                    continue
                print(f"N = {n:5d}  {name:20s} {way:14s} {measure(case, way, tile, given.repeat)}", flush=True)


if __name__ == "__main__":
    main()
