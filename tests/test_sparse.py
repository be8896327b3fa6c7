"""A teacher known at K entries a token: the three paths agree, and agree with the divergence on buckets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_fused import (
    MIXTURES,
    Ledger,
    Path,
    Setting,
    V,
    agree,
    entropy_gate,
    gradients,
    ones,
    setting,
    some_dead,
)
from workbench.divergence import (
    ALL,
    JSD,
    Divergence,
    EntryClipped,
    ForwardKL,
    Head,
    Options,
    Pair,
    Part,
    ReverseKL,
    Scored,
    SparseTeacher,
    TokenRows,
    fused,
    fused_loss,
    generic_loss,
    layouts,
    reference_loss,
)
from workbench.divergence.sparse import Rest, counts
from workbench.errors import UsageError
from workbench.records import TokenStats

RESTS = get_args(Rest)
every = pytest.mark.parametrize("divergence", ALL, ids=str)
masses = pytest.mark.parametrize("divergence", [d for d in ALL if not counts(d)], ids=str)
paths = pytest.mark.parametrize("path", [fused_loss, generic_loss])


@pytest.fixture(autouse=True)
def one_thread_and_many_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several blocks in a small vocabulary."""
    monkeypatch.setattr(layouts, "CPU_BLOCK", 16 * 7)
    monkeypatch.setattr(layouts, "GPU_BLOCK", V * 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["columns", "rows"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    kind = {"columns": layouts.Columns, "rows": layouts.Rows}[request.param]
    monkeypatch.setattr(layouts, "layout_for", lambda device: kind)
    return request.param


def cut(at: Setting, k: int = 7, rest: Rest = "bucket", padded: bool = True) -> Setting:
    """The setting with its teacher cut to k entries; every third token has two fewer, under ids that mean nothing."""
    assert at.teacher is not None
    teacher = SparseTeacher.of(at.teacher, k, written=at.rows.ids, rest=rest)
    if padded:
        assert teacher.tail_logp is not None
        ids, logp = teacher.ids.clone(), teacher.logp.clone()
        lost = logp[::3, -2:].logsumexp(-1)
        tail = teacher.tail_logp.clone()
        tail[::3] = torch.logaddexp(tail[::3], lost)
        ids[::3, -2], ids[::3, -1], logp[::3, -2:] = ids[::3, 0], -5, -math.inf
        teacher = replace(teacher, ids=ids, logp=logp, tail_logp=tail)
    return replace(at, teacher=teacher)


def buckets(at: Setting, dense: Scored, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both roles' log-probs on K + 1 buckets by adding up probabilities, and the student's logits, a leaf."""
    teacher = dense.head.logits(dense.hidden).softmax(-1)
    with torch.no_grad():
        logits = at.student.head.logits(at.student.hidden)
    logits.requires_grad_()
    student = logits.softmax(-1)
    which = torch.full(teacher.shape, k)
    which.scatter_(1, teacher.topk(k, -1).indices, torch.arange(k).expand(len(which), -1))
    merged = [torch.zeros(len(which), k + 1).double().scatter_add(1, which, p).log() for p in (teacher, student)]
    return merged[0], merged[1], logits


# The law: a sparse teacher is the divergence on buckets.


@every
@pytest.mark.parametrize("k", [1, 7, V - 1])
def test_bucketed_is_the_divergence_of_the_merged_distributions(divergence: Divergence, k: int, layout: str) -> None:
    at = setting()
    assert at.teacher is not None
    teacher, student, logits = buckets(at, at.teacher, k)
    values = divergence(teacher, student)
    (expected,) = torch.autograd.grad((values * at.weight).sum(), logits)
    ours = fused_loss(
        at.student, SparseTeacher.of(at.teacher, k), at.rows, [Part(at.weight, divergence)], Options(chunk=16)
    )
    torch.testing.assert_close(ours.values[0], values.detach(), rtol=1e-9, atol=1e-11)
    hidden, weight, bias = torch.autograd.grad(ours.loss, at.parameters())
    torch.testing.assert_close(hidden, expected @ at.student.head.weight.detach(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(weight, expected.t() @ at.student.hidden.detach(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(bias, expected.sum(0), rtol=1e-9, atol=1e-11)


@every
@pytest.mark.parametrize("rest", RESTS)
def test_every_divergence_and_rest(divergence: Divergence, rest: Rest, layout: str) -> None:
    at = cut(setting(), rest=rest, padded=not counts(divergence))
    parts = [Part(some_dead(at.weight, 3, 6), divergence)]
    ours = agree(at, parts, Options(chunk=16))
    agree(at, parts, Options(chunk=16), generic_loss)
    expected = reference_loss(at.student, at.teacher, at.rows, parts).turned
    assert (ours.turned is None) == (expected is None)
    if ours.turned is not None and expected is not None:
        live = parts[0].weight != 0
        assert torch.equal(ours.turned[live], expected[live])


@every
@pytest.mark.parametrize("rest", RESTS)
def test_every_divergence_in_float32(divergence: Divergence, rest: Rest, layout: str) -> None:
    at = cut(setting(dtype=torch.float32), rest=rest, padded=not counts(divergence))
    agree(at, [Part(at.weight, divergence)], Options(chunk=16), rtol=2e-4, atol=2e-5)


@paths
@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_mixtures(mixture: str, rest: Rest, path: Path, layout: str) -> None:
    at = cut(setting(softcap=2.0, scale=0.6, temperature=1.7), rest=rest)
    agree(at, MIXTURES[mixture](at), Options(token_weight=entropy_gate, entropies=True, chunk=16), path)


@masses
def test_all_entries_known_is_the_whole_teacher(divergence: Divergence, layout: str) -> None:
    at = setting()
    assert at.teacher is not None
    parts = [Part(at.weight, divergence)]
    whole = fused_loss(at.student, at.teacher, at.rows, parts, Options(chunk=16, entropies=True))
    expected = gradients(at, whole.loss)
    for rest in RESTS:
        teacher = replace(SparseTeacher.of(at.teacher, V, written=at.rows.ids, rest=rest), tail_logp=None)
        ours = fused_loss(at.student, teacher, at.rows, parts, Options(chunk=16, entropies=True))
        torch.testing.assert_close(ours.values, whole.values, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours.stats.teacher_logp, whole.stats.teacher_logp)
        torch.testing.assert_close(ours.stats.teacher_entropy, whole.stats.teacher_entropy)
        for mine, theirs in zip(gradients(at, ours.loss), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("rest", "k", "divergence", "value"),
    [
        ("teacher_renormalised", 2, ForwardKL(), 0.6103372558),
        ("renormalised", 2, ForwardKL(), 0.2536623119),
        ("renormalised", 3, ReverseKL(), 0.3526532007),
        ("renormalised", 2, ReverseKL(), 0.2842708770),
        ("unnormalised", 2, ReverseKL(), 0.0230695141),
        ("unnormalised", 1, ReverseKL(), -0.2541893581),
        ("bucket", 3, ForwardKL(), 0.3446178373),
    ],
)
def test_known_answers(rest: Rest, k: int, divergence: Divergence, value: float, layout: str) -> None:
    """EOPD (2603.07079) and its unmasked student; LSM (2603.25562) with and without renormalisation."""
    logp = [torch.tensor([p], dtype=torch.float64).log() for p in ((0.7, 0.2, 0.1), (0.3, 0.4, 0.3))]
    one = torch.ones(1, 1, dtype=torch.float64)
    teacher, student = (Scored(one, Head(x.t().contiguous())) for x in logp)
    rows = TokenRows(torch.zeros(1).long(), torch.zeros(1).long(), torch.zeros(1), torch.zeros(1))
    parts = [Part(torch.ones(1), divergence)]
    for path in (fused_loss, generic_loss, reference_loss):
        out = path(student, SparseTeacher.of(teacher, k, rest=rest), rows, parts)
        assert float(out.values) == pytest.approx(value, abs=1e-9)


# What the tail is.


@masses
def test_rounding_is_no_tail_where_every_entry_is_known(divergence: Divergence, layout: str) -> None:
    """Float32 log-probs do not add up to 1; what is missing is not outside, for nothing is."""
    at = setting(dtype=torch.float32)
    assert at.teacher is not None
    whole = fused_loss(at.student, at.teacher, at.rows, [Part(at.weight, divergence)], Options(chunk=16))
    known = replace(SparseTeacher.of(at.teacher, V), tail_logp=None)
    ours = fused_loss(at.student, known, at.rows, [Part(at.weight, divergence)], Options(chunk=16))
    torch.testing.assert_close(ours.values, whole.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every
def test_a_tail_of_almost_nothing_is_still_pulled(divergence: Divergence, dtype: torch.dtype, layout: str) -> None:
    """A student so sure that its tail is no number in this precision: finite, and the reference's to rounding."""
    at = setting(dtype=dtype, scale=300.0)
    out = fused_loss(
        at.student, cut(at, padded=False).teacher, at.rows, [Part(at.weight, divergence)], Options(chunk=16)
    )
    assert out.values.isfinite().all()
    for gradient in gradients(at, out.loss):
        assert gradient.isfinite().all()


def test_what_the_tail_is_pulled_by_does_not_vanish_with_its_mass(layout: str) -> None:
    """Forward KL: the entries outside S together are pushed by the teacher's tail, however little the student has."""
    logits = torch.tensor([[200.0, 0.0, 1.0, 2.0]])
    student = Scored(torch.ones(1, 1), Head(logits.t().contiguous().requires_grad_()))
    teacher = SparseTeacher(torch.tensor([[0]]), torch.tensor([[0.6]]).log())
    rows = TokenRows(torch.zeros(1).long(), torch.zeros(1).long(), torch.zeros(1), torch.zeros(1))
    fused_loss(student, teacher, rows, [Part(torch.ones(1), ForwardKL())]).loss.backward()
    assert student.head.weight.grad is not None
    expected = torch.cat((torch.tensor([0.4]), -0.4 * logits[0, 1:].softmax(-1)))
    torch.testing.assert_close(student.head.weight.grad[:, 0], expected)


def test_tail_not_given_is_what_the_entries_leave(layout: str) -> None:
    at = cut(setting(), padded=False)
    assert isinstance(at.teacher, SparseTeacher)
    parts = [Part(at.weight, JSD())]
    given = fused_loss(at.student, at.teacher, at.rows, parts)
    left = fused_loss(at.student, replace(at.teacher, tail_logp=None), at.rows, parts)
    torch.testing.assert_close(left.values, given.values, rtol=1e-10, atol=1e-12)


def test_more_mass_than_one_by_rounding_leaves_no_tail() -> None:
    """Log-probs kept in 16 bits add up to a little more than 1: no tail, and no NaN."""
    at = setting()
    ids = torch.arange(3).expand(len(at.weight), 3)
    teacher = SparseTeacher(ids, torch.tensor([0.5, 0.3, 0.2006]).log().expand_as(ids).half())
    teacher = replace(teacher, target_logp=torch.zeros_like(at.weight))
    out = agree(replace(at, teacher=teacher), [Part(at.weight, ReverseKL())], Options(chunk=16))
    assert out.loss.isfinite()


@masses
def test_a_token_without_entries_says_nothing(divergence: Divergence, layout: str) -> None:
    at = setting()
    none = torch.full((len(at.weight), 3), -math.inf).double()
    for rest in RESTS:
        teacher = SparseTeacher(torch.zeros_like(none).long(), none, rest, target_logp=torch.zeros_like(at.weight))
        out = agree(replace(at, teacher=teacher), [Part(at.weight, divergence)], Options(chunk=16))
        torch.testing.assert_close(out.values, torch.zeros_like(out.values), rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(k=st.integers(1, V - 1), which=st.sampled_from([d for d in ALL if d.f_divergence]))
def test_a_bucket_never_adds(k: int, which: Divergence) -> None:
    """Data processing: more entries see more."""
    at = setting()
    assert at.teacher is not None
    parts = [Part(at.weight, which)]
    some, more = (fused_loss(at.student, SparseTeacher.of(at.teacher, j), at.rows, parts).values for j in (k, k + 1))
    assert (some <= more + 1e-12).all()


# Statistics, and what needs them.


def gap(stats: TokenStats) -> Tensor:
    assert stats.teacher_logp is not None
    return stats.teacher_logp - stats.student_logp


@pytest.mark.parametrize("path", [fused_loss, generic_loss, reference_loss])
def test_the_written_token_is_known_among_the_entries_or_when_told(path: Path) -> None:
    at = setting()
    assert at.teacher is not None
    parts = [Part(at.weight, JSD())]
    expected = path(at.student, at.teacher, at.rows, parts, Options(entropies=True)).stats
    told = SparseTeacher.of(at.teacher, 7, written=at.rows.ids)
    untold = replace(told, target_logp=None, entropy=None)
    among = (told.ids == at.rows.ids[:, None]).any(-1)
    assert 0 < among.sum() < len(among)
    assert expected.teacher_logp is not None
    for teacher, known in ((told, torch.ones_like(among)), (untold, among)):
        stats = path(at.student, teacher, at.rows, parts, Options(entropies=True)).stats
        assert stats.teacher_logp is not None
        torch.testing.assert_close(stats.teacher_logp[known], expected.teacher_logp[known])
        assert stats.teacher_logp[~known].isnan().all()
        assert stats.teacher_entropy is not None
        if teacher is told:
            torch.testing.assert_close(stats.teacher_entropy, expected.teacher_entropy)
        else:
            assert stats.teacher_entropy.isnan().all()


@pytest.mark.parametrize("path", [fused_loss, generic_loss, reference_loss])
def test_a_term_that_needs_what_is_not_known_is_refused(path: Path) -> None:
    at = setting()
    assert at.teacher is not None
    untold = SparseTeacher.of(at.teacher, 7)
    told = replace(untold, target_logp=SparseTeacher.of(at.teacher, 7, written=at.rows.ids).target_logp)
    sampled = Part(at.weight, sampled=gap)
    with pytest.raises(UsageError, match="`sampled` needs the teacher's log-prob of the written token"):
        path(at.student, untold, at.rows, [sampled])
    with pytest.raises(UsageError, match="`token_weight` needs the teacher's entropy"):
        path(
            at.student,
            replace(told, entropy=None),
            at.rows,
            [sampled],
            Options(token_weight=entropy_gate, entropies=True),
        )
    among = (untold.ids == at.rows.ids[:, None]).any(-1)
    asked = replace(sampled, weight=at.weight * among)  # only where it is known
    parts = [Part(at.weight, JSD()), asked]
    dense, sparse = (path(at.student, t, at.rows, [asked]) for t in (at.teacher, untold))
    torch.testing.assert_close(sparse.loss, dense.loss)
    assert path(at.student, untold, at.rows, parts).loss.isfinite()


@paths
def test_sampled_parts_alone_need_no_comparison(path: Path, layout: str) -> None:
    at = cut(setting())
    agree(at, [Part(some_dead(at.weight), sampled=gap)], Options(chunk=16, entropies=True), path)


@paths
@pytest.mark.parametrize("n", [0, 1, 16, 17])
def test_any_number_of_tokens(n: int, path: Path, layout: str) -> None:
    at = cut(setting(n))
    agree(at, [Part(at.weight, JSD()), Part(at.weight, sampled=ones)], Options(chunk=16), path)


def test_cutting_a_teacher_at_another_temperature() -> None:
    at = setting()
    assert at.teacher is not None
    warm = Scored(at.teacher.hidden, replace(at.teacher.head, temperature=2.5))
    for mine, theirs in zip(
        vars(SparseTeacher.of(at.teacher, 5, 2.5)).values(), vars(SparseTeacher.of(warm, 5)).values(), strict=True
    ):
        assert mine is theirs is None or mine == theirs if not isinstance(mine, Tensor) else torch.equal(mine, theirs)
    logp = at.teacher.head.logits(at.teacher.hidden).div(2.5).log_softmax(-1)
    torch.testing.assert_close(SparseTeacher.of(at.teacher, 5, 2.5).logp, logp.topk(5, -1).values)


# Refusals.


def test_misfits_are_refused_by_name() -> None:
    at = setting()
    assert at.teacher is not None
    good = SparseTeacher.of(at.teacher, 5)
    n = len(good.ids)
    twice, outside, half = good.ids.clone(), good.ids.clone(), good.logp.clone()
    twice[4, 3], outside[2, 1], half[3, 2] = twice[4, 0], V, math.nan
    for teacher, says in (
        (replace(good, ids=twice), "twice .token 4"),
        (replace(good, ids=outside), f"0..{V - 1}"),
        (replace(good, ids=-outside - 1), f"0..{V - 1}"),
        (replace(good, logp=good.logp + 3, tail_logp=None), "have mass"),
        (replace(good, tail_logp=torch.zeros(n)), "have mass"),
        (replace(good, tail_logp=torch.full((n,), math.nan)), "have mass nan"),
        (good.take(slice(1, None)), f"{n - 1} tokens of {n}"),
    ):
        for path in (fused_loss, generic_loss, reference_loss):
            with pytest.raises(UsageError, match=says):
                path(at.student, teacher, at.rows, [Part(at.weight, JSD())])
    with pytest.raises(UsageError, match="sees whole distributions"):
        generic_loss(at.student, good, at.rows, [Part(at.weight, term=lambda tokens: tokens.student.sum(-1))])
    warm = replace(at.rows, temperature=torch.ones(n))
    with pytest.raises(UsageError, match="another temperature"):
        fused_loss(at.student, good, warm, [Part(at.weight, JSD())])
    for wrong, says in (
        ({"rest": "tail"}, "one of bucket"),
        ({"logp": good.logp[:, 1:]}, "K >= 1"),
        ({"entropy": torch.zeros(n + 1)}, "entropy"),
        ({"rest": "renormalised", "ids": good.ids[:, :1], "logp": good.logp[:, :1]}, "always 1"),
    ):
        with pytest.raises(UsageError, match=says):
            replace(good, **wrong)


class Counted(ForwardKL):
    """A number for every entry, whatever its mass."""

    def density(self, pair: Pair) -> Tensor:
        return torch.ones_like(pair.log_ratio)


@pytest.mark.parametrize("path", [fused_loss, generic_loss, reference_loss])
def test_padding_is_no_entry_so_those_who_count_entries_are_refused_it(path: Path) -> None:
    at = setting()
    parts = [Part(at.weight, Counted())]
    assert not counts(ForwardKL())
    out = path(at.student, cut(at, padded=False).teacher, at.rows, parts)
    assert torch.equal(out.values, torch.full_like(out.values, 8.0))
    assert at.teacher is not None
    for teacher in (cut(at).teacher, SparseTeacher.of(at.teacher, V)):
        with pytest.raises(UsageError, match="even if they have no mass"):
            path(at.student, teacher, at.rows, parts)


# Costs, and invariance.


def cost(n: int, v: int, h: int, k: int, part: Callable[[Tensor], Part], weight: bool = True) -> Ledger:
    student = Scored(torch.randn(n, h).requires_grad_(), Head(torch.randn(v, h).requires_grad_(weight)))
    rows = TokenRows(torch.randint(0, v, (n,)), torch.arange(n), torch.zeros(n), torch.zeros(n))
    teacher = SparseTeacher.of(Scored(torch.randn(n, h), Head(torch.randn(v, h))), k)
    with Ledger() as ledger:
        fused_loss(student, teacher, rows, [part(torch.ones(n))])
    return ledger


@pytest.mark.parametrize(("weight", "products"), [(True, 3), (False, 2)])
def test_three_matrix_products(weight: bool, products: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "CPU_BLOCK", 4096)
    n, v, h = 64, 512, 16
    assert cost(n, v, h, 8, lambda w: Part(w, JSD()), weight).products == products * n * v * h


@pytest.mark.parametrize("divergence", [JSD(), EntryClipped(ForwardKL(), 0.05)], ids=str)
def test_memory_is_one_tile_and_the_head_s_gradient_whatever_the_number_of_tokens(
    divergence: Divergence, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, v, h, chunk, k = 4096, 2048, 16, 64, 8
    monkeypatch.setattr(layouts, "CPU_BLOCK", block)
    monkeypatch.setattr(fused, "CPU_CHUNK", chunk)
    promised = 4 * (chunk * v + v * h)
    small, large = (cost(n, v, h, k, lambda w: Part(w, divergence)).peak - 4 * n * h for n in (256, 2048))
    assert promised <= small <= promised + 16 * 4 * block + 8 * 256 * (k + 1) * 8 <= 4 * (2 * chunk * v + v * h)
    assert large - small <= 8 * (2048 - 256) * (k + 1) * 8  # what checks the entries, some numbers each


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    chunk=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 37), max_size=3),
    rest=st.sampled_from([None, *RESTS]),
    divergence=st.sampled_from(ALL),
    block=st.integers(1, 900),
)
def test_any_split_into_chunks_and_micro_batches(
    chunk: int, cuts: list[int], rest: Rest | None, divergence: Divergence, block: int
) -> None:
    """One batch, or several whose gradients add: the same loss and gradient, with a dense and a sparse teacher."""
    at = setting() if rest is None else cut(setting(), rest=rest, padded=not counts(divergence))
    parts = [Part(some_dead(at.weight, 5, 9), divergence, token_clip=1.0), Part(at.weight, sampled=gap)]
    options = Options(token_weight=entropy_gate, entropies=True)
    whole = fused_loss(at.student, at.teacher, at.rows, parts, replace(options, chunk=40))
    expected = torch.autograd.grad(whole.loss, at.parameters())
    edges = sorted({0, len(at.weight), *cuts})
    total = torch.zeros((), dtype=torch.float64)
    summed = [torch.zeros_like(x) for x in at.parameters()]
    before, layouts.CPU_BLOCK = layouts.CPU_BLOCK, block
    try:
        for lo, hi in pairwise(edges):
            piece = slice(lo, hi)
            teacher = at.teacher
            assert teacher is not None
            mine = (
                teacher.take(piece)
                if isinstance(teacher, SparseTeacher)
                else replace(teacher, hidden=teacher.hidden[piece])
            )
            student = replace(at.student, hidden=at.student.hidden[piece])
            pieces = [replace(part, weight=part.weight[piece]) for part in parts]
            loss = fused_loss(student, mine, at.rows.take(piece), pieces, replace(options, chunk=chunk)).loss
            total = total + loss.detach()
            for into, more in zip(summed, torch.autograd.grad(loss, at.parameters()), strict=True):
                into += more
    finally:
        layouts.CPU_BLOCK = before
    torch.testing.assert_close(total, whole.loss.detach(), rtol=1e-11, atol=1e-11)
    for mine, theirs in zip(summed, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)
