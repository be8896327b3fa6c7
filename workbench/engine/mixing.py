"""Decoding with two models at once: tokens from share * p_T + (1 - share) * p_S. MiniLLM (arXiv:2306.08543), eq. 5.

Both read the same completion behind their own prompts, in step. The log-prob kept is the mixture's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.divergence import Head
from workbench.engine.sampling import Row, begin, log_probs, pick
from workbench.records import Sampling

Running = Callable[[], contextlib.AbstractContextManager[tuple[Any, Head]]]
"""A role's decoder and head, for the duration of a context: both roles may be one module that is switched."""


def decode_mixed(
    student: Running,
    teacher: Running,
    rows: Sequence[Row],
    sampling: Sampling,
    stop_ids: frozenset[int],
    stopped: Callable[[], bool],
) -> None:
    """Write every row to its end, in place; each has a `guide` and the same `share`.

    When `stopped()` turns true every unfinished row ends as `cancelled`.
    """
    guides = [row.guide for row in rows if row.guide is not None]
    with student() as (decoder, head):
        device = head.weight.device
        batch = begin(decoder, rows, sampling.max_new_tokens, device)
    with teacher() as (decoder, head):
        beside = begin(decoder, guides, sampling.max_new_tokens, head.weight.device)
    share = rows[0].share
    for step in range(sampling.max_new_tokens):
        if stopped():
            for row in batch.rows:
                row.stop = "cancelled"
            return
        with student() as (_, head):
            own = log_probs(head.logits(batch.hidden), sampling)
        with teacher() as (_, head):
            guided = log_probs(head.logits(beside.hidden), sampling)
        chosen = pick(mixed(own, guided.to(own.device), share), batch.rows, sampling, step)
        alive = batch.advance(chosen, stop_ids)
        beside.advance(chosen, stop_ids)
        if not alive or step + 1 == sampling.max_new_tokens:
            return
        for voice, reader in ((student, batch), (teacher, beside)):
            with voice() as (decoder, _):
                reader.forward(decoder)


def mixed(own: Tensor, guided: Tensor, share: float) -> Tensor:
    """Log of the mixture; exact at both ends."""
    if share in (0.0, 1.0):
        return guided if share else own
    return torch.logaddexp(own + math.log1p(-share), guided + math.log(share))
