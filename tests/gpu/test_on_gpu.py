"""What only an accelerator can show: bfloat16 against float32, memory flat in tokens, a real step."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import build_tiny
from workbench import opsd
from workbench.divergence import JSD, Head, Options, Part, Scored, TokenRows, fused_loss, reference_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand")]


def request(n: int, v: int, h: int, dtype: torch.dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype)  # noqa: E731
    student = Scored(draw(n, h).requires_grad_(), Head(draw(v, h).mul_(h**-0.5).requires_grad_()))
    teacher = Scored(draw(n, h), Head(draw(v, h).mul_(h**-0.5)))
    zeros = torch.zeros(n, device="cuda")
    rows = TokenRows(torch.zeros(n, dtype=torch.long, device="cuda"), zeros.long(), zeros, zeros)
    return student, teacher, rows, [Part(weight=torch.full((n,), 1 / n, device="cuda"), divergence=JSD(0.5))]


def test_bfloat16_agrees_with_float64_to_its_own_rounding() -> None:
    student, teacher, rows, parts = request(300, 4096, 256, torch.bfloat16)
    out = fused_loss(student, teacher, rows, parts)
    assert float(out.loss) == pytest.approx(float(reference_loss(student, teacher, rows, parts).loss), rel=2e-2)
    out.loss.backward()
    assert student.hidden.grad.isfinite().all()


def test_memory_does_not_grow_with_tokens() -> None:
    peaks = []
    for n in (2048, 8192):
        student, teacher, rows, parts = request(n, 32768, 512, torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        fused_loss(student, teacher, rows, parts, Options(chunk=1024)).loss.backward()
        peaks.append(torch.cuda.max_memory_allocated() - before - 2 * n * 512 * 8)
    assert peaks[1] < 1.2 * peaks[0]


def test_main_job_runs_in_mixed_precision(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    build_tiny(tmp_path / "tiny")
    flags = [
        "--problems",
        "sums",
        "--limit",
        "16",
        "--eval-problems",
        "8",
        "--steps",
        "2",
        "--batch",
        "4",
        "--max-new-tokens",
        "8",
        "--lr",
        "1e-3",
    ]
    for adapter in ("none", "lora:r=4,alpha=8"):
        name = adapter.partition(":")[0]
        assert opsd.main(["--model", "./tiny", *flags, "--adapter", adapter, "--name", name, "--device", "cuda"]) == 0
