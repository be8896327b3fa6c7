"""The fused loss on a GPU: milliseconds beside those of its four matrix products alone, and of plain autograd.

    python benchmarks/gpu.py [--tokens 1024 8192] [--repeat 10] [--vocabulary 128256] [--width 4096] [--only jsd]

Bfloat16, forward and backward, by CUDA events; the products are timed directly before and after every repetition, in
the chunks that ours takes, and a figure is its time over their mean: median of the repetitions, [least, greatest].
"uncompiled" runs the elementwise passes one by one. Plain autograd holds whole logits and may not fit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from workbench.divergence import (
    JSD,
    Divergence,
    ForwardKL,
    Head,
    Part,
    ReverseKL,
    Scored,
    TokenRows,
    compiled,
    fused_loss,
)
from workbench.divergence.fused import tokens_in
from workbench.divergence.heads import accumulate, product
from workbench.divergence.layouts import GPU_TILE_BYTES

DIVERGENCES = {"jsd": JSD(), "forward kl": ForwardKL(), "reverse kl": ReverseKL()}


class Case:
    """Hidden states, heads and one divergence; every way to its gradient."""

    def __init__(self, n: int, vocabulary: int, width: int, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            numbers = torch.empty(shape, device=device, dtype=torch.bfloat16)
            return numbers.normal_(generator=generator).mul_(scale)

        self.n, hidden = n, draw(n, width)
        self.hidden = hidden.clone().requires_grad_()
        self.other = hidden + 0.3 * draw(n, width)
        self.weight = draw(vocabulary, width, scale=2 * width**-0.5).requires_grad_()
        self.teacher_weight = self.weight.detach().clone()
        ids = torch.randint(0, vocabulary, (n,), generator=generator, device=device)
        zeros = torch.zeros(n, device=device)
        self.rows, self.each = TokenRows(ids, torch.arange(n, device=device), zeros, zeros), zeros + 1 / n
        self.divergence: Divergence = JSD()

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def compiled(self) -> None:
        student, teacher = Scored(self.hidden, Head(self.weight)), Scored(self.other, Head(self.teacher_weight))
        fused_loss(student, teacher, self.rows, [Part(self.each, self.divergence)]).loss.backward()

    def uncompiled(self) -> None:
        with mock.patch.object(compiled, "works", return_value=False):
            self.compiled()

    def plain(self) -> None:
        """Float32 log-probs of bfloat16 logits, as trainers do it."""
        student = (self.hidden @ self.weight.t()).float().log_softmax(-1)
        with torch.no_grad():
            teacher = (self.other @ self.teacher_weight.t()).float().log_softmax(-1)
        self.divergence(teacher, student).mean().backward()

    def products(self, tile: Tensor, sums: Tensor, back: Tensor) -> None:
        """The four, chunk by chunk; the operand of the last two is what lies in memory, rounded once beforehand."""
        size = len(tile)
        with torch.no_grad():
            for h, o in zip(self.hidden.split(size), self.other.split(size), strict=True):
                z, operand = tile[: len(h)], self.operand[: len(h)]
                product(o, self.teacher_weight.t(), z)
                product(h, self.weight.t(), z)
                product(operand, self.weight, back[: len(h)])
                accumulate(sums, operand.t(), h)


def milliseconds(function: Callable[[], None]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def measure(case: Case, name: str, repeat: int, floor: Callable[[], None]) -> str:
    """A line: milliseconds, ratio to the products, peak bytes."""
    way = getattr(case, name)
    for _ in range(2):  # compiles, and fills the allocator
        way()
        case.clear()
    floor()
    times, floors = [], []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(repeat):
        before = milliseconds(floor)
        times.append(milliseconds(way))
        case.clear()
        floors.append((before + milliseconds(floor)) / 2)
    ratios = [ours / products for ours, products in zip(times, floors, strict=True)]
    spread = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
    return (
        f"{statistics.median(times):8.2f} ms   products {statistics.median(floors):8.2f} ms"
        f"   {statistics.median(ratios):5.2f} {spread} x products"
        f"   peak {torch.cuda.max_memory_allocated() / 1e9:5.1f} GB"
    )


def run(given: argparse.Namespace, n: int) -> None:
    """All divergences and ways at one number of tokens."""
    device, v = torch.device("cuda"), given.vocabulary
    case, chunk = Case(n, v, given.width, device), min(n, tokens_in(GPU_TILE_BYTES, v))
    tile = torch.empty(chunk, v, device=device)
    case.operand = torch.randn(chunk, v, device=device, dtype=torch.bfloat16)
    sums, back = torch.zeros(v, given.width, device=device), torch.empty(chunk, given.width, device=device)
    for name, divergence in DIVERGENCES.items():
        case.divergence = divergence
        for way in ("compiled", "uncompiled", "plain"):
            if given.only not in name or (way == "compiled" and not compiled.works(device)):
                continue
            try:
                line = measure(case, way, given.repeat, lambda: case.products(tile, sums, back))
            except torch.OutOfMemoryError:
                line = "does not fit"
                case.clear()
                torch.cuda.empty_cache()
            print(f"N = {n:5d}  {name:12s} {way:12s} {line}", flush=True)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--tokens", type=int, nargs="+", default=[1024, 8192])
    ask.add_argument("--repeat", type=int, default=10)
    ask.add_argument("--vocabulary", type=int, default=128_256)
    ask.add_argument("--width", type=int, default=4096)
    ask.add_argument("--only", default="", help="divergences whose name contains this")
    given = ask.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: not run")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    print(
        f"V = {given.vocabulary}, H = {given.width}, bfloat16, forward and backward; peak includes inputs and products"
    )
    for n in given.tokens:
        run(given, n)


if __name__ == "__main__":
    main()
