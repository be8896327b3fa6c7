"""One divergence core for every teacher.

Promises: for log-probs `(..., V)` a divergence returns `(...)` in nats; its closed-form gradient is autograd's (where
weights are constants to it, it says `surrogate`). `fused_loss` gives the numbers of `reference_loss` with memory flat
in the number of tokens; `generic_loss` does the same for terms that are no sum over the vocabulary. Forward KL is
KL(teacher || student); no gradient reaches the teacher.

Never here: masks by position, averages over tokens (weights arrive ready), rollouts, recipes, models.
"""

from workbench.divergence.family import (
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
from workbench.divergence.powers import AlphaBeta
from workbench.divergence.reference import reference_loss
from workbench.divergence.sparse import SparseTeacher, likeliest
from workbench.divergence.targets import AlphaMixture, GeometricBridge, TowardsTeacher
from workbench.divergence.transforms import Temperature, TopK, Transform
from workbench.divergence.weighted import AdaptiveKL, ConcreteScore, ToDi

__all__ = [
    "ALL",
    "JSD",
    "TRANSFORMS",
    "AdaptiveKL",
    "AlphaBeta",
    "AlphaMixture",
    "ConcreteScore",
    "Divergence",
    "EntryClipped",
    "ForwardKL",
    "GeometricBridge",
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
    "ToDi",
    "TokenRows",
    "TopK",
    "TotalVariation",
    "TowardsTeacher",
    "Transform",
    "fused_loss",
    "generic_loss",
    "likeliest",
    "reference_loss",
]

ALL: tuple[Divergence, ...] = (
    ForwardKL(),
    ReverseKL(),
    JSD(),
    JSD(teacher_weight=0.1),
    JSD(teacher_weight=0.9),
    SkewKL(),
    SkewReverseKL(),
    SkewReverseKL(detached=True),
    TotalVariation(),
    SquaredHellinger(),
    Jeffreys(),
    AlphaBeta(),
    AlphaBeta(teacher_power=0.4, student_power=0.6),
    AlphaBeta(teacher_power=1.0, student_power=0.0),
    AlphaBeta(teacher_power=0.0, student_power=0.8),
    ToDi(),
    AdaptiveKL(),
    AdaptiveKL(head="smallest_set"),
    ConcreteScore(),
    ConcreteScore(temperature=1.5),
    ConcreteScore(partner="teacher"),
    ConcreteScore(partner="uniform", temperature=2.0),
    EntryClipped(ForwardKL(), ceiling=0.05),
    EntryClipped(JSD(), ceiling=0.02),
    EntryClipped(AdaptiveKL(), ceiling=0.05),
    EntryClipped(AlphaBeta(), ceiling=0.05),
)
"""Every member with typical parameters: what the law tests run over."""

TRANSFORMS: tuple[Transform, ...] = (
    Temperature(0.5),
    Temperature(3.0, squared=True),
    TopK(1),
    TopK(3),
    TopK(3, support="student"),
    TopK(2, support="union"),
    TopK(3, rest="renormalised"),
    TopK(2, support="student", rest="renormalised"),
    TopK(2, support="union", rest="renormalised"),
    TopK(1, rest="unnormalised"),
    TopK(2, support="union", rest="unnormalised"),
    TopK(1, rest="teacher_renormalised"),
    TopK(3, support="student", rest="teacher_renormalised"),
    TowardsTeacher(),
    TowardsTeacher(0.0),
    GeometricBridge(),
    GeometricBridge(1.2),
    AlphaMixture(),
    AlphaMixture(0.1, power=1.0),
    AlphaMixture(0.4, power=0.0, replaces="teacher"),
    AlphaMixture(0.7, power=-1.0, replaces="teacher"),
)
"""Every transform with typical settings: what their law tests run over."""
