"""One divergence core for every teacher.

Promises: for log-probs `(..., V)` a divergence returns `(...)` in nats; its closed-form gradient is autograd's (or it
says `surrogate`). `fused_loss` gives the numbers of `reference_loss` with memory flat in the number of tokens;
`generic_loss` does the same for terms that are no sum over the vocabulary. Forward KL is KL(teacher || student); no
gradient reaches the teacher.

Never here: masks by position, averages over tokens (weights arrive ready), rollouts, recipes, models.
"""

from workbench.divergence.family import (
    ALL,
    JSD,
    EntryClipped,
    ForwardKL,
    Jeffreys,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    SquaredHellinger,
    TotalVariation,
)
from workbench.divergence.fused import fused_loss
from workbench.divergence.generic import generic_loss
from workbench.divergence.heads import Head, LowRank, Scored
from workbench.divergence.loss import Loss, Options, Part, TokenRows
from workbench.divergence.pair import Divergence, Pair
from workbench.divergence.reference import reference_loss
from workbench.divergence.sparse import SparseTeacher
from workbench.divergence.transforms import Temperature, TopK, Transform

__all__ = [
    "ALL",
    "JSD",
    "Divergence",
    "EntryClipped",
    "ForwardKL",
    "Head",
    "Jeffreys",
    "Loss",
    "LowRank",
    "Options",
    "Pair",
    "Part",
    "ReverseKL",
    "Scored",
    "SkewKL",
    "SkewReverseKL",
    "SparseTeacher",
    "SquaredHellinger",
    "Temperature",
    "TokenRows",
    "TopK",
    "TotalVariation",
    "Transform",
    "fused_loss",
    "generic_loss",
    "reference_loss",
]
