"""AdaKD's temperatures and loss: known answers and the gradient that must not leak."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workbench.divergence import ForwardKL, ReverseKL
from workbench.divergence.tempering import difficulty, tempered_loss, token_temperatures
from workbench.errors import InputError

laws = settings(max_examples=50, deadline=None, derandomize=True)
TEACHER = ((0.7, 0.2, 0.1), (0.4, 0.35, 0.25))
STUDENT = ((0.3, 0.4, 0.3), (0.5, 0.3, 0.2))
DETACHED = (
    (-0.1713818171, 0.0698827808, 0.1014990363),
    (0.0506114225, -0.0262272812, -0.0243841413),
)
LEAKING = (
    (-0.1694368221, 0.0690065313, 0.1004302908),
    (0.0594582750, -0.0307339075, -0.0287243677),
)


def log(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def near(values: object) -> object:
    return pytest.approx(values, abs=1e-9)


def test_difficulty_is_the_hellinger_distance() -> None:
    assert difficulty(log(TEACHER), log(STUDENT)).tolist() == near([0.2927364639, 0.0717117273])
    assert float(difficulty(log(TEACHER[0]), log(TEACHER[0]))) == 0.0


@pytest.mark.parametrize(
    ("strength", "expected"),
    [(0.5, (1.3498588076, 1.0, 0.7408182207)), (0.3, (1.1972173631, 1.0, 0.8352702114)), (0.0, (1.0, 1.0, 1.0))],
)
def test_harder_tokens_are_colder(strength: float, expected: tuple[float, ...]) -> None:
    scores = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    assert token_temperatures(scores, strength=strength).tolist() == near(list(expected))
    assert token_temperatures(scores, base=2.0, strength=strength).tolist() == near([2 * t for t in expected])


def test_an_even_count_takes_the_lower_median() -> None:
    scores = torch.tensor([0.2927364639, 0.0717117273], dtype=torch.float64)
    assert token_temperatures(scores).tolist() == near([0.6418587944, 1.0])


def test_the_median_is_of_the_selected_and_everyone_gets_a_temperature() -> None:
    scores = torch.tensor([0.1, 0.2, 0.4, 0.9], dtype=torch.float64)
    selected = torch.tensor([False, False, True, True])
    temperatures = token_temperatures(scores, selected=selected)
    assert temperatures[2] == 1.0
    assert temperatures[0] == near(math.exp(-0.5 * math.tanh(math.log(0.1 / 0.4))))
    with pytest.raises(InputError, match="median"):
        token_temperatures(scores, selected=torch.zeros(4, dtype=torch.bool))


@laws
@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=9), strength=st.floats(0, 1))
def test_temperatures_are_bounded_ordered_and_finite(scores: list[float], strength: float) -> None:
    hardness = torch.tensor(scores, dtype=torch.float64)
    temperatures = token_temperatures(hardness, strength=strength)
    assert temperatures.isfinite().all()
    assert (temperatures >= math.exp(-strength) - 1e-12).all()
    assert (temperatures <= math.exp(strength) + 1e-12).all()
    assert (temperatures[hardness.argsort()].diff() <= 1e-12).all()
    assert token_temperatures(torch.zeros(3)).tolist() == [1.0] * 3


@pytest.mark.parametrize(("divergence", "value"), [(ReverseKL(), 0.3410469957), (ForwardKL(), 0.3077992592)])
def test_squared_temperature_times_the_divergence(divergence: object, value: float) -> None:
    loss = tempered_loss(log(TEACHER[:1]), log(STUDENT[:1]), divergence, base=0.7408182207)
    assert float(loss) == near(value)


@pytest.mark.parametrize(("leaking", "expected"), [(False, DETACHED), (True, LEAKING)])
def test_the_temperature_is_a_constant_unless_it_leaks(leaking: bool, expected: object) -> None:
    logits = log(STUDENT).requires_grad_()
    teacher = log(TEACHER).requires_grad_()
    loss = tempered_loss(teacher, logits.log_softmax(-1), leaking=leaking)
    loss.backward()
    assert float(loss.detach()) == near(0.1765636412)
    assert logits.grad is not None
    for row, known in zip(logits.grad.tolist(), expected, strict=True):
        assert row == near(list(known))
    assert teacher.grad is None


def test_no_strength_and_all_tokens_is_the_plain_loss() -> None:
    plain = ReverseKL()(log(TEACHER), log(STUDENT)).mean()
    torch.testing.assert_close(tempered_loss(log(TEACHER), log(STUDENT), strength=0.0), plain)
