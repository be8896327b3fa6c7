"""A teacher known at K entries a token: from a cache, a server, or cut out of a whole distribution.

Let S be a token's entries, p_S(v) the student. A divergence compares K + 1 buckets, S and the tail, or S alone
(`rest`). Its gradient in the V logits is a number times the student's own probabilities, and K corrections:

    g_v = p_S(v) (G_tail - c),  v outside S;    g_k = p_S(k) (G_k - c),  k in S;    G_b = dD/dp_S(b), c = sum p_S(b) G_b

so it takes three matrix products and no teacher tile. p_S(b) G_b is `Divergence.push` on the buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.divergence.heads import Scored
from workbench.divergence.pair import LOG_FLOOR, Divergence
from workbench.divergence.transforms import Rest
from workbench.errors import UsageError

CHUNK = 256
"""Tokens whose logits exist at once in `SparseTeacher.of`."""
SLACK = 0.02
"""How far above 1 a token's mass may be: log-probs are often kept in 16 bits."""


@dataclass(frozen=True, eq=False)
class SparseTeacher:
    """Log-probs (nats) of N tokens at up to K entries each, at the one temperature they were made with.

    `rest` says what is compared, r being the ratio of what is written:

        bucket                 K + 1 entries: the tail is one. A lower bound of D, never above it (data processing).
        renormalised           both over S. Blind to the tail; a token with one entry teaches nothing.
        unnormalised           neither: sum over S of the entries of D. Can be negative.
        teacher_renormalised   the teacher over S, the student over everything (EOPD, 2603.07079).

    A token with fewer than K entries is padded with log-probs of -inf: such an entry is none, whatever its id, and
    the student's mass there is the tail's. UsageError for misfits; ids and masses are looked at by `checked`.
    """

    ids: Int[Tensor, "n k"]
    logp: Float[Tensor, "n k"]
    rest: Rest = "bucket"
    tail_logp: Float[Tensor, " n"] | None = None
    """Log of the mass outside; None: what the entries leave, which is coarse where they leave little."""
    entropy: Float[Tensor, " n"] | None = None
    """Of the whole distribution, nats."""
    target_logp: Float[Tensor, " n"] | None = None
    """Of the written token; None, or NaN: known only where the token is among the entries."""
    ranked: bool = True
    """Whether the entries are its likeliest; False: somebody named them, and what lies outside may be likelier."""

    def __post_init__(self) -> None:
        """Refuse what cannot mean anything. Raises UsageError (a ValueError)."""
        if self.rest not in get_args(Rest):
            raise UsageError(f"SparseTeacher(rest={self.rest!r}) is unknown. It is one of {', '.join(get_args(Rest))}.")
        if self.ids.ndim != 2 or self.ids.shape != self.logp.shape or not self.ids.shape[1]:
            raise UsageError(
                f"A sparse teacher has ids {tuple(self.ids.shape)} and log-probs {tuple(self.logp.shape)}."
                " Both are (tokens, K), K >= 1. Pad tokens with fewer entries with log-probs of -inf."
            )
        for name in ("tail_logp", "entropy", "target_logp"):
            numbers = getattr(self, name)
            if numbers is not None and numbers.shape != self.ids.shape[:1]:
                raise UsageError(
                    f"{name} of a sparse teacher has shape {tuple(numbers.shape)} for {len(self.ids)} tokens."
                    " One number a token is needed. Use NaN where it is not known."
                )
        if self.rest == "renormalised" and self.ids.shape[1] < 2:
            raise UsageError(
                "A sparse teacher with K = 1, renormalised, teaches nothing. One entry renormalised is always 1."
                ' Use K >= 2, or rest="bucket".'
            )

    def cut(self, k: int, rest: Rest) -> SparseTeacher:
        """Its k likeliest entries, with another `rest`; what is dropped joins the tail. UsageError for k > K."""
        if k > self.ids.shape[1]:
            raise UsageError(
                f"A sparse teacher knows {self.ids.shape[1]} entries a token, and {k} are compared. The others are in"
                f" its tail. Compare at most {self.ids.shape[1]}, or keep more of the teacher."
            )
        if k == self.ids.shape[1]:
            return replace(self, rest=rest)
        logp, order = self.logp.sort(-1, descending=True)
        gone = logp[:, k:].clamp(min=LOG_FLOOR).logsumexp(-1)
        tail = None if self.tail_logp is None else torch.logaddexp(self.tail_logp, gone)
        return replace(self, ids=self.ids.gather(-1, order)[:, :k], logp=logp[:, :k], rest=rest, tail_logp=tail)

    @property
    def kept(self) -> Tensor:
        """(n, K): which entries are there."""
        return self.logp > LOG_FLOOR

    def take(self, index: Tensor | slice) -> SparseTeacher:
        """Some of the tokens."""

        def some(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[index]

        return replace(
            self,
            ids=self.ids[index],
            logp=self.logp[index],
            tail_logp=some(self.tail_logp),
            entropy=some(self.entropy),
            target_logp=some(self.target_logp),
        )

    def checked(self, n: int, vocabulary: int, divergences: Sequence[Divergence] = ()) -> SparseTeacher:
        """Itself, or UsageError (a ValueError): not n tokens, ids outside, an id twice, more mass than 1.

        Nor can it be compared by `divergences` that count entries without mass, where tokens have fewer than others.
        """
        if len(self.ids) != n:
            raise UsageError(
                f"A sparse teacher knows {len(self.ids)} tokens of {n}. One row a completion token. Check the caller."
            )
        kept = self.kept
        if (kept & ((self.ids < 0) | (self.ids >= vocabulary))).any():
            raise UsageError(
                f"A sparse teacher's ids must lie in 0..{vocabulary - 1}. The student's head has no other rows."
                " Use a teacher with the same tokenizer."
            )
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        ordered = torch.where(kept, self.ids.long(), -1 - place).sort(-1).values
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(-1)
        if twice.any():
            raise UsageError(
                f"A sparse teacher names an entry twice (token {int(twice.nonzero()[0])}). Its mass would count twice."
                " Add the masses up first."
            )
        mass = self._mass() if self.tail_logp is None else self._mass() + self.tail_logp.double().exp()
        ragged = not bool(kept.all()) or (self.rest == "bucket" and self.ids.shape[1] >= vocabulary)
        for divergence in divergences if ragged else ():
            if counts(divergence):
                raise UsageError(
                    f"{divergence} counts entries even if they have no mass, and some tokens of the sparse teacher have"
                    " fewer than K, or no tail. Their padding would count. Use K entries everywhere, K < V."
                )
        wrong = ~(mass <= 1.0 + SLACK)  # NaN is wrong
        if wrong.any():
            raise UsageError(
                f"A sparse teacher's entries and tail have mass {float(mass[wrong][0]):.3g} at token"
                f" {int(wrong.nonzero()[0])}. A distribution has 1. Give log-probs (nats), not logits or counts."
            )
        return self

    def known(self, written: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(n,) log-prob of the tokens that were written, and entropy; NaN where they are not known."""
        match = (self.ids == written.unsqueeze(-1)) & self.kept
        found = torch.where(match, self.logp, 0.0).sum(-1).to(dtype).masked_fill(~match.any(-1), torch.nan)
        entropy = torch.full_like(found, torch.nan) if self.entropy is None else self.entropy.to(dtype)
        if self.target_logp is None:
            return found, entropy
        given = self.target_logp.to(dtype)
        return torch.where(given.isnan(), found, given), entropy

    def teacher(self, vocabulary: int, dtype: torch.dtype) -> Tensor:
        """(n, K + 1) with the tail last, or (n, K): the teacher's log-probs as they are compared."""
        tail = torch.log1p(-self._mass().clamp(max=1.0)) if self.tail_logp is None else self.tail_logp.double()
        tail = tail.clamp(min=LOG_FLOOR).masked_fill(self.kept.sum(-1) >= vocabulary, LOG_FLOOR)  # nothing is outside
        entries = self.logp.to(dtype)
        return self._arranged(entries, tail.to(dtype), self.rest in ("renormalised", "teacher_renormalised"))

    def student(self, entries: Tensor, tail: Tensor) -> Tensor:
        """The student's, from its log-probs (n, K) at the entries and (n,) of the tail."""
        return self._arranged(entries, tail, self.rest == "renormalised")

    def pair(self, student_logp: Tensor) -> tuple[Tensor, Tensor]:
        """Both as they are compared, from the student's (n, V); its gradient flows."""
        logp, kept = student_logp.clamp(min=LOG_FLOOR), self.kept
        entries = logp.gather(-1, self.ids.long().masked_fill(~kept, 0))
        tail = outside(logp, self.ids, kept)
        return self.teacher(logp.shape[-1], logp.dtype), self.student(entries, tail)

    @classmethod
    def of(
        cls,
        scored: Scored,
        k: int,
        temperature: float | None = None,
        *,
        written: Tensor | None = None,
        rest: Rest = "bucket",
    ) -> SparseTeacher:
        """The k likeliest entries of a whole teacher, with tail, entropy, and the written tokens' log-probs.

        Args:
            scored: hidden states (N, H) and head; logits exist for some hundred tokens at once.
            k: entries a token, at most the whole vocabulary.
            temperature: in place of the head's own.
            written: (N,) ids of the tokens that were written; None: their log-probs are known only among the k.
            rest: see `SparseTeacher`.
        """
        head = scored.head if temperature is None else replace(scored.head, temperature=temperature)
        dtype = torch.promote_types(scored.hidden.dtype, torch.float32)
        columns: list[list[Tensor]] = [[], [], [], [], []]
        with torch.no_grad():
            for lo in range(0, max(1, len(scored.hidden)), CHUNK):
                logp = head.logits(scored.hidden[lo : lo + CHUNK].to(dtype)).log_softmax(-1)
                top = logp.topk(min(k, logp.shape[-1]), -1)
                aim = top.indices[:, 0] if written is None else written[lo : lo + CHUNK]
                entropy = torch.special.entr(logp.exp()).sum(-1)
                tail = outside(logp.clamp(min=LOG_FLOOR), top.indices, torch.ones_like(top.indices, dtype=torch.bool))
                found = top.indices, top.values, tail, entropy, logp.gather(-1, aim[:, None])[:, 0]
                for column, piece in zip(columns, found, strict=True):
                    column.append(piece)
        ids, values, tails, entropies, targets = (torch.cat(column) for column in columns)
        return cls(ids, values, rest, tails, entropies, None if written is None else targets)

    def _mass(self) -> Tensor:
        """(n,) of the entries, float64: what they leave is a difference."""
        return self.logp.double().exp().sum(-1)

    def _arranged(self, entries: Tensor, tail: Tensor, renormalised: bool) -> Tensor:
        absent = ~self.kept
        entries = entries.clamp(min=LOG_FLOOR).masked_fill(absent, LOG_FLOOR)
        if renormalised:
            entries = entries.log_softmax(-1).masked_fill(absent, LOG_FLOOR)
        return torch.cat((entries, tail.unsqueeze(-1)), -1) if self.rest == "bucket" else entries


@torch.no_grad()
def likeliest(scored: Scored, k: int) -> Int[Tensor, "n k"]:
    """The ids of a role's k likeliest entries at each token, the likeliest first; k at most the vocabulary.

    Logits exist for some hundred tokens at once.
    """
    dtype = torch.promote_types(scored.hidden.dtype, torch.float32)
    chunks = torch.split(scored.hidden, CHUNK) if len(scored.hidden) else (scored.hidden,)
    return torch.cat([scored.head.logits(chunk.to(dtype)).topk(k, -1).indices for chunk in chunks])


def counts(divergence: Divergence) -> bool:
    """Whether entries without mass change its value: asked of it, with and without one."""
    teacher, student = (torch.tensor(p, dtype=torch.float64).log() for p in ((0.5, 0.5, 0.0), (0.25, 0.75, 0.0)))
    with_one, without = divergence(teacher, student), divergence(teacher[:2], student[:2])
    return not torch.allclose(with_one, without, rtol=1e-9, atol=1e-12)


def outside(logp: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
    """(n,) log of the mass of (n, V) outside the kept of `ids` (n, K): summed over the others, not 1 - sum."""
    token, place = kept.nonzero(as_tuple=True)
    chosen = torch.zeros_like(logp, dtype=torch.bool)
    chosen[token, ids[token, place].long()] = True
    return logp.masked_fill(chosen, LOG_FLOOR).logsumexp(-1)
