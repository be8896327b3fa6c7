"""What only an accelerator can show: compiled passes, low-precision products, memory, a real step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import build_tiny
from workbench import opsd
from workbench.divergence import (
    ALL,
    JSD,
    Divergence,
    EntryClipped,
    ForwardKL,
    Head,
    Loss,
    Options,
    Part,
    ReverseKL,
    Scored,
    SparseTeacher,
    TokenRows,
    compiled,
    fused_loss,
    reference_loss,
)
from workbench.divergence.fused import tokens_in
from workbench.divergence.layouts import GPU_TILE_BYTES
from workbench.records import TokenStats
from workbench.train.run_directory import read_jsonl

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand"),
    pytest.mark.filterwarnings("default"),  # a compiler warns of what it could do better
]

every = pytest.mark.parametrize("divergence", ALL, ids=str)


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Float32 products are float32's."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@dataclass
class Case:
    """Everything a loss takes."""

    student: Scored
    teacher: Scored | SparseTeacher
    rows: TokenRows
    weight: Tensor

    def run(self, parts: Sequence[Part], options: Options | None = None) -> tuple[Loss, list[Tensor]]:
        """Loss, and gradients in hidden states and head."""
        return self._with_gradients(fused_loss(self.student, self.teacher, self.rows, parts, options))

    def exact(self, parts: Sequence[Part]) -> tuple[Loss, list[Tensor]]:
        """The same in float64."""
        return self._with_gradients(reference_loss(self.student, self.teacher, self.rows, parts))

    def _with_gradients(self, loss: Loss) -> tuple[Loss, list[Tensor]]:
        return loss, list(torch.autograd.grad(loss.loss, (self.student.hidden, self.student.head.weight)))


def case(n: int, v: int, h: int, dtype: torch.dtype, sparse: bool = False) -> Case:
    """Random, the teacher some way off the student."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE)

    hidden, weight = draw(n, h), draw(v, h) * 3 * h**-0.5
    student = Scored(hidden.to(dtype).requires_grad_(), Head(weight.to(dtype).requires_grad_()))
    teacher = Scored((hidden + 0.5 * draw(n, h)).to(dtype), Head(weight.to(dtype)))
    ids = torch.randint(0, v, (n,), generator=generator, device=DEVICE)
    rows = TokenRows(ids, torch.arange(n, device=DEVICE), draw(n), draw(n))
    known = SparseTeacher.of(teacher, 32, written=ids) if sparse else teacher
    return Case(student, known, rows, torch.full((n,), 1 / n, device=DEVICE))


def error(ours: Tensor, exact: Tensor) -> float:
    """Relative."""
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def advantage(stats: TokenStats) -> Tensor:
    return stats.advantage


@every
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_every_divergence_is_the_reference_s(divergence: Divergence, sparse: bool) -> None:
    """To the rounding of float32 logits."""
    at = case(300, 1536, 64, torch.float32, sparse)
    parts = [Part(at.weight, divergence)]
    (ours, gradients), (exact, expected) = at.run(parts, Options(chunk=128)), at.exact(parts)
    torch.testing.assert_close(ours.values.double(), exact.values.double(), rtol=5e-4, atol=2e-5)
    for mine, truth in zip(gradients, expected, strict=True):
        assert error(mine, truth) < 1e-3


@every
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_compiled_passes_say_what_uncompiled_ones_say(
    divergence: Divergence, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled.works(torch.device(DEVICE)):
        pytest.skip("nothing compiles here")
    at = case(300, 1536, 64, torch.float32, sparse)
    parts, options = [Part(at.weight, divergence), Part(at.weight, sampled=advantage)], Options(entropies=True)
    ours, gradients = at.run(parts, options)
    assert compiled._kernels
    assert not compiled._failed
    monkeypatch.setattr(compiled, "works", lambda device: False)
    plain, expected = at.run(parts, options)
    torch.testing.assert_close(ours.values, plain.values, rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(ours.stats.student_entropy, plain.stats.student_entropy, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(gradients, expected, strict=True):
        assert error(mine, theirs) < 1e-4


@pytest.mark.parametrize("n", [1, 2, 127, 300, 1025])
def test_any_number_of_tokens(n: int) -> None:
    at = case(n, 1536, 64, torch.float32)
    parts = [Part(at.weight, JSD())]
    (_, gradients), (_, expected) = at.run(parts, Options(chunk=512)), at.exact(parts)
    for mine, truth in zip(gradients, expected, strict=True):
        assert error(mine, truth) < 1e-3


@pytest.mark.parametrize(
    "divergence", [JSD(), ForwardKL(), ReverseKL(), EntryClipped(ForwardKL(), 0.05)], ids=lambda d: type(d).__name__
)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_bfloat16_agrees_with_float64_to_its_own_rounding(divergence: Divergence, sparse: bool) -> None:
    """Operands and gradients are bfloat16; logits and sums are not, or values would be off by a hundredth."""
    at = case(300, 4096, 256, torch.bfloat16, sparse)
    parts = [Part(at.weight, divergence)]
    (ours, gradients), (exact, expected) = at.run(parts, Options(chunk=128)), at.exact(parts)
    torch.testing.assert_close(ours.values.double(), exact.values.double(), rtol=1e-3, atol=1e-4)
    for mine, truth in zip(gradients, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        assert error(mine, truth) < 2**-7


def test_the_head_s_gradient_is_summed_in_float32() -> None:
    """Two thousand equal tokens in many chunks: sums in bfloat16 would stop growing."""
    at = case(1, 1024, 64, torch.bfloat16)
    many = 2048
    at.student = Scored(at.student.hidden.detach().expand(many, 64).clone().requires_grad_(), at.student.head)
    at.teacher = Scored(at.teacher.hidden.expand(many, 64).clone(), at.teacher.head)
    zeros = torch.zeros(many, device=DEVICE)
    at.rows, at.weight = TokenRows(at.rows.ids.expand(many), zeros.long(), zeros, zeros), zeros + 1
    parts = [Part(at.weight, ForwardKL())]
    assert error(at.run(parts, Options(chunk=4))[1][1], at.exact(parts)[1][1]) < 2**-7


def peak(n: int, v: int, h: int, chunk: int | None) -> int:
    """Bytes a call allocates beside its inputs, when nothing is left to be compiled."""
    at = case(n, v, h, torch.bfloat16)
    parts, options = [Part(at.weight, JSD())], Options(chunk=chunk)
    fused_loss(at.student, at.teacher, at.rows, parts, options)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused_loss(at.student, at.teacher, at.rows, parts, options)
    return torch.cuda.max_memory_allocated() - before - 4 * n * h


def test_memory_is_two_tiles_an_operand_and_the_head_s_gradient() -> None:
    if not compiled.works(torch.device(DEVICE)):
        pytest.skip("nothing compiles here")
    v, h, chunk = 65_536, 256, 1024
    promised = (4 + 4 + 2) * chunk * v + 4 * v * h
    few, many = peak(1024, v, h, chunk), peak(8192, v, h, chunk)
    assert few < 1.1 * promised
    assert many - few < 7168 * 200  # some numbers a token


def test_chunk_by_bytes_keeps_its_bytes() -> None:
    v, h = 32_768, 64
    assert peak(8192, v, h, None) < 1.4 * GPU_TILE_BYTES + 4 * v * h
    assert tokens_in(GPU_TILE_BYTES, v) == 4096


@pytest.mark.parametrize("adapter", ["none", "lora:r=4,alpha=8"])
def test_steps_through_the_engine(adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bfloat16 weights with an adapter, bfloat16 autocast without; two steps, and what they report are numbers."""
    monkeypatch.chdir(tmp_path)
    build_tiny(tmp_path / "tiny")
    flags = "--problems sums --limit 16 --eval-problems 8 --steps 2 --batch 4 --max-new-tokens 8 --lr 1e-3"
    where = ["--model", "./tiny", "--name", "here", "--device", DEVICE]
    assert opsd.main([*where, *flags.split(), "--adapter", adapter]) == 0
    steps = read_jsonl(Path("runs", "here", "metrics.jsonl"))
    assert [row["step"] for row in steps] == [1, 2]
    assert all(math.isfinite(row["loss"]) for row in steps)
