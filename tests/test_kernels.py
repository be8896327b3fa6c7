"""Compiled passes say what uncompiled ones say: every member is traced in one piece, here by no real compiler."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_fused import MIXTURES, H, N, Setting, V, advantage, entropy_gate, gradients, setting
from workbench.divergence import (
    ALL,
    JSD,
    AdaptiveKL,
    Divergence,
    EntryClipped,
    ForwardKL,
    Loss,
    LowRank,
    Options,
    Part,
    ReverseKL,
    Scored,
    SkewReverseKL,
    SparseTeacher,
    compiled,
    fused_loss,
    layouts,
    reference_loss,
    weighted,
)
from workbench.divergence.fused import tokens_in


@pytest.fixture(autouse=True)
def rows_of_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layout, in blocks of five tokens where nothing is compiled."""
    monkeypatch.setattr(layouts, "layout_for", lambda device: layouts.Rows)
    monkeypatch.setattr(layouts, "GPU_BLOCK", V * 5)


@pytest.fixture
def anew() -> Iterator[None]:
    """Nothing compiled before or after."""
    compiled.forget()
    yield
    compiled.forget()


def compiling(monkeypatch: pytest.MonkeyPatch, backend: object) -> None:
    """As on CUDA, by a backend that needs no compiler: the whole graph or an error."""
    monkeypatch.setattr(compiled, "works", lambda device: True)
    monkeypatch.setattr(compiled, "BACKEND", backend)
    monkeypatch.setattr(compiled, "_fail", lambda what, error: pytest.fail(f"{what}: {error}"))


def same(ours: Loss, theirs: Loss, at: Setting) -> None:
    """Loss, values, statistics and gradients, to rounding."""

    def close(a: Tensor | None, b: Tensor | None) -> None:
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12, equal_nan=True)

    for name in ("loss", "values", "weights", "turned"):
        close(getattr(ours, name), getattr(theirs, name))
    for name in ("student_logp", "teacher_logp", "student_entropy", "teacher_entropy"):
        close(getattr(ours.stats, name), getattr(theirs.stats, name))
    for mine, other in zip(gradients(at, ours.loss), gradients(at, theirs.loss), strict=True):
        close(mine, other)


def both(
    monkeypatch: pytest.MonkeyPatch, at: Setting, parts: list[Part], options: Options, backend: object = "aot_eager"
) -> None:
    """Uncompiled and compiled."""
    given = at.student, at.teacher, at.rows, parts, options
    plain = fused_loss(*given)
    compiling(monkeypatch, backend)
    same(fused_loss(*given), plain, at)


every = pytest.mark.parametrize("divergence", ALL, ids=str)


def sparse(at: Setting, k: int = 5) -> SparseTeacher:
    assert isinstance(at.teacher, Scored)
    return SparseTeacher.of(at.teacher, k, written=at.rows.ids)


# "eager" runs the graph as traced; "aot_eager" also takes it apart as a compiler does: no writes in place, no views.


@every
def test_every_divergence_is_traced_whole(divergence: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    at = setting()
    both(monkeypatch, at, [Part(at.weight, divergence)], Options(chunk=16), "eager")


@every
def test_every_divergence_of_a_sparse_teacher(divergence: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    at = setting()
    at = replace(at, teacher=sparse(at))
    both(monkeypatch, at, [Part(at.weight, divergence)], Options(chunk=16, entropies=True))


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
def test_mixtures(mixture: str, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entropies, clips of tokens and entries, gates, several parts, parts without a teacher."""
    at = setting()
    parts = MIXTURES[mixture](at)
    at = at if dense else replace(at, teacher=sparse(at))
    both(monkeypatch, at, parts, Options(token_weight=entropy_gate if dense else None, entropies=True, chunk=16))


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
def test_heads(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale, cap, temperature, bias, low rank, and (dense) a temperature a token."""
    at = setting(scale=0.6, softcap=2.0, temperature=1.7)
    generator = torch.Generator().manual_seed(1)
    down, up = (torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in ((3, H), (V, 3)))
    at.student = replace(at.student, head=replace(at.student.head, low_rank=LowRank(down, up, 0.3)))
    warmth = torch.rand(N, generator=generator, dtype=torch.float64) + 0.5
    at = replace(at, rows=replace(at.rows, temperature=warmth)) if dense else replace(at, teacher=sparse(at))
    at.parameters = lambda: [at.student.hidden, at.student.head.bias, down, up]  # type: ignore[method-assign]
    both(monkeypatch, at, [Part(at.weight, JSD()), Part(at.weight, sampled=advantage)], Options(chunk=16))


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
def test_low_precision_operands_round_last(dense: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are off by their own rounding and that of the operand, whoever runs the passes."""
    at = setting(dtype=torch.bfloat16, bias=bias)
    at.weight = at.weight.float()
    at = at if dense else replace(at, teacher=sparse(at))
    given = at.student, at.teacher, at.rows, [Part(at.weight, JSD()), Part(at.weight, sampled=advantage)]
    exact = gradients(at, reference_loss(*given).loss)

    def check() -> None:
        out = fused_loss(*given, Options(chunk=16))
        assert out.loss.dtype == torch.float32
        for mine, truth in zip(gradients(at, out.loss), exact, strict=True):
            assert mine.dtype == torch.bfloat16
            assert (mine.double() - truth).norm() < 2**-8 * truth.double().norm()

    check()
    compiling(monkeypatch, "aot_eager")
    check()


@pytest.mark.parametrize("divergence", [AdaptiveKL(), EntryClipped(AdaptiveKL(head="smallest_set"))], ids=str)
def test_as_many_entries_are_sorted_as_it_takes(divergence: Divergence, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many depends on the numbers; the trace holds all the same."""
    monkeypatch.setattr(weighted, "FEW", 3)
    at = setting()
    both(monkeypatch, at, [Part(at.weight, divergence)], Options(chunk=16))


# What is compiled, and how often.


class Counting:
    """A backend that runs the graph as it is, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return graph.forward


def test_another_number_of_tokens_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch, anew: None) -> None:
    backend, counts = Counting(), []
    compiling(monkeypatch, backend)
    for n in (37, 20, 33, 2):
        at = setting(n)
        fused_loss(at.student, at.teacher, at.rows, [Part(at.weight, JSD())], Options(chunk=64))
        counts.append(backend.graphs)
    assert counts == [3, 3, 3, 3]  # scan, comparison, gradient


def test_a_parameter_that_moves_is_exact_and_compiled_so_often(
    monkeypatch: pytest.MonkeyPatch, anew: None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "VALUES", 3)
    backend, at = Counting(), setting()
    compiling(monkeypatch, backend)
    for step in range(5):
        parts = [Part(at.weight, SkewReverseKL(teacher_weight=0.2 + 0.1 * step))]
        with monkeypatch.context() as plain:
            plain.setattr(compiled, "works", lambda device: False)
            expected = fused_loss(at.student, at.teacher, at.rows, parts, Options(chunk=16))
        same(fused_loss(at.student, at.teacher, at.rows, parts, Options(chunk=16)), expected, at)
    assert backend.graphs == 1 + 3 * 2
    notes = [r.getMessage() for r in caplog.records if r.name == compiled.__name__]
    assert len(notes) == 2  # one of the comparison, one of the gradient
    assert all("3 sets of parameters" in note for note in notes)


def refuses(graph: Any, inputs: list[Tensor]) -> Any:
    raise RuntimeError("no C compiler found")


@pytest.mark.parametrize("tried", [True, False], ids=["found by a trial", "found at work"])
def test_without_a_compiler_everything_is_computed_and_one_note_says_so(
    tried: bool, monkeypatch: pytest.MonkeyPatch, anew: None, caplog: pytest.LogCaptureFixture
) -> None:
    at = setting()
    given = at.student, at.teacher, at.rows, [Part(at.weight, EntryClipped(ReverseKL(), 0.02))], Options(chunk=16)
    plain = [fused_loss(*given) for _ in range(2)]
    monkeypatch.setattr(compiled, "BACKEND", refuses)
    monkeypatch.setattr(compiled, "works", compiled.compiles if tried else lambda device: True)
    for expected in plain:
        same(fused_loss(*given), expected, at)
    notes = [r for r in caplog.records if r.name == compiled.__name__]
    assert len(notes) == 1
    assert notes[0].levelno == logging.WARNING
    assert "no C compiler" in notes[0].getMessage()


def test_errors_that_are_no_compiler_s_are_not_hidden(monkeypatch: pytest.MonkeyPatch, anew: None) -> None:
    def full(graph: Any, inputs: list[Tensor]) -> Any:
        def run(*given: Any) -> Any:
            raise torch.OutOfMemoryError("out of memory")

        return run

    compiling(monkeypatch, full)
    at = setting()
    with pytest.raises(torch.OutOfMemoryError):
        fused_loss(at.student, at.teacher, at.rows, [Part(at.weight, ForwardKL())], Options(chunk=16))


def test_nothing_is_compiled_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any, **named: Any) -> Any:
        pytest.fail("torch.compile was called")

    monkeypatch.undo()  # the machine's own layout
    monkeypatch.setattr(torch, "compile", never)
    at = setting()
    assert layouts.layout_for(at.student.hidden.device) is layouts.Columns
    for kind in (layouts.Columns, layouts.Rows):
        monkeypatch.setattr(layouts, "layout_for", lambda device, kind=kind: kind)
        fused_loss(at.student, at.teacher, at.rows, [Part(at.weight, AdaptiveKL())], Options(chunk=16))


# How much of the vocabulary's logits exists at once.


@pytest.mark.parametrize("vocabulary", [1_000, 32_000, 49_152, 128_256, 151_936, 262_144, 2_000_000])
def test_chunk_comes_from_bytes(vocabulary: int) -> None:
    """A multiple of 128 in its bounds, and as large as the bytes allow."""
    room = layouts.GPU_TILE_BYTES
    tokens = tokens_in(room, vocabulary)
    assert tokens % 128 == 0
    assert 512 <= tokens <= 4096
    assert tokens == 512 or 8 * tokens * vocabulary <= room
    assert tokens == 4096 or 8 * (tokens + 128) * vocabulary > room


def test_chunk_of_the_target() -> None:
    """V = 128,256: four chunks of 8,192 tokens, one of 1,024; half the bytes are half the tokens."""
    assert tokens_in(layouts.GPU_TILE_BYTES, 128_256) == 2048
    assert tokens_in(layouts.GPU_TILE_BYTES // 2, 128_256) == 1024
