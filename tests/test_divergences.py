"""Laws every divergence obeys, each one function over `family.ALL`; then known answers."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import workbench.divergence
from workbench.divergence import (
    ALL,
    JSD,
    AdaptiveKL,
    AlphaBeta,
    ConcreteScore,
    Divergence,
    EntryClipped,
    ForwardKL,
    Jeffreys,
    Pair,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    SquaredHellinger,
    ToDi,
    TotalVariation,
    weighted,
)
from workbench.errors import UsageError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "divergences.json").read_text())

every = pytest.mark.parametrize("divergence", ALL, ids=str)
laws = settings(max_examples=25, deadline=None, derandomize=True)


def vectors(size: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-12, 12, width=32), min_size=size, max_size=size)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Log-probs of a teacher and a student, float64."""
    size = draw(st.integers(2, 9))
    teacher, student = (torch.tensor(draw(vectors(size)), dtype=torch.float64) for _ in range(2))
    return teacher.log_softmax(-1), student.log_softmax(-1)


def log(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def random_pair(seed: int, size: int = 7, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, size, generator=generator, dtype=torch.float64) * scale
    return teacher.log_softmax(-1), student.log_softmax(-1)


def closed_gradient(divergence: Divergence, teacher: Tensor, student: Tensor) -> Tensor:
    """What the fused loop would multiply: p_S (A - c) - p_T B."""
    pair = Pair.of(teacher, student)
    push = divergence.push(pair)
    return push - push.sum(-1, keepdim=True) * pair.student


def autograd_gradient(divergence: Divergence, teacher: Tensor, student: Tensor) -> Tensor:
    logits = student.clone().requires_grad_()
    divergence(teacher, logits.log_softmax(-1)).sum().backward()
    assert logits.grad is not None
    return logits.grad


@every
@laws
@given(pair=pairs())
def test_not_negative_and_zero_only_at_equality(divergence: Divergence, pair: tuple[Tensor, Tensor]) -> None:
    value = divergence(*pair)
    assert value.isfinite()
    if divergence.genuine:
        assert value >= -1e-12
        if (pair[0].exp() - pair[1].exp()).abs().max() > 1e-3:
            assert value > 1e-9


@every
@laws
@given(pair=pairs(), single=st.booleans())
def test_zero_with_zero_gradient_at_equality(divergence: Divergence, pair: tuple[Tensor, Tensor], single: bool) -> None:
    same = pair[0].float() if single else pair[0]
    rounding = 1e-6 if single else 1e-14
    assert divergence(same, same).abs() <= rounding
    assert closed_gradient(divergence, same, same).abs().max() <= rounding
    again = same.log_softmax(-1)  # what `autograd_gradient` makes of the student: a sign must see the same digits
    assert autograd_gradient(divergence, again, same).abs().max() <= rounding


@every
@laws
@given(pair=pairs(), seed=st.integers(0, 99))
def test_blind_to_the_numbering_of_the_vocabulary(
    divergence: Divergence, pair: tuple[Tensor, Tensor], seed: int
) -> None:
    order = torch.randperm(pair[0].shape[-1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(divergence(pair[0][order], pair[1][order]), divergence(*pair), rtol=1e-12, atol=1e-14)


def changes(value: object, hint: object) -> list[object]:
    """Other values for a field: smaller numbers (a step may need a large one), the other choices."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value * 0.9 or 0.1, value * 0.5 or 0.2, value * 0.2 or 0.3]
    return [choice for choice in typing.get_args(hint) if choice != value]


def perturbed(divergence: Divergence) -> Iterator[tuple[str, list[Divergence]]]:
    """Each of its settings by name, with the divergences that differ in it alone; inner ones too."""
    hints = typing.get_type_hints(type(divergence))
    for field in dataclasses.fields(divergence):
        value = getattr(divergence, field.name)
        if isinstance(value, Divergence):
            for name, inner in perturbed(value):
                yield name, [dataclasses.replace(divergence, **{field.name: x}) for x in inner]
        else:
            others = changes(value, hints[field.name])
            assert others, f"{field.name} has one value only"
            yield field.name, [dataclasses.replace(divergence, **{field.name: x}) for x in others]


@every
def test_every_setting_changes_value_and_gradient(divergence: Divergence) -> None:
    pairs = [random_pair(seed, scale=0.7) for seed in range(3)]
    for name, others in perturbed(divergence):
        tried = [(other, pair) for other in others for pair in pairs]
        values = [(other(*pair) - divergence(*pair)).abs() for other, pair in tried]
        slopes = [(closed_gradient(o, *pair) - closed_gradient(divergence, *pair)).abs().max() for o, pair in tried]
        assert max(slopes) > 1e-6, name
        assert (max(values) > 1e-6) != (name == "detached"), name  # what is detached has a value all the same


EXTREMES = {
    "a sure student": ([0.0, 0.0, 0.0], [0.0, -1e4, -1e4]),
    "a sure teacher": ([0.0, -1e4, -1e4], [0.0, 0.0, 0.0]),
    "sure of different tokens": ([0.0, -1e4, -2e4], [-1e4, 0.0, -3e4]),
    "no teacher mass": ([0.0, -math.inf, 1.0], [0.0, 1.0, 2.0]),
    "no mass on either side": ([0.0, -math.inf, 1.0], [0.0, -math.inf, 2.0]),
    "one token left": ([0.0, -math.inf, -math.inf], [0.0, -1e4, 2.0]),
    "a gap where exp overflows": ([0.0, -90.0, -200.0], [-200.0, -90.0, 0.0]),
}


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", EXTREMES)
def test_finite_at_the_extremes(divergence: Divergence, dtype: torch.dtype, case: str) -> None:
    teacher, student = (torch.tensor(x, dtype=dtype).log_softmax(-1) for x in EXTREMES[case])
    value = divergence(teacher, student)
    assert value.isfinite()
    assert not divergence.genuine or value >= -1e-6
    closed = closed_gradient(divergence, teacher, student)
    assert closed.isfinite().all()
    assert closed.sum().abs() <= 1e-5 * closed.abs().max() + 1e-12
    if student.isfinite().all():  # autograd of log_softmax itself has no number at -inf
        torch.testing.assert_close(closed, autograd_gradient(divergence, teacher, student), rtol=1e-4, atol=1e-6)


@every
@laws
@given(pair=pairs())
def test_slope_is_autograd_through_a_call(divergence: Divergence, pair: tuple[Tensor, Tensor]) -> None:
    """For all: what a surrogate holds constant is detached in its value too, so both paths train alike."""
    closed, expected = closed_gradient(divergence, *pair), autograd_gradient(divergence, *pair)
    torch.testing.assert_close(closed, expected, rtol=1e-9, atol=1e-12)


def differences(divergence: Divergence, teacher: Tensor, student: Tensor) -> Tensor:
    """The derivative of the value in the student's logits, by central differences."""
    n = len(student)
    step = 1e-5 * torch.eye(n, dtype=torch.float64)
    up, down = (divergence(teacher.expand(n, n), (student + d).log_softmax(-1)) for d in (step, -step))
    return (up - down) / 2e-5


@pytest.mark.parametrize("divergence", [d for d in ALL if not d.surrogate], ids=str)
@laws
@given(seed=st.integers(0, 10_000))
def test_gradient_is_the_limit_of_differences(divergence: Divergence, seed: int) -> None:
    teacher, student = random_pair(seed, size=5)
    density = divergence.unclipped.density(Pair.of(teacher, student)) if isinstance(divergence, EntryClipped) else None
    if isinstance(divergence, EntryClipped) and density is not None:
        assume(((density - divergence.ceiling).abs() > 1e-4).all())  # not across the edge of the ceiling
    assume(((teacher - student).abs() > 1e-4).all())  # nor of a sign
    expected = differences(divergence, teacher, student)
    torch.testing.assert_close(closed_gradient(divergence, teacher, student), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("divergence", [d for d in ALL if d.surrogate], ids=str)
def test_a_surrogate_is_one(divergence: Divergence) -> None:
    """Else its flag only hides it from the law above."""
    pairs = [random_pair(seed, size=5) for seed in range(3)]
    gaps = [(closed_gradient(divergence, *p) - differences(divergence, *p)).abs().max() for p in pairs]
    assert max(gaps) > 1e-3


@every
@laws
@given(pair=pairs())
def test_gradient_sums_to_zero(divergence: Divergence, pair: tuple[Tensor, Tensor]) -> None:
    assert closed_gradient(divergence, *pair).sum().abs() < 1e-12


@every
def test_no_gradient_reaches_the_teacher(divergence: Divergence) -> None:
    teacher, student = (x.requires_grad_() for x in random_pair(1))
    divergence(teacher, student).backward()
    assert teacher.grad is None
    assert student.grad is not None


@every
@laws
@given(pair=pairs())
def test_shortcuts_say_what_value_and_slope_say(divergence: Divergence, pair: tuple[Tensor, Tensor]) -> None:
    block = Pair.of(*pair)
    density, push = divergence.both(block)
    a, b = divergence.value(block)
    spelt = block.student * (0.0 if a is None else a) + block.teacher * (0.0 if b is None else b)
    spelt = spelt + (0.0 if (extra := divergence.extra_value(block)) is None else extra)
    torch.testing.assert_close(density, spelt, rtol=1e-9, atol=1e-12)
    a, b = divergence.slope(block)
    spelt = block.student * (0.0 if a is None else a) - block.teacher * (0.0 if b is None else b)
    spelt = spelt + (0.0 if (extra := divergence.extra_slope(block)) is None else extra)
    torch.testing.assert_close(push, spelt, rtol=1e-9, atol=1e-12)


@every
def test_one_number_a_position_in_the_dtype_given(divergence: Divergence) -> None:
    teacher, student = (torch.randn(2, 3, 5).log_softmax(-1) for _ in range(2))
    value = divergence(teacher, student)
    assert value.shape == (2, 3)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value[1, 2], divergence(teacher[1, 2], student[1, 2]))
    assert divergence(teacher.double(), student.double()).dtype == torch.float64


@every
def test_is_a_value_that_prints_compares_and_hashes(divergence: Divergence) -> None:
    assert eval(repr(divergence), vars(workbench.divergence)) == divergence
    assert hash(dataclasses.replace(divergence)) == hash(divergence)


# Relations between members.

weights = st.floats(0.01, 0.99)


@laws
@given(pair=pairs(), w=weights)
def test_jsd_with_roles_and_weight_swapped_is_itself(pair: tuple[Tensor, Tensor], w: float) -> None:
    p, q = pair
    torch.testing.assert_close(JSD(w)(p, q), JSD(1 - w)(q, p), rtol=1e-10, atol=1e-13)


@laws
@given(pair=pairs(), w=weights)
def test_jsd_is_both_skews_to_its_own_mixture(pair: tuple[Tensor, Tensor], w: float) -> None:
    expected = w * SkewKL(w)(*pair) + (1 - w) * SkewReverseKL(w)(*pair)
    torch.testing.assert_close(JSD(w)(*pair), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("divergence", [TotalVariation(), SquaredHellinger(), Jeffreys(), JSD()], ids=str)
@laws
@given(pair=pairs())
def test_symmetric_members(divergence: Divergence, pair: tuple[Tensor, Tensor]) -> None:
    p, q = pair
    torch.testing.assert_close(divergence(p, q), divergence(q, p), rtol=1e-10, atol=1e-13)


@laws
@given(seed=st.integers(0, 1000))
def test_ends_of_the_weights(seed: int) -> None:
    pair = random_pair(seed, scale=1.0)
    forward, reverse = ForwardKL()(*pair), ReverseKL()(*pair)
    tiny = 1e-6
    torch.testing.assert_close(JSD(tiny)(*pair) / tiny, forward, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(JSD(1 - tiny)(*pair) / tiny, reverse, rtol=1e-3, atol=1e-6)
    for near, end in ((JSD(tiny), 0 * forward), (JSD(1 - tiny), 0 * forward)):
        torch.testing.assert_close(near(*pair), end, rtol=0, atol=1e-4)
    for exact, end in (
        (SkewKL(0.0), forward),
        (SkewKL(1.0), 0 * forward),
        (SkewReverseKL(1.0), reverse),
        (SkewReverseKL(0.0), 0 * forward),
    ):
        torch.testing.assert_close(exact(*pair), end, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(
            closed_gradient(exact, *pair),
            autograd_gradient(exact, *pair) if end.abs() > 0 else torch.zeros_like(pair[0]),
        )


@laws
@given(pair=pairs(), w=weights)
def test_bounds(pair: tuple[Tensor, Tensor], w: float) -> None:
    slack = 1e-9
    assert JSD()(*pair) <= math.log(2) + slack
    assert SkewKL(w)(*pair) <= -math.log(w) + slack
    assert SkewReverseKL(w)(*pair) <= -math.log(1 - w) + slack
    variation, hellinger = TotalVariation()(*pair), SquaredHellinger()(*pair)
    assert variation**2 <= ForwardKL()(*pair) / 2 + slack  # Pinsker
    assert hellinger <= variation + slack <= (2 * hellinger).sqrt() + 2 * slack + 1e-7


@laws
@given(pair=pairs())
def test_the_value_of_todi_is_jeffreys_and_its_gradient_is_not(pair: tuple[Tensor, Tensor]) -> None:
    """Each entry's two KLs weighted by sigmoid(log p/q): the method is in the detaching alone."""
    p, q = pair
    torch.testing.assert_close(ToDi()(p, q), Jeffreys()(p, q), rtol=1e-10, atol=1e-13)
    logits = q.clone().requires_grad_()
    live = logits.log_softmax(-1)
    weight = torch.sigmoid(p - q)
    spelt = (weight * p.exp() * (p - live) + (1 - weight) * live.exp() * (live - p)).sum(-1)
    (expected,) = torch.autograd.grad(spelt, logits)
    torch.testing.assert_close(closed_gradient(ToDi(), p, q), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head", ["crossing_is_tail", "smallest_set"])
@laws
@given(pair=pairs(), share=st.floats(0.05, 0.95))
def test_adaptive_kl_mixes_the_kls_by_the_gap_in_its_head(pair: tuple[Tensor, Tensor], share: float, head: str) -> None:
    p, q = pair
    mass, kept = 0.0, set[int]()
    for v in p.argsort(descending=True).tolist():  # one entry after the other, as the papers tell it
        before, mass = mass, mass + float(p[v].exp())
        assume(abs(mass - share) > 1e-9)
        if not kept or (before < share if head == "smallest_set" else mass <= share):
            kept.add(v)
    assume(len(p.unique()) == len(p))
    gap = (p.exp() - q.exp()).abs()
    assume(gap.sum() > 1e-6)
    weight = gap[list(kept)].sum() / gap.sum()
    member = AdaptiveKL(share, head)
    value = weight * ForwardKL()(p, q) + (1 - weight) * ReverseKL()(p, q)
    slope = weight * closed_gradient(ForwardKL(), p, q) + (1 - weight) * closed_gradient(ReverseKL(), p, q)
    torch.testing.assert_close(member(p, q), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(closed_gradient(member, p, q), slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("few", [1, 2, 3, 128])
def test_adaptive_kl_looks_as_far_as_it_must(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaked, flat and mixed rows: those that need few entries must not decide for the others."""
    generator = torch.Generator().manual_seed(2)
    scale = torch.tensor([[8.0], [0.1], [1.0], [3.0]], dtype=torch.float64)
    teacher, student = (torch.randn(2, 4, 40, generator=generator, dtype=torch.float64) * scale).log_softmax(-1)
    members = [AdaptiveKL(share, head) for share in (0.2, 0.5, 0.9) for head in ("crossing_is_tail", "smallest_set")]
    expected = [member(teacher, student) for member in members]
    monkeypatch.setattr(weighted, "FEW", few)
    for member, known in zip(members, expected, strict=True):
        torch.testing.assert_close(member(teacher, student), known, rtol=1e-12, atol=0)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_adaptive_kl_sees_no_numbering_even_among_equals(order: tuple[int, ...]) -> None:
    """The likeliest, the crossing and the last may each have an equal."""
    index = list(order)
    p, q = log(0.5, 0.2, 0.2, 0.1)[index], log(0.1, 0.5, 0.2, 0.2)[index]
    for head in ("crossing_is_tail", "smallest_set"):
        assert float(AdaptiveKL(head=head)(p, q)) == pytest.approx(0.4939885513, abs=1e-9)
    for equals in ((0.4, 0.4, 0.1, 0.1), (0.4, 0.2, 0.2, 0.2), (0.25, 0.25, 0.25, 0.25)):
        for member in (AdaptiveKL(), AdaptiveKL(head="smallest_set"), AdaptiveKL(share=0.3)):
            first = member(log(*equals), log(0.1, 0.5, 0.15, 0.25))
            torch.testing.assert_close(member(log(*equals)[index], log(0.1, 0.5, 0.15, 0.25)[index]), first)


@pytest.mark.parametrize("temperature", [1.0, 1.5, 0.4])
@pytest.mark.parametrize("partner", ["student", "teacher", "uniform"])
@laws
@given(pair=pairs())
def test_concrete_score_is_the_weighted_sum_over_pairs(
    pair: tuple[Tensor, Tensor], partner: str, temperature: float
) -> None:
    teacher, student = pair
    of_student = (student / temperature).softmax(-1)
    other = {"student": of_student, "teacher": (teacher / temperature).softmax(-1)}
    a = other.get(partner, torch.full_like(of_student, 1 / len(student)))
    weight = (a[:, None] * of_student + a * of_student[:, None]) / 2
    logits = student.clone().requires_grad_()
    gap = logits - teacher
    spelt = (weight * (gap[:, None] - gap).square()).sum() / 4
    (expected,) = torch.autograd.grad(spelt, logits)
    member = ConcreteScore(partner, temperature)
    torch.testing.assert_close(member(teacher, student), spelt.detach(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(closed_gradient(member, teacher, student), expected, rtol=1e-8, atol=1e-10)


@laws
@given(pair=pairs())
def test_concrete_score_with_the_student_alone_has_reverse_kl_s_gradient(pair: tuple[Tensor, Tensor]) -> None:
    teacher, student = pair
    member = ConcreteScore()
    torch.testing.assert_close(
        closed_gradient(member, *pair), closed_gradient(ReverseKL(), *pair), rtol=1e-9, atol=1e-12
    )
    gap, p = student - teacher, student.exp()
    variance = (p * (gap - (p * gap).sum()).square()).sum()
    torch.testing.assert_close(member(*pair), variance / 2, rtol=1e-9, atol=1e-12)


@laws
@given(pair=pairs(), x=st.floats(0.05, 2.0), y=st.floats(0.05, 2.0))
def test_alpha_beta_is_its_formula_and_its_ends_are_limits(pair: tuple[Tensor, Tensor], x: float, y: float) -> None:
    p, q = pair
    s = x + y
    spelt = (x / s * (s * p).exp() + y / s * (s * q).exp() - (x * p + y * q).exp()).sum() / (x * y)
    torch.testing.assert_close(AlphaBeta(x, y)(p, q), spelt, rtol=1e-9, atol=1e-10)
    for end, near in ((AlphaBeta(x, 0.0), AlphaBeta(x, 1e-7)), (AlphaBeta(0.0, y), AlphaBeta(1e-7, y))):
        torch.testing.assert_close(end(p, q), near(p, q), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(closed_gradient(end, p, q), closed_gradient(near, p, q), rtol=1e-4, atol=1e-7)


@laws
@given(pair=pairs())
def test_members_that_alpha_beta_contains(pair: tuple[Tensor, Tensor]) -> None:
    for member, same, times in (
        (AlphaBeta(1.0, 0.0), ForwardKL(), 1.0),
        (AlphaBeta(0.0, 1.0), ReverseKL(), 1.0),
        (AlphaBeta(0.5, 0.5), SquaredHellinger(), 4.0),
    ):
        torch.testing.assert_close(member(*pair), same(*pair) * times, rtol=1e-9, atol=1e-12)
        slope = closed_gradient(same, *pair) * times
        torch.testing.assert_close(closed_gradient(member, *pair), slope, rtol=1e-9, atol=1e-12)
    p, q = pair
    assert not AlphaBeta(1.0, 1.0).f_divergence  # half the squared distance: merging entries can add
    torch.testing.assert_close(AlphaBeta(1.0, 1.0)(p, q), (p.exp() - q.exp()).square().sum() / 2, rtol=1e-9, atol=1e-12)


@laws
@given(pair=pairs())
def test_jeffreys_is_both_kls(pair: tuple[Tensor, Tensor]) -> None:
    p, q = pair
    torch.testing.assert_close(Jeffreys()(p, q), ForwardKL()(p, q) + ReverseKL()(p, q), rtol=1e-10, atol=1e-13)


def test_only_where_its_powers_sum_to_one_is_alpha_beta_an_f_divergence() -> None:
    apart, merged = (log(0.3, 0.3, 0.4), log(0.2, 0.2, 0.6)), (log(0.6, 0.4), log(0.4, 0.6))
    for member in (AlphaBeta(1.0, 1.0), AlphaBeta(0.5, 0.8), AlphaBeta(0.4, 0.6), AlphaBeta(1.0, 0.0)):
        grows = bool(member(*merged) > member(*apart) + 1e-12)
        assert grows != member.f_divergence, member


@pytest.mark.parametrize("inner", [d for d in ALL if d.genuine], ids=str)
def test_infinite_ceiling_clips_nothing(inner: Divergence) -> None:
    pair = random_pair(5)
    clipped = EntryClipped(inner, math.inf)
    assert clipped(*pair) == inner(*pair)
    torch.testing.assert_close(closed_gradient(clipped, *pair), closed_gradient(inner, *pair), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("inner", [d for d in ALL if d.genuine], ids=str)
@laws
@given(pair=pairs(), ceiling=st.floats(1e-4, 0.5))
def test_any_divergence_clips_with_autograd_s_gradient(
    inner: Divergence, pair: tuple[Tensor, Tensor], ceiling: float
) -> None:
    """A constant in A cancels only while every entry counts (`Divergence.offset`)."""
    clipped = EntryClipped(inner, ceiling)
    torch.testing.assert_close(
        closed_gradient(clipped, *pair), autograd_gradient(clipped, *pair), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: JSD(0.0), "ForwardKL"),
        (lambda: JSD(1.0), "ReverseKL"),
        (lambda: JSD(math.nan), "inside"),
        (lambda: SkewKL(-0.1), "teacher_weight=-0.1"),
        (lambda: SkewReverseKL(1.1), "in \\[0, 1\\]"),
        (lambda: EntryClipped(ForwardKL(), 0.0), "ceiling"),
        (lambda: AlphaBeta(0.0, 0.0), "two zeros"),
        (lambda: AlphaBeta(-0.5, 1.5), "below 0"),
        (lambda: AdaptiveKL(share=1.0), "inside \\(0, 1\\)"),
        (lambda: ConcreteScore(temperature=0.0), "temperature"),
    ],
)
def test_meaningless_parameters_are_refused_with_what_to_use(wrong, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        wrong()
    assert isinstance(caught.value, ValueError)


# Known answers.


def log_probs(case: dict) -> tuple[Tensor, Tensor]:
    if "teacher" in case:
        return tuple(torch.tensor(case[role], dtype=torch.float64).log() for role in ("teacher", "student"))
    return tuple(
        (torch.tensor(case[f"{role}_logits"], dtype=torch.float64) / case["temperature"]).log_softmax(-1)
        for role in ("teacher", "student")
    )


REFERENCES: dict[str, Callable[[dict, float, list[float]], bool]] = {
    "value + teacher entropy": lambda case, value, slope: (
        case["reference"] == pytest.approx(value + float(torch.special.entr(log_probs(case)[0].exp()).sum()), abs=1e-9)
    ),
    "gradient times student logits": lambda case, value, slope: (
        case["reference"]
        == pytest.approx(sum(g * z / case["temperature"] for g, z in zip(slope, case["student_logits"], strict=True)))
    ),
    "student_power times value": lambda case, value, slope: (
        case["reference"] == pytest.approx(value * case["arguments"]["student_power"], abs=1e-10)
    ),
    "another number under another numbering": lambda case, value, slope: abs(case["reference"] - value) > 1e-2,
}
"""What a reference implementation's number is where it is not our value, on purpose."""


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['divergence']}-{c['arguments']}")
def test_known_answers(case: dict) -> None:
    divergence = getattr(workbench.divergence, case["divergence"])(**case["arguments"])
    teacher, student = log_probs(case)
    value, slope = float(divergence(teacher, student)), closed_gradient(divergence, teacher, student).tolist()
    assert {"value", "gradient", "reference"} & set(case)
    if "value" in case:
        assert value == pytest.approx(case["value"], abs=case["tolerance"])
    if "gradient" in case:
        assert slope == pytest.approx(case["gradient"], abs=case.get("gradient_tolerance", 1e-10))
    if "reference" in case:
        assert REFERENCES[case["reference_is"]](case, value, slope)


def test_entries_of_forward_kl_on_e0() -> None:
    pair = Pair.of(log(0.7, 0.2, 0.1), log(0.2, 0.5, 0.3))
    assert ForwardKL().density(pair).tolist() == pytest.approx([0.8769340779, -0.1832581464, -0.1098612289], abs=1e-10)


@pytest.mark.parametrize(
    ("p", "q", "ceiling", "loss", "gradient", "before", "after"),
    [
        ((0.7, 0.2, 0.1), (0.2, 0.5, 0.3), 0.05, -0.2431, (0.06, -0.05, -0.01), 0.58381, 0.58852),
        ((0.96, 0.04), (0.90, 0.10), 0.05, 0.01335, (0.036, -0.036), 0.02531, 0.02574),
        ((0.93, 0.07), (0.95, 0.05), 1e-6, -0.01979, (-0.0465, 0.0465), 0.003765, 0.003953),
    ],
)
def test_clipping_entries_turns_the_gradient(p, q, ceiling, loss, gradient, before, after) -> None:
    """OPSD's clip where it binds: a step of 0.1 down the clipped loss raises the divergence (A1, pitfall 1)."""
    teacher, student = log(*p), log(*q)
    clipped = EntryClipped(ForwardKL(), ceiling)
    slope = closed_gradient(clipped, teacher, student)
    assert float(clipped(teacher, student)) == pytest.approx(loss, abs=5e-5)
    assert slope.tolist() == pytest.approx(gradient, abs=1e-12)
    assert float(ForwardKL()(teacher, student)) == pytest.approx(before, abs=5e-6)
    stepped = (student - 0.1 * slope).log_softmax(-1)
    assert float(ForwardKL()(teacher, stepped)) == pytest.approx(after, abs=5e-6)


def test_clipped_gradient_is_the_mass_kept_times_the_student_less_the_teacher_kept() -> None:
    teacher, student = random_pair(11)
    kept = ForwardKL().density(Pair.of(teacher, student)) < 0.05
    p, q = teacher.exp(), student.exp()
    expected = p[kept].sum() * q - kept * p
    assert 0 < int(kept.sum()) < 7
    torch.testing.assert_close(closed_gradient(EntryClipped(ForwardKL(), 0.05), teacher, student), expected)


def test_sequence_kl_is_the_sum_of_token_kls() -> None:
    """OPSDC's chain rule (A2): two steps of two tokens."""
    p1, q1 = log(0.6, 0.4), log(0.5, 0.5)
    p2, q2 = torch.stack((log(0.9, 0.1), log(0.2, 0.8))), torch.stack((log(0.7, 0.3), log(0.4, 0.6)))
    kl = ForwardKL()
    head, tail = kl(p1, q1), (p1.exp() * kl(p2, q2)).sum()
    assert float(head) == pytest.approx(0.0201355136, abs=1e-10)
    assert float(tail) == pytest.approx(0.1063995427, abs=1e-10)
    whole = kl((p1[:, None] + p2).flatten(), (q1[:, None] + q2).flatten())
    assert float(whole) == pytest.approx(float(head + tail), abs=1e-12)


def test_endpoints_of_jsd_on_f3() -> None:
    """GKD's ends are not limits: the scale jumps."""
    p, q = log(0.7, 0.2, 0.1), log(0.3, 0.4, 0.3)
    assert float(JSD(1e-6)(p, q)) / 1e-6 == pytest.approx(0.3446174539, abs=1e-9)
    assert float(JSD(1 - 1e-6)(p, q)) / 1e-6 == pytest.approx(0.3526527864, abs=1e-9)
    ratio = closed_gradient(JSD(0.9), p, q).norm() / closed_gradient(ReverseKL(), p, q).norm()
    assert float(ratio) == pytest.approx(0.0885446272, abs=1e-9)


def test_shifting_either_logits_changes_nothing() -> None:
    p, q = log(0.7, 0.2, 0.1), log(0.3, 0.4, 0.3)
    for divergence in ALL:
        shifted = divergence((p + 5).log_softmax(-1), (q - 3).log_softmax(-1))
        torch.testing.assert_close(shifted, divergence(p, q), rtol=1e-12, atol=1e-14)
