"""Liger's own code, called: the chunked distillation loss. Runs in the peers' environment."""

from __future__ import annotations

from inputs import Inputs
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

BETA = {"fkl": 0.0, "jsd": 0.5, "rkl": 1.0}


class Chunked(Inputs):
    """Its soft loss alone, in its default chunks of 1,024 tokens; `compiled` as it ships."""

    def __init__(self, case: str, n: int, kind: str = "jsd", frozen: bool = False, compiled: bool = False) -> None:
        super().__init__(case, n, frozen)
        self.loss_of = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA[kind], compiled=compiled
        )

    def run(self) -> None:
        loss = self.loss_of(
            student_input=self.hidden,
            student_weight=self.weight,
            teacher_input=self.other,
            teacher_weight=self.teacher_weight,
            true_labels=self.ids,
        )
        self.backward(loss)
