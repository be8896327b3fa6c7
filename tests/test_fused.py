"""The hot loop says what the float64 reference says, whatever is asked of it, at the cost it promises."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.divergence import (
    ALL,
    JSD,
    Divergence,
    EntryClipped,
    ForwardKL,
    Head,
    Jeffreys,
    Loss,
    Options,
    Part,
    ReverseKL,
    Scored,
    TokenRows,
    TotalVariation,
    fused,
    fused_loss,
    generic_loss,
    layouts,
    reference_loss,
    tiles,
)
from workbench.errors import UsageError
from workbench.records import Tokens, TokenStats

N, V, H = 37, 61, 12
Path = Callable[..., Loss]


@pytest.fixture(autouse=True)
def one_thread_and_many_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A block boundary inside a small vocabulary, or the block loop would run once."""
    monkeypatch.setattr(layouts, "CPU_BLOCK", 16 * 7)
    monkeypatch.setattr(layouts, "GPU_BLOCK", V * 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["columns", "rows"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both layouts on this machine; the rows are the accelerators'."""
    kind = {"columns": layouts.Columns, "rows": layouts.Rows}[request.param]
    monkeypatch.setattr(layouts, "layout_for", lambda device: kind)
    return request.param


@dataclass
class Setting:
    """Everything a loss takes."""

    student: Scored
    teacher: Scored | None
    rows: TokenRows
    weight: Tensor

    def parameters(self) -> list[Tensor]:
        head = self.student.head
        return [x for x in (self.student.hidden, head.weight, head.bias) if x is not None and x.requires_grad]


def setting(
    n: int = N, dtype: torch.dtype = torch.float64, bias: bool = True, seed: int = 0, **head: object
) -> Setting:
    """Random; the teacher has its own width."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    def role(width: int) -> Scored:
        offset = normal(V) if bias else None
        return Scored(normal(n, width), Head(normal(V, width, scale=width**-0.5), offset, **head))

    student, teacher = role(H), role(H - 3)
    for x in (student.hidden, student.head.weight, student.head.bias):
        if x is not None:
            x.requires_grad_()
    ids = torch.randint(0, V, (n,), generator=generator)
    rows = TokenRows(ids, torch.arange(n), normal(n), normal(n))
    return Setting(student, teacher, rows, torch.rand(n, generator=generator, dtype=torch.float64).to(dtype) + 0.1)


def gradients(at: Setting, loss: Tensor) -> list[Tensor]:
    """By an upstream that is not 1."""
    return list(torch.autograd.grad(loss * 1.7, at.parameters()))


def agree(
    at: Setting, parts: Sequence[Part], options: Options | None = None, path: Path = fused_loss, **close: float
) -> Loss:
    """The path's loss, values, weights, statistics and gradients are the reference's."""
    close = close or {"rtol": 1e-10, "atol": 1e-10}
    arguments = at.student, at.teacher, at.rows, parts, options
    ours, expected = path(*arguments), reference_loss(*arguments)
    live = (
        torch.stack([part.weight != 0 for part in parts]).any(0)
        if parts
        else torch.ones(len(at.weight), dtype=torch.bool)
    )

    def same(a: Tensor | None, b: Tensor | None) -> None:
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a.double(), b.double(), **close)

    same(ours.loss.detach(), expected.loss.detach())
    for part, mine, theirs in zip(parts, ours.values, expected.values, strict=True):
        same(mine[live], theirs[live])
        assert part.weight.shape == mine.shape
    same(ours.weights, expected.weights)
    same(ours.stats.student_logp[live], expected.stats.student_logp[live])
    if at.teacher is not None:
        assert ours.stats.teacher_logp is not None
        same(ours.stats.teacher_logp[live], expected.stats.teacher_logp[live])
    if options is not None and options.entropies:
        same(ours.stats.student_entropy[live], expected.stats.student_entropy[live])
    for mine, theirs in zip(gradients(at, ours.loss), gradients(at, expected.loss), strict=True):
        same(mine, theirs)
    return ours


def ones(stats: TokenStats) -> Tensor:
    return torch.ones_like(stats.student_logp)


def advantage(stats: TokenStats) -> Tensor:
    return stats.advantage


def entropy_gate(stats: TokenStats) -> Tensor:
    assert stats.teacher_entropy is not None
    assert stats.student_entropy is not None
    return stats.teacher_entropy / (1.0 + stats.student_entropy)


def some_dead(weight: Tensor, lo: int = 3, hi: int = 20) -> Tensor:
    weight = weight.clone()
    weight[lo:hi] = 0.0
    return weight


# Fused is reference.

every = pytest.mark.parametrize("divergence", ALL, ids=str)


@every
def test_every_divergence(divergence: Divergence, layout: str) -> None:
    at = setting()
    ours = agree(at, [Part(at.weight, divergence)], Options(chunk=16, entropies=True))
    expected = reference_loss(at.student, at.teacher, at.rows, [Part(at.weight, divergence)])
    assert (ours.turned is None) == (expected.turned is None)
    if ours.turned is not None and expected.turned is not None:
        assert torch.equal(ours.turned, expected.turned)


@every
def test_every_divergence_in_float32(divergence: Divergence, layout: str) -> None:
    """To the rounding of float32 logits of size ten."""
    at = setting(dtype=torch.float32)
    agree(at, [Part(at.weight, divergence)], Options(chunk=16), rtol=2e-4, atol=2e-5)


@every
def test_every_divergence_with_bfloat16_operands(divergence: Divergence, layout: str) -> None:
    """bf16 in, float32 tiles and sums; gradients come back in bf16, which is what bounds the agreement."""
    at = setting(dtype=torch.bfloat16, bias=False)
    at.weight = at.weight.float()
    ours = agree(at, [Part(at.weight, divergence)], Options(chunk=16), rtol=3e-2, atol=3e-2)
    assert ours.loss.dtype == torch.float32
    exact = reference_loss(at.student, at.teacher, at.rows, [Part(at.weight, divergence)])
    torch.testing.assert_close(ours.values.double(), exact.values, rtol=1e-4, atol=1e-5)


@every
@pytest.mark.parametrize(("path", "chunk"), [(fused_loss, 1), (fused_loss, 64), (generic_loss, 16)])
def test_every_divergence_however_rows_are_cut(divergence: Divergence, path: Path, chunk: int, layout: str) -> None:
    """Numbers of whole rows come in pieces of sixteen tokens here, and a chunk may hold one piece or several."""
    at = setting()
    agree(at, [Part(at.weight, divergence), Part(some_dead(at.weight), ReverseKL())], Options(chunk=chunk), path)


MIXTURES: dict[str, Callable[[Setting], list[Part]]] = {
    "cross-entropy": lambda at: [Part(at.weight, sampled=ones)],
    "policy gradient": lambda at: [Part(at.weight, sampled=advantage)],
    "two KLs": lambda at: [Part(at.weight, ForwardKL()), Part(some_dead(at.weight), ReverseKL())],
    "both kinds": lambda at: [
        Part(some_dead(at.weight, 0, 9), JSD()),
        Part(at.weight, sampled=advantage),
        Part(-0.3 * at.weight, Jeffreys()),
    ],
    "clipped tokens": lambda at: [Part(at.weight, ReverseKL(), token_clip=0.9)],
    "clipped tokens among others": lambda at: [
        Part(at.weight, ForwardKL(), token_clip=0.9),
        Part(at.weight, sampled=ones, token_clip=4.0),
        Part(at.weight, TotalVariation()),
    ],
    "clipped entries among others": lambda at: [
        Part(at.weight, EntryClipped(ForwardKL(), 0.01)),
        Part(at.weight, sampled=ones),
        Part(at.weight, EntryClipped(ReverseKL(), 0.02)),
    ],
}


@pytest.mark.parametrize("path", [fused_loss, generic_loss])
@pytest.mark.parametrize("token_weight", [None, entropy_gate], ids=["", "gated"])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_mixtures(mixture: str, token_weight: Callable[[TokenStats], Tensor] | None, path: Path, layout: str) -> None:
    at = setting()
    agree(at, MIXTURES[mixture](at), Options(token_weight=token_weight, entropies=True, chunk=16), path)


@pytest.mark.parametrize("path", [fused_loss, generic_loss])
@pytest.mark.parametrize(
    "head",
    [
        {"scale": 0.6},
        {"temperature": 1.7},
        {"softcap": 2.0},
        {"scale": 0.6, "softcap": 2.0, "temperature": 1.7},
        {"scale": 0.6, "softcap": 2.0, "temperature": 1.7, "bias": False},
    ],
    ids=str,
)
def test_heads(head: dict[str, float], path: Path, layout: str) -> None:
    at = setting(**head)
    for parts in ([Part(at.weight, JSD())], MIXTURES["both kinds"](at)):
        agree(at, parts, Options(chunk=16), path)


@pytest.mark.parametrize("path", [fused_loss, generic_loss])
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 32, 33])
def test_any_number_of_tokens(n: int, path: Path, layout: str) -> None:
    at = setting(n)
    agree(at, [Part(at.weight, JSD()), Part(at.weight, sampled=advantage)], Options(chunk=16), path)


@pytest.mark.parametrize("path", [fused_loss, generic_loss])
def test_without_a_teacher(path: Path, layout: str) -> None:
    at = replace(setting(), teacher=None)
    ours = agree(at, [Part(some_dead(at.weight), sampled=ones)], Options(chunk=16, entropies=True), path)
    assert ours.stats.teacher_logp is None


def test_cross_entropy_is_torch_s(layout: str) -> None:
    at = replace(setting(), teacher=None)
    expected = nn.functional.cross_entropy(at.student.head.logits(at.student.hidden), at.rows.ids)
    ours = fused_loss(at.student, None, at.rows, [Part(torch.full((N,), 1 / N).double(), sampled=ones)])
    torch.testing.assert_close(ours.loss, expected)
    for mine, theirs in zip(gradients(at, ours.loss), gradients(at, expected), strict=True):
        torch.testing.assert_close(mine, theirs)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(chunk=st.integers(1, 40), block=st.integers(1, 40))
def test_chunks_and_blocks_change_nothing(chunk: int, block: int) -> None:
    at = setting()
    parts = [Part(some_dead(at.weight, 5, 9), JSD(), token_clip=1.0), Part(at.weight, sampled=advantage)]
    options = Options(token_weight=entropy_gate, entropies=True)
    before, layouts.CPU_BLOCK = layouts.CPU_BLOCK, block * chunk
    try:
        agree(at, parts, replace(options, chunk=chunk))
    finally:
        layouts.CPU_BLOCK = before


def test_order_of_tokens_changes_nothing() -> None:
    at = setting()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert at.teacher is not None
    straight = fused_loss(at.student, at.teacher, at.rows, [Part(at.weight, JSD())], Options(chunk=16))
    shuffled = fused_loss(
        replace(at.student, hidden=at.student.hidden[order]),
        replace(at.teacher, hidden=at.teacher.hidden[order]),
        at.rows.take(order),
        [Part(at.weight[order], JSD())],
        Options(chunk=16),
    )
    torch.testing.assert_close(shuffled.values, straight.values[:, order])
    for mine, theirs in zip(gradients(at, shuffled.loss), gradients(at, straight.loss), strict=True):
        torch.testing.assert_close(mine, theirs)


# What may require grad.


@pytest.mark.parametrize("path", [fused_loss, generic_loss])
@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias", "head"])
def test_frozen_pieces(frozen: str, path: Path, layout: str) -> None:
    at = setting()
    pieces = {"hidden": at.student.hidden, "weight": at.student.head.weight, "bias": at.student.head.bias}
    for name in ("weight", "bias") if frozen == "head" else (frozen,):
        pieces[name].requires_grad_(False)
    agree(at, [Part(some_dead(at.weight), JSD())], Options(chunk=16), path)


def test_tied_embeddings_add_both_gradients(layout: str) -> None:
    """The weight that embeds is the weight that reads: autograd adds the two parts."""

    def gradient(path: Path) -> Tensor:
        torch.manual_seed(0)
        embedding = nn.Embedding(V, H, dtype=torch.float64)
        at = setting()
        hidden = torch.tanh(embedding(at.rows.ids.flip(0)))
        path(Scored(hidden, Head(embedding.weight)), at.teacher, at.rows, [Part(at.weight, JSD())]).loss.backward()
        assert embedding.weight.grad is not None
        return embedding.weight.grad

    torch.testing.assert_close(gradient(fused_loss), gradient(reference_loss))


def test_gradients_accumulate_over_calls_like_autograd_s() -> None:
    """Two micro-batches into one `.grad`; the buffers handed over the first time are not written again."""
    at = setting()
    parts = [Part(at.weight, JSD())]
    whole = gradients(at, reference_loss(at.student, at.teacher, at.rows, parts).loss)
    for _ in range(2):
        (fused_loss(at.student, at.teacher, at.rows, parts).loss * 0.85).backward()
    for parameter, expected in zip(at.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("path", [fused_loss, generic_loss])
def test_no_gradient_reaches_the_teacher_or_the_weights(path: Path) -> None:
    at = setting()
    assert at.teacher is not None
    teacher = Scored(
        at.teacher.hidden.requires_grad_(), replace(at.teacher.head, weight=at.teacher.head.weight.requires_grad_())
    )
    path(at.student, teacher, at.rows, [Part(at.weight.requires_grad_(), JSD())]).loss.backward()
    assert teacher.hidden.grad is None
    assert teacher.head.weight.grad is None
    assert at.weight.grad is None


@pytest.mark.parametrize("path", [fused_loss, generic_loss])
def test_without_gradient_nothing_requires_any(path: Path) -> None:
    at = setting()
    expected = reference_loss(at.student, at.teacher, at.rows, [Part(at.weight, JSD())])
    asked = path(at.student, at.teacher, at.rows, [Part(at.weight, JSD())], Options(grad=False))
    with torch.no_grad():
        inside = path(at.student, at.teacher, at.rows, [Part(at.weight, JSD())])
    for loss in (asked, inside):
        assert not loss.loss.requires_grad
        torch.testing.assert_close(loss.loss, expected.loss.detach())


@pytest.mark.parametrize("path", [fused_loss, generic_loss])
def test_everything_but_the_loss_is_detached(path: Path) -> None:
    at = setting()
    out = path(at.student, at.teacher, at.rows, [Part(at.weight, JSD())], Options(entropies=True))
    for tensor in (out.values, out.weights, out.stats.student_logp, out.stats.student_entropy):
        assert tensor is not None
        with pytest.raises(RuntimeError, match="does not require grad"):
            tensor.mean().backward()


def test_second_derivatives_and_second_backwards_are_refused() -> None:
    at = setting()
    loss = fused_loss(at.student, at.teacher, at.rows, [Part(at.weight, JSD())]).loss
    (once,) = torch.autograd.grad(loss * loss, at.student.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()
    loss = fused_loss(at.student, at.teacher, at.rows, [Part(at.weight, JSD())]).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Call fused_loss again"):
        loss.backward()


# Rows without weight, and extremes.


@pytest.mark.parametrize("path", [fused_loss, generic_loss])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_all_weights_zero_is_loss_zero_and_gradient_zero(mixture: str, path: Path) -> None:
    at = setting()
    parts = [replace(part, weight=torch.zeros_like(part.weight)) for part in MIXTURES[mixture](at)]
    out = path(at.student, at.teacher, at.rows, parts, Options(chunk=16))
    assert float(out.loss.detach()) == 0.0
    for gradient in torch.autograd.grad(out.loss, at.parameters()):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_rows_without_weight_are_not_computed() -> None:
    """Even where their hidden states are not numbers; their statistics are NaN, which is `not known`."""
    at = setting()
    weight = some_dead(at.weight, 10, 12)
    hidden = at.student.hidden.detach().clone()
    hidden[10:12] = math.nan
    student = replace(at.student, hidden=hidden.requires_grad_())
    out = fused_loss(student, at.teacher, at.rows, [Part(weight, EntryClipped(ForwardKL(), 0.01))], Options(chunk=16))
    out.loss.backward()
    assert out.loss.isfinite()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad[10:12], torch.zeros(2, H, dtype=torch.float64))
    assert out.stats.student_logp.isnan().nonzero().flatten().tolist() == [10, 11]
    assert torch.equal(out.values[:, 10:12], torch.zeros(1, 2, dtype=torch.float64))
    assert out.turned is not None
    assert not out.turned[10:12].any()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_same_weights_and_same_context_are_exactly_zero(
    divergence: Divergence, dtype: torch.dtype, layout: str
) -> None:
    at = setting(dtype=dtype)
    teacher = Scored(at.student.hidden.detach(), at.student.head)
    out = fused_loss(at.student, teacher, at.rows, [Part(at.weight.float(), divergence)], Options(chunk=16))
    rounding = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-6}[dtype]
    assert out.values.abs().max() <= rounding
    assert torch.equal(out.stats.student_logp, out.stats.teacher_logp)
    assert out.turned is None or not out.turned.any()
    for gradient in gradients(at, out.loss):
        assert gradient.abs().max() <= rounding * N


@every
def test_a_vocabulary_cut_for_the_teacher_alone(divergence: Divergence, layout: str) -> None:
    """Half of it, in float32: its floor is far from any logit, so nothing may be found by way of it."""
    exact, rounded = setting(), setting(dtype=torch.float32)
    for at in (exact, rounded):
        assert at.teacher is not None
        assert at.teacher.head.bias is not None
        at.teacher.head.bias.data[V // 2 :] = -math.inf
        at.rows.ids.clamp_(max=V // 2 - 1)
    parts, options = [[Part(at.weight, divergence)] for at in (exact, rounded)], Options(chunk=16)
    truth = reference_loss(exact.student, exact.teacher, exact.rows, parts[0], options)
    ours = fused_loss(rounded.student, rounded.teacher, rounded.rows, parts[1], options)
    assert float(ours.loss.detach()) == pytest.approx(float(truth.loss.detach()), rel=2e-4)
    for mine, other in zip(gradients(rounded, ours.loss), gradients(exact, truth.loss), strict=True):
        assert (mine - other).norm() <= 5e-4 * other.norm() + 1e-6


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_finite_at_extreme_logits(divergence: Divergence, dtype: torch.dtype, layout: str) -> None:
    """Logits of ten thousand, and entries cut from one or both vocabularies by a bias of -inf."""
    at = setting(dtype=dtype, scale=5e3)
    assert at.teacher is not None
    for role, cut in ((at.teacher, slice(40, 50)), (at.student, slice(45, 50))):
        assert role.head.bias is not None
        role.head.bias.data[cut] = -math.inf
    ids = at.rows.ids.clamp(max=39)
    out = fused_loss(
        at.student, at.teacher, replace(at.rows, ids=ids), [Part(at.weight, divergence)], Options(chunk=16)
    )
    assert out.values.isfinite().all()
    for gradient in gradients(at, out.loss):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("divergence", [JSD(), ForwardKL(), ReverseKL()], ids=str)
def test_rounding_is_that_of_float32_logits(divergence: Divergence) -> None:
    """Nothing after the logits adds half as much again."""
    layouts.CPU_BLOCK = 16 * 512
    generator = torch.Generator().manual_seed(0)
    n, v, h = 64, 8192, 64
    hidden, other, weight = (torch.randn(*s, generator=generator) for s in ((n, h), (n, h), (v, h)))
    weight *= 0.3
    hidden.requires_grad_()
    rows = TokenRows(torch.zeros(n, dtype=torch.long), torch.arange(n), torch.zeros(n), torch.zeros(n))
    student, teacher = Scored(hidden, Head(weight)), Scored(hidden.detach() + 0.2 * other, Head(weight))
    parts = [Part(torch.full((n,), 1 / n), divergence)]
    logits = [role.head.logits(role.hidden) for role in (teacher, student)]
    rounded = divergence(*(z.double().log_softmax(-1) for z in logits)).mean()
    (truth,) = torch.autograd.grad(reference_loss(student, teacher, rows, parts).loss, hidden)

    def error(loss: Tensor) -> float:
        (gradient,) = torch.autograd.grad(loss, hidden)
        return float((gradient - truth).norm() / truth.norm())

    assert error(fused_loss(student, teacher, rows, parts).loss) < 1.5 * error(rounded)


@pytest.mark.parametrize("offset", [0.0, -300.0, 5e3], ids=str)
def test_statistics_in_float32_wherever_the_logits_are(offset: float, layout: str) -> None:
    """Log-sum-exp and entropy, counted in bits on the way, to what rounding an offset of this size costs."""
    at = setting(dtype=torch.float32)
    for role in (at.student, at.teacher):
        assert role is not None
        assert role.head.bias is not None
        role.head.bias.data += offset
    close = 4e-6 + 4 * abs(offset) * torch.finfo(torch.float32).eps
    parts = [Part(at.weight, JSD()), Part(at.weight, sampled=advantage)]
    agree(at, parts, Options(entropies=True, chunk=16), rtol=2e-5, atol=close)


def test_a_block_of_entries_that_are_not_there_adds_nothing(layout: str) -> None:
    """Also if it comes first: such a logit times a constant is exact, so that its difference from the peak is 0."""
    z = torch.full((4, 3), tiles.HIDDEN)
    running = tiles.Running(3, z, entropy=True)
    for block in (z, torch.zeros(2, 3), z):
        running.see(block, 0, slice(None))
    scan = running.scan(torch.zeros(3))
    torch.testing.assert_close(scan.normaliser, torch.full((3,), math.log(2)))
    torch.testing.assert_close(scan.entropy, torch.full((3,), math.log(2)))


def test_an_upstream_of_one_is_any_other_s_gradient() -> None:
    at = setting()
    parts = [Part(at.weight, JSD())]
    loss, again = (fused_loss(at.student, at.teacher, at.rows, parts, Options(chunk=16)).loss for _ in range(2))
    for mine, other in zip(torch.autograd.grad(loss, at.parameters()), gradients(at, again), strict=True):
        torch.testing.assert_close(mine * 1.7, other)


# Sampled parts, and clipping.


def test_sampled_gradient_averaged_over_the_student_is_reverse_kl_s() -> None:
    """One row a vocabulary entry, weighted by p_S(y): the policy gradient's expectation (A1, KAT d)."""
    at = setting(1)
    assert at.teacher is not None
    (hidden,) = (at.student.hidden.detach(),)
    student = replace(at.student, hidden=hidden.expand(V, H).clone().requires_grad_())
    teacher = replace(at.teacher, hidden=at.teacher.hidden.expand(V, H - 3))
    rows = TokenRows(torch.arange(V), torch.zeros(V, dtype=torch.long), torch.zeros(V), torch.zeros(V))
    p = student.head.logits(hidden).softmax(-1)[0].detach()

    def log_ratio(stats: TokenStats) -> Tensor:
        assert stats.teacher_logp is not None
        return stats.teacher_logp - stats.student_logp

    fused_loss(student, teacher, rows, [Part(p, sampled=log_ratio)]).loss.backward()
    (expected,) = torch.autograd.grad(
        fused_loss(at.student, at.teacher, at.rows, [Part(torch.ones(1).double(), ReverseKL())]).loss, at.student.hidden
    )
    assert student.hidden.grad is not None
    torch.testing.assert_close(student.hidden.grad.sum(0, keepdim=True), expected, rtol=1e-10, atol=1e-10)


def test_token_clip_stops_value_and_gradient_where_it_binds() -> None:
    at = setting()
    free = fused_loss(at.student, at.teacher, at.rows, [Part(at.weight, ForwardKL())])
    ceiling = float(free.values.median())
    bound = free.values[0] > ceiling
    out = fused_loss(at.student, at.teacher, at.rows, [Part(at.weight, ForwardKL(), token_clip=ceiling)])
    assert torch.equal(out.values[0], free.values[0].clamp(max=ceiling))
    assert torch.equal(out.weights, free.weights)
    unclipped, clipped = (torch.autograd.grad(x.loss, at.student.hidden)[0] for x in (free, out))
    assert torch.equal(clipped[bound], torch.zeros_like(clipped[bound]))
    torch.testing.assert_close(clipped[~bound], unclipped[~bound])


@pytest.mark.parametrize(
    ("p", "q", "ceiling", "turned"),
    [
        ((0.7, 0.2, 0.1), (0.2, 0.5, 0.3), 0.05, True),
        ((0.7, 0.2, 0.1), (0.2, 0.5, 0.3), math.inf, False),
        ((0.96, 0.04, 1e-9), (0.90, 0.10, 1e-9), 0.05, True),
        ((0.2, 0.5, 0.3), (0.2, 0.5, 0.3), 0.05, False),
    ],
)
def test_turned_names_the_tokens_of_the_known_answers(p, q, ceiling: float, turned: bool, layout: str) -> None:
    hidden = torch.ones(1, 1, dtype=torch.float64)
    teacher, student = (Scored(hidden, Head(torch.tensor(x, dtype=torch.float64).log()[:, None])) for x in (p, q))
    rows = TokenRows(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), torch.zeros(1), torch.zeros(1))
    part = Part(torch.ones(1), EntryClipped(ForwardKL(), ceiling))
    out = fused_loss(student, teacher, rows, [part], Options(grad=False))
    assert out.turned is not None
    assert out.turned.tolist() == [turned]
    if ceiling == 0.05 and p[0] == 0.7 and q[0] == 0.2:
        assert float(out.loss) == pytest.approx(-0.2431, abs=5e-5)


def test_token_weight_sees_the_statistics_and_multiplies_every_part() -> None:
    at = setting()
    seen: list[TokenStats] = []

    def weigh(stats: TokenStats) -> Tensor:
        seen.append(stats)
        return (stats.position % 3).to(stats.student_logp)

    parts = [Part(at.weight, JSD()), Part(at.weight, sampled=ones)]
    out = fused_loss(at.student, at.teacher, at.rows, parts, Options(token_weight=weigh, chunk=16))
    torch.testing.assert_close(out.weights, (at.weight * (at.rows.position % 3)).expand(2, N))
    torch.testing.assert_close(out.loss.detach(), (out.weights * out.values).sum())
    assert torch.equal(torch.cat([s.ids for s in seen]), at.rows.ids)
    assert torch.equal(torch.cat([s.student_logp for s in seen]), out.stats.student_logp)
    assert seen[0].student_entropy is None


# Generic terms.


def test_generic_terms_by_autograd() -> None:
    """A sorted transport: no sum over the vocabulary of anything local."""

    def sorted_distance(tokens: Tokens) -> Tensor:
        assert tokens.teacher is not None
        teacher, student = (x.exp().sort(-1).values for x in (tokens.teacher, tokens.student))
        return (teacher - student).abs().sum(-1)

    at = setting()
    parts = [Part(some_dead(at.weight), term=sorted_distance, token_clip=0.8), Part(at.weight, JSD())]
    agree(at, parts, Options(chunk=16, token_weight=entropy_gate, entropies=True), generic_loss)
    with pytest.raises(UsageError, match="generic_loss"):
        fused_loss(at.student, at.teacher, at.rows, parts)


# Refusals.


def test_misfits_are_refused_by_name() -> None:
    at = setting()
    part = Part(at.weight, JSD())
    assert at.teacher is not None
    other = Scored(at.teacher.hidden, Head(torch.zeros(V + 3, H - 3).double()))
    cases = [
        ((at.student, None, at.rows, [part]), "teacher is None"),
        ((at.student, other, at.rows, [part]), f"{V + 3} and {V}"),
        ((replace(at.student, hidden=at.student.hidden[1:]), at.teacher, at.rows, [part]), "student hidden"),
        ((at.student, replace(at.teacher, hidden=at.teacher.hidden[1:]), at.rows, [part]), "teacher hidden"),
        ((at.student, at.teacher, at.rows, [replace(part, weight=at.weight[1:])]), "weight"),
        ((at.student, at.teacher, replace(at.rows, ids=at.rows.ids + V), [part]), "ids"),
        ((at.student, at.teacher, at.rows, [part], Options(token_weight=lambda s: s.student_logp[:1])), "token_weight"),
        ((at.student, at.teacher, at.rows, [Part(at.weight, sampled=lambda s: s.student_logp.sum())]), "sampled"),
    ]
    for arguments, says in cases:
        for path in (fused_loss, generic_loss):
            with pytest.raises(UsageError, match=says):
                path(*arguments)
    for wrong in ({}, {"divergence": JSD(), "sampled": ones}):
        with pytest.raises(UsageError, match="exactly one"):
            Part(at.weight, **wrong)


# Costs.


class Ledger(TorchDispatchMode):
    """Multiply-adds of matrix products, and the peak of bytes alive that were allocated inside."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.alive, self.peak = 0, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._known.update(x.untyped_storage()._cdata for x in args if isinstance(x, Tensor))  # came from outside
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            a, b = args[-2:]
            self.products += a.shape[0] * a.shape[1] * b.shape[1]
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def cost(
    n: int, v: int, h: int, parts: Callable[[Tensor], list[Part]], options: Options | None = None, **asked: bool
) -> Ledger:
    hidden, weight = torch.randn(n, h), torch.randn(v, h)
    teacher = Scored(torch.randn(n, h), Head(torch.randn(v, h)))
    student = Scored(
        hidden.requires_grad_(asked.get("hidden", True)), Head(weight.requires_grad_(asked.get("weight", True)))
    )
    rows = TokenRows(torch.randint(0, v, (n,)), torch.arange(n), torch.zeros(n), torch.zeros(n))
    summands = parts(torch.ones(n))
    with Ledger() as ledger:
        fused_loss(student, None if asked.get("alone") else teacher, rows, summands, options)
    return ledger


@pytest.mark.parametrize(
    ("parts", "asked", "options", "products"),
    [
        (lambda w: [Part(w, JSD())], {}, None, 4),
        (lambda w: [Part(w, JSD()), Part(w, ForwardKL()), Part(w, sampled=ones)], {}, None, 4),
        (lambda w: [Part(w, JSD())], {}, Options(token_weight=entropy_gate, entropies=True), 4),
        (lambda w: [Part(w, JSD())], {"weight": False}, None, 3),
        (lambda w: [Part(w, JSD())], {"hidden": False}, None, 3),
        (lambda w: [Part(w, JSD())], {}, Options(grad=False), 2),
        (lambda w: [Part(w, JSD())], {"weight": False, "hidden": False}, None, 2),
        (lambda w: [Part(w, sampled=advantage)], {}, None, 4),
        (lambda w: [Part(w, sampled=ones)], {"alone": True}, None, 3),
        (lambda w: [Part(w * (torch.arange(len(w)) % 4 == 0), JSD())], {}, None, 1),
    ],
)
def test_number_of_matrix_products(parts, asked, options, products: int, layout: str, monkeypatch) -> None:
    """In units of N V H: a quarter of the rows with weight costs a quarter."""
    monkeypatch.setattr(layouts, "CPU_BLOCK", 4096)
    n, v, h = 64, 512, 16
    assert cost(n, v, h, parts, options, **asked).products == products * n * v * h


@pytest.mark.parametrize(
    "parts",
    [
        lambda w: [Part(w, JSD())],
        lambda w: [Part(w, EntryClipped(ForwardKL(), 0.05), token_clip=1.0), Part(w, sampled=advantage)],
    ],
    ids=["one", "several"],
)
def test_memory_is_two_tiles_and_the_head_s_gradient_whatever_the_number_of_tokens(parts, monkeypatch) -> None:
    block, v, h, chunk = 4096, 1024, 16, 64
    monkeypatch.setattr(layouts, "CPU_BLOCK", block)
    monkeypatch.setattr(fused, "CPU_CHUNK", chunk)
    promised = 4 * (2 * chunk * v + v * h)
    small, large = (cost(n, v, h, parts).peak - 4 * n * h for n in (256, 2048))  # less the hidden states' gradient
    assert promised <= small <= promised + 16 * 4 * block + 4 * 256 * 40
    assert large - small <= 4 * (2048 - 256) * 40  # some numbers a token


@pytest.mark.parametrize(
    ("asked", "options", "tiles", "head"),
    [
        ({}, Options(grad=False), 2, 0),
        ({"weight": False}, None, 2, 0),
        ({"alone": True}, None, 1, 1),
        ({}, None, 1, 1),
    ],
    ids=["no grad", "frozen head", "student alone", "sampled against a teacher"],
)
def test_buffers_nobody_needs_are_not_allocated(asked, options, tiles: int, head: int, monkeypatch) -> None:
    monkeypatch.setattr(layouts, "CPU_BLOCK", 4096)
    n, v, h = 256, 4096, 64
    part = (lambda w: [Part(w, JSD())]) if tiles == 2 else (lambda w: [Part(w, sampled=advantage)])
    expected = 4 * (tiles * n * v + head * v * h)
    assert expected <= cost(n, v, h, part, options, **asked).peak <= expected + 4 * (16 * 4096 + 4 * n * h + 40 * n)
