"""TRL's own code, called: the loss of `DistillationTrainer`. Runs in the peers' environment."""

from __future__ import annotations

from inputs import Inputs
from trl.trainer.distillation_trainer import _chunked_divergence_loss

BETA = {"fkl": 0.0, "jsd": 0.5, "rkl": 1.0}


class Distillation(Inputs):
    """The chunked divergence, with the completion mask it takes; loss per valid token."""

    def __init__(self, case: str, n: int, kind: str = "jsd", frozen: bool = False, valid: int | None = None) -> None:
        super().__init__(case, n, frozen, valid)
        self.beta = BETA[kind]
        self.rows = 1 if valid is None else 8

    def run(self) -> None:
        shape = (self.rows, self.n // self.rows, -1)
        loss, _, _ = _chunked_divergence_loss(
            self.hidden.view(shape),
            self.other.view(shape),
            self.weight,
            self.teacher_weight,
            self.mask.view(shape[:2]),
            self.beta,
        )
        self.backward(loss)
