"""What goes into a loss over tokens and what comes out: heads, rows, parts; nothing here multiplies a matrix twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.divergence.heads import Scored
from workbench.divergence.pair import Divergence
from workbench.divergence.sparse import SparseTeacher
from workbench.divergence.tiles import Vocabulary
from workbench.errors import UsageError
from workbench.records import Tokens, TokenStats

TokenFunction = Callable[[TokenStats], Tensor]
"""(n,) numbers from what is known about n tokens; pure, and treated as constants by the gradient."""


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Which token each row of hidden states predicts, and what was known of it beforehand (see `TokenStats`)."""

    ids: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    behaviour: Float[Tensor, " n"]
    advantage: Float[Tensor, " n"]
    temperature: Float[Tensor, " n"] | None = None
    """Divides the logits of both roles at each token, after the softcap and beside the heads' own temperature: every
    part, value and statistic is that of the tempered distributions (AdaKD, 2510.11615). A constant."""

    def take(self, index: Tensor | slice) -> TokenRows:
        """Some of the rows."""
        return TokenRows(
            self.ids[index],
            self.position[index],
            self.behaviour[index],
            self.advantage[index],
            None if self.temperature is None else self.temperature[index],
        )


@dataclass(frozen=True, eq=False)
class Part:
    """One summand sum_i weight_i value_i of the loss. Exactly one of `divergence`, `sampled`, `term` is its value.

    `weight` is a constant and holds everything that multiplies the token: mask, coefficient, 1/N_k, rollout weight.
    """

    weight: Float[Tensor, " n"]
    divergence: Divergence | None = None
    """value_i = D(p_T || p_S) at token i; needs a teacher."""
    sampled: TokenFunction | None = None
    """u (n,): value_i = -u_i log p_S(y_i), slope u (p_S - onehot). u = 1: cross-entropy; advantage: policy gradient."""
    term: Callable[[Tokens], Tensor] | None = None
    """(n,) by autograd from both whole distributions; only `generic_loss` and `reference_loss` take it."""
    token_clip: float | None = None
    """value_i = min(value_i, token_clip); no gradient where it binds."""
    gate: TokenFunction | None = None
    """One factor (n,) for this part alone, as `Options.token_weight` is for all."""

    def __post_init__(self) -> None:
        """Refuse a part that says two things or none. Raises UsageError (a ValueError)."""
        if sum(kind is not None for kind in (self.divergence, self.sampled, self.term)) != 1:
            raise UsageError(
                "A Part needs exactly one of divergence, sampled, term. Each is its value. Make two Parts of two."
            )


@dataclass(frozen=True, eq=False)
class Options:
    """How a loss is computed; only `token_weight` changes its value."""

    token_weight: TokenFunction | None = None
    """One factor (n,) for all parts, from the statistics of the tokens at hand (so it may use entropies)."""
    entropies: bool = False
    """Whether statistics carry both entropies: one more pass."""
    chunk: int | None = None
    """Tokens whose logits exist at once; None chooses (256 on CPU, by bytes on GPU)."""
    grad: bool = True
    """False: values and statistics only, no gradient buffers."""


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss and what it was made of. Everything but `loss` is detached: backward through it raises.

    Rows whose weight is zero in every part are never projected: their values and weights are 0, their statistics NaN.
    """

    loss: Float[Tensor, ""]
    """sum_k sum_i weights_ki values_ki; differentiable once, through hidden states, head weight and head bias."""
    values: Float[Tensor, "k n"]
    """Per part and token, nats, after `token_clip`."""
    weights: Float[Tensor, "k n"]
    """Per part and token: `Part.weight` times `token_weight`."""
    stats: TokenStats
    turned: Bool[Tensor, " n"] | None = None
    """Where an `EntryClipped` part's gradient points against the unclipped one (cosine < 0); None without one."""


@dataclass(frozen=True, eq=False)
class Call:
    """A call: what every path starts from."""

    student: Scored
    teacher: Scored | SparseTeacher | None
    rows: TokenRows
    parts: Sequence[Part]
    options: Options = field(default_factory=Options)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    """Which of the vocabulary the heads hold."""

    def checked(self) -> Call:
        """Itself, or UsageError (a ValueError) for shapes and combinations that cannot be computed."""
        n, (held, h) = len(self.rows.ids), self.student.head.checked("student").weight.shape
        if self.student.hidden.shape != (n, h):
            raise UsageError(_mismatch("student hidden states", self.student.hidden, (n, h)))
        v = self.vocabulary.size(held)
        if isinstance(self.teacher, SparseTeacher):
            compared = [part.divergence for part in self.parts if part.divergence is not None]
            self._checked_sparse(self.teacher.checked(n, v, compared))
        elif self.teacher is not None:
            self._checked_dense(self.teacher)
        for part in self.parts:
            if part.weight.shape != (n,):
                raise UsageError(_mismatch("a part's weight", part.weight, (n,)))
            if part.divergence is not None and self.teacher is None:
                raise UsageError(
                    f"{part.divergence} compares with a teacher, but teacher is None. Nothing to compare with."
                    " Score a teacher, or use a sampled part."
                )
        if n and not 0 <= int(self.rows.ids.min()) <= int(self.rows.ids.max()) < v:
            raise UsageError(f"Token ids must lie in 0..{v - 1}. The head has no other rows. Check the tokenizer.")
        self._checked_temperature()
        return self

    def _checked_dense(self, teacher: Scored) -> None:
        n, v = len(self.rows.ids), len(self.student.head.weight)
        if teacher.hidden.shape != (n, teacher.head.checked("teacher").weight.shape[1]):
            raise UsageError(_mismatch("teacher hidden states", teacher.hidden, (n, "its head's width")))
        if len(teacher.head.weight) != v:
            raise UsageError(
                f"Teacher and student have {len(teacher.head.weight)} and {v} logits. They are compared entry by"
                " entry. Slice the padded vocabulary, or use a teacher with the same tokenizer."
            )

    def _checked_sparse(self, teacher: SparseTeacher) -> None:
        if any(part.term is not None for part in self.parts):
            raise UsageError(
                f"A `term` part sees whole distributions, but the teacher is known at {teacher.ids.shape[1]} entries"
                " a token. Use a divergence, or a teacher with hidden states."
            )
        if self.rows.temperature is not None:
            raise UsageError(
                "Token temperatures were given with a sparse teacher. The log-probs of some entries cannot be brought"
                " to another temperature. Use a teacher with hidden states."
            )

    def _checked_temperature(self) -> None:
        temperature = self.rows.temperature
        if temperature is None:
            return
        if temperature.shape != self.rows.ids.shape:
            raise UsageError(_mismatch("the token temperatures", temperature, (len(self.rows.ids),)))
        if not bool(((temperature > 0) & temperature.isfinite()).all()):
            raise UsageError("A token temperature is not a number > 0. It divides logits. 1 changes nothing.")

    def take(self, index: Tensor | slice) -> Call:
        """The call restricted to some rows."""
        return replace(
            self,
            student=replace(self.student, hidden=self.student.hidden[index]),
            teacher=self._teacher(index),
            rows=self.rows.take(index),
            parts=[replace(part, weight=part.weight[index]) for part in self.parts],
        )

    def _teacher(self, index: Tensor | slice) -> Scored | SparseTeacher | None:
        if isinstance(self.teacher, Scored):
            return replace(self.teacher, hidden=self.teacher.hidden[index])
        return None if self.teacher is None else self.teacher.take(index)

    def live(self) -> Tensor | None:
        """Rows with a weight in some part; None if all have one."""
        if not self.parts:
            return None
        alive = torch.stack([part.weight != 0 for part in self.parts]).any(0)
        return None if bool(alive.all()) else alive.nonzero().squeeze(1)

    def chunks(self, size: int) -> list[slice]:
        """All rows in the fewest chunks of at most `size`, as even as they come."""
        n = len(self.rows.ids)
        count = -(-n // size)
        edges = [n * i // count for i in range(count + 1)] if count else []
        return [slice(lo, hi) for lo, hi in pairwise(edges)]

    @property
    def dtype(self) -> torch.dtype:
        """What sums are kept in: float32, or float64 where the hidden states are."""
        return torch.promote_types(self.student.hidden.dtype, torch.float32)


@dataclass(frozen=True, eq=False)
class Found:
    """What one chunk comes to: values and weights (K, n), statistics and turned (n,), all detached."""

    values: Tensor
    weights: Tensor
    stats: TokenStats
    turned: Tensor | None


def statistics(rows: TokenRows, student: Sequence[Tensor | None], teacher: Sequence[Tensor | None]) -> TokenStats:
    """From (log-prob of the written token, entropy) of each role."""
    return TokenStats(
        ids=rows.ids,
        position=rows.position,
        student_logp=student[0] if student[0] is not None else rows.behaviour,
        teacher_logp=teacher[0],
        behaviour=rows.behaviour,
        advantage=rows.advantage,
        student_entropy=student[1],
        teacher_entropy=teacher[1],
    )


def needed(teacher: Scored | SparseTeacher | None, weights: Sequence[Tensor]) -> Tensor | None:
    """(n,) where some weight is not 0, for `token_numbers`; None: the teacher knows everything."""
    if not isinstance(teacher, SparseTeacher) or not weights:
        return None
    return torch.stack([weight != 0 for weight in weights]).any(0)


def token_numbers(function: TokenFunction, stats: TokenStats, name: str, needed: Tensor | None = None) -> Tensor:
    """What a token function says, as constants.

    Raises UsageError on another shape than (n,), and on NaN where a number is `needed` and a sparse teacher does not
    know what the function asks for; where it is not needed NaN becomes 0.
    """
    numbers = function(stats).detach()
    if numbers.shape != stats.student_logp.shape:
        raise UsageError(
            f"`{name}` returned shape {tuple(numbers.shape)} for {len(stats.ids)} tokens. One number a token is needed."
            " Reduce over nothing, and keep nothing between calls."
        )
    numbers = numbers.to(stats.student_logp)
    if needed is None:
        return numbers
    lacking = numbers.isnan()
    for what, given in (("log-prob of the written token", stats.teacher_logp), ("entropy", stats.teacher_entropy)):
        if given is not None and bool((lacking & needed & given.isnan()).any()):
            raise UsageError(
                f"`{name}` needs the teacher's {what} at a token where a sparse teacher does not know it."
                " It has some entries of the distribution only. Give target_logp and entropy with it, or ask for less."
            )
    return numbers.masked_fill(lacking & ~needed, 0.0)


def part_weights(call: Call, stats: TokenStats) -> Tensor:
    """(K, n): each part's weight times the common token weight."""
    like = stats.student_logp
    if not call.parts:
        return like.new_zeros(0, len(like))
    weights = torch.stack([_own_weight(part, stats) for part in call.parts])
    if call.options.token_weight is None:
        return weights
    counted = needed(call.teacher, list(weights))
    return weights * token_numbers(call.options.token_weight, stats, "token_weight", counted)


def _own_weight(part: Part, stats: TokenStats) -> Tensor:
    weight = part.weight.detach().to(stats.student_logp.dtype)
    return weight if part.gate is None else weight * token_numbers(part.gate, stats, "gate")


def assemble(call: Call, live: Tensor | None, found: Sequence[Found]) -> Loss:
    """The chunks side by side, and the rows that were not computed: values 0, statistics NaN."""
    n, like = len(call.rows.ids), call.student.hidden.detach()

    def whole(chunks: Sequence[Tensor], fill: float, shape: tuple[int, ...] = (n,)) -> Tensor:
        joined = torch.cat(list(chunks), -1) if chunks else like.new_zeros(*shape[:-1], 0, dtype=call.dtype)
        if live is None:
            return joined
        return joined.new_full(shape, fill).index_copy_(-1, live, joined)

    def scored(name: str, asked: bool) -> Tensor | None:
        return whole([getattr(f.stats, name) for f in found], torch.nan) if asked else None

    shape, teacher, entropies = (len(call.parts), n), call.teacher is not None, call.options.entropies
    values = whole([f.values for f in found], 0.0, shape)
    weights = whole([f.weights for f in found], 0.0, shape)
    stats = statistics(
        call.rows,
        (scored("student_logp", True), scored("student_entropy", entropies)),
        (scored("teacher_logp", teacher), scored("teacher_entropy", teacher and entropies)),
    )
    turned = [f.turned for f in found if f.turned is not None]
    loss = (values * weights).sum(dtype=torch.float64).to(call.dtype)
    return Loss(loss, values, weights, stats, whole(turned, 0.0) if turned else None)


def _mismatch(what: str, tensor: Tensor, expected: tuple[object, ...]) -> str:
    shape = "(" + ", ".join(map(str, expected)) + ")"
    return f"Shape of {what} is {tuple(tensor.shape)}, not {shape}. One row a completion token. Check the caller."
