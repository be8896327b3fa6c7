"""AdaKD's temperature per token (2510.11615): harder tokens are compared at lower temperature.

Pure functions over tokens; who trains with them decides where the temperatures act. Difficulty and temperature are
constants to the gradient. The released code lets the gradient through both: `tempered_loss(leaking=True)`, for tests.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.divergence.family import ReverseKL, SquaredHellinger
from workbench.divergence.pair import Divergence, Pair
from workbench.errors import InputError

HELLINGER = SquaredHellinger()
REVERSE_KL = ReverseKL()


def difficulty(
    teacher_logp: Float[Tensor, "*batch v"], student_logp: Float[Tensor, "*batch v"]
) -> Float[Tensor, "*batch"]:
    """Square root of sum_v (sqrt p_T - sqrt p_S)^2 / 2: the Hellinger distance s in [0, 1], at temperature 1."""
    return HELLINGER(teacher_logp, student_logp).clamp(min=0.0).sqrt()


def token_temperatures(
    difficulty: Float[Tensor, " n"],
    base: float = 1.0,
    strength: float = 0.5,
    selected: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, " n"]:
    """T = base * exp(-strength * tanh(log(s / median))): base e^-strength for hard tokens to base e^strength for easy.

    The median is that of the `selected` tokens (all, if None), the lower one of an even count as `torch.median` has
    it; every token gets a temperature. Where token and median are both zero, `base`. AdaKD: strength 0.5, on top of
    another method 0.3. InputError if nothing is selected.
    """
    among = difficulty if selected is None else difficulty[selected]
    if not among.numel():
        raise InputError(
            "token_temperatures got no token to take a median of. Temperatures are relative to it."
            " Select at least one token."
        )
    least = torch.finfo(difficulty.dtype).tiny
    ratio = difficulty.clamp(min=least).log() - among.median().clamp(min=least).log()
    return base * (-strength * ratio.tanh()).exp()


def tempered_loss(
    teacher_logp: Float[Tensor, "n v"],
    student_logp: Float[Tensor, "n v"],
    divergence: Divergence = REVERSE_KL,
    base: float = 1.0,
    strength: float = 0.5,
    leaking: bool = False,
) -> Float[Tensor, ""]:
    """Mean of T^2 D(p_T at T || p_S at T) over the tokens given, T each one's temperature: AdaKD's loss on a board.

    Hand over the selected tokens only. `leaking`: the gradient also runs through difficulty and temperature, into both
    sides, as in the released code. InputError without tokens.
    """
    teacher_logp = teacher_logp.detach()
    with torch.set_grad_enabled(leaking and torch.is_grad_enabled()):
        temperature = token_temperatures(difficulty(teacher_logp, student_logp), base, strength)
    scale = temperature.unsqueeze(-1)
    teacher, student = (teacher_logp / scale).log_softmax(-1), (student_logp / scale).log_softmax(-1)
    values = divergence.density(Pair(teacher, student).over(-1)).sum(-1)  # `Pair.of` would stop the leak
    return (temperature.square() * values).mean()
