"""Batched decoding: left-padded prompts, one KV cache, rows leave the batch when they stop.

A rollout's random numbers are its own: one uniform a token from (seed, problem id, author, index), turned into a
token by inverting the cumulative distribution. Batch composition, padding and resuming therefore change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.divergence import Head
from workbench.divergence.pair import exp_
from workbench.engine.packed import Packing
from workbench.engine.prefill import keep_rows, read
from workbench.records import Sample, Sampling, StopReason

_NUCLEUS_FIRST = 1024
"""Top-p looks among this many candidates before it sorts a whole row."""


def uniforms(key: bytes, n: int) -> np.ndarray:
    """The n numbers in [0, 1) that decide a completion: `Request.key` says of which."""
    return np.random.default_rng(np.frombuffer(key, dtype=np.uint32)).random(n)


@dataclass
class Row:
    """One completion being written."""

    prompt: tuple[int, ...]
    draws: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop: StopReason = "length"
    guide: Row | None = None
    """The same completion behind the teacher's prompt, where every token is drawn from a mixture with the teacher."""
    share: float = 0.0
    """The teacher's part of that mixture."""

    def sample(self, version: int) -> Sample:
        """What was written, by weights that have seen `version` optimizer steps."""
        return Sample(tuple(self.tokens), tuple(self.logprobs), self.stop, (version, version))

    def restart(self) -> None:
        """Forget what was written: the batch it stood in did not fit."""
        self.tokens, self.logprobs, self.stop = [], [], "length"
        if self.guide is not None:
            self.guide.restart()


def decode(
    decoder: Any,
    head: Head,
    rows: Sequence[Row],
    sampling: Sampling,
    stop_ids: frozenset[int],
    stopped: Callable[[], bool],
) -> None:
    """Write every row to its end, in place. `head` must hold the sampling temperature 1: it is applied here.

    `decoder` maps ids to hidden states (no language-model head). Rows with the same prompt share its prefill. When
    `stopped()` turns true every unfinished row ends as `cancelled`.
    """
    with Packing(decoder, head) as project:
        state = begin(decoder, rows, sampling.max_new_tokens, head.weight.device)
        for step in range(sampling.max_new_tokens):
            if stopped():
                for row in state.rows:
                    row.stop = "cancelled"
                return
            chosen = _choose(project(state.hidden), state.rows, sampling, step)
            if not state.advance(chosen, stop_ids) or step + 1 == sampling.max_new_tokens:
                return
            state.forward(decoder)


def begin(decoder: Any, rows: Sequence[Row], new_tokens: int, device: torch.device) -> Batch:
    """Read the prompts of all rows; equal ones once."""
    start = read(decoder, [row.prompt for row in rows], new_tokens, device)
    return Batch(list(rows), start.cache, start.mask, start.position, start.hidden)


@dataclass
class Batch:
    """The rows still being written; `hidden` (b, h) predicts their next token, `last` (b,) is what they said last."""

    rows: list[Row]
    cache: Any
    mask: Tensor
    position: Tensor
    hidden: Tensor
    last: Tensor | None = None

    def advance(self, chosen: Tensor, stop_ids: frozenset[int]) -> bool:
        """Append one token a row and drop the rows that stopped; False when none is left."""
        alive = []
        for i, (row, token) in enumerate(zip(self.rows, chosen.tolist(), strict=True)):
            row.tokens.append(token)
            if token in stop_ids:
                row.stop = "stop"
            else:
                alive.append(i)
        if alive and len(alive) < len(self.rows):
            order = _closing_gaps(alive)
            self.rows = [self.rows[i] for i in order]
            keep = torch.tensor(order, device=self.mask.device, dtype=torch.long)
            self.mask, self.position, chosen = self.mask[keep], self.position[keep], chosen[keep]
            keep_rows(self.cache, order, self.mask.device)
        self.last = chosen
        return bool(alive)

    def forward(self, decoder: Any) -> None:
        """One decoding step for the rows that are left."""
        assert self.last is not None
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), 1)], dim=1)
        self.position = self.position + 1
        out = decoder(
            input_ids=self.last[:, None],
            attention_mask=self.mask,
            position_ids=self.position[:, None],
            cache=self.cache,
            use_cache=True,
        )
        self.hidden, self.cache = out.last_hidden_state[:, -1], out.cache


def _closing_gaps(alive: Sequence[int]) -> list[int]:
    """`alive` in an order in which rows stay where they are, and the last ones fill the places that came free."""
    places, tail = set(alive), [i for i in alive if i >= len(alive)]
    return [i if i in places else tail.pop() for i in range(len(alive))]


def log_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """(b, v) nats, at the sampling temperature; greedy sampling leaves it at 1."""
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    shifted = logits - logits.max(dim=-1, keepdim=True).values
    return shifted - exp_(shifted.clone()).sum(dim=-1, keepdim=True).log()


def _choose(logits: Tensor, rows: Sequence[Row], sampling: Sampling, step: int) -> Tensor:
    return pick(log_probs(logits, sampling), rows, sampling, step)


def pick(logp: Tensor, rows: Sequence[Row], sampling: Sampling, step: int) -> Tensor:
    """(b,) token ids; stores each one's log-prob under the untruncated distribution."""
    if sampling.temperature == 0:
        chosen = logp.argmax(dim=-1)
    else:
        draws = torch.tensor([row.draws[step] for row in rows], dtype=torch.float64, device=logp.device)
        chosen = draw(logp, draws, sampling)
    for row, value in zip(rows, logp.gather(-1, chosen[:, None]).squeeze(-1).tolist(), strict=True):
        row.logprobs.append(value)
    return chosen


def draw(logp: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """(b,) ids: the quantile `uniform` (b,) of softmax(logp) (b, v) after top-k and top-p.

    Top-p keeps the fewest most probable tokens whose mass reaches `top_p`, and at least one.
    """
    v = logp.shape[-1]
    k = min(sampling.top_k or v, v)
    if k == v and sampling.top_p >= 1.0:
        return _quantile(logp.exp(), uniform)
    if sampling.top_p < 1.0:
        first = min(k, _NUCLEUS_FIRST)
        values, order = logp.topk(first)
        short = first < k and bool((values.exp().sum(-1) < sampling.top_p).any())
        if short:
            values, order = logp.topk(k)
    else:
        values, order = logp.topk(k)
    probability = values.exp()
    if sampling.top_k:
        probability = probability / probability.sum(-1, keepdim=True)
    before = probability.cumsum(-1) - probability
    probability = torch.where(before < sampling.top_p, probability, 0.0)
    return order.gather(-1, _quantile(probability, uniform)[:, None]).squeeze(-1)


def _quantile(probability: Tensor, uniform: Tensor) -> Tensor:
    cumulative = probability.cumsum(-1, dtype=torch.float64)
    target = uniform[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    if bool((index == probability.shape[-1]).any()):
        # Rounding ran past the last token that has mass; step back onto it.
        last = (probability > 0).long().cumsum(-1).argmax(-1)
        index = torch.minimum(index, last)
    return index
