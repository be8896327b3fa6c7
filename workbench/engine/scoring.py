"""Prompts and completions to the hidden states that predict the completions: teacher forcing.

The only shift in the code base is here: the state at index p - 1 + t predicts token t of a completion behind a prompt
of p tokens. What texts share is read once (`stems.py`), the rest in groups of similar length, padded on the right;
padding never leaves this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.engine.prefill import grouped
from workbench.engine.stems import Continued, Sharing, Stem, cheapest, continued, read_behind, shareable


def states(
    decoder: Any,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    device: torch.device,
    *,
    apart: bool = True,
) -> Tensor:
    """(N, h) states that predict each completion token, sequence after sequence; with gradient where it is enabled.

    `apart` False: by a single call of the decoder, whatever padding that takes.
    """
    asked, said = [tuple(prompt) for prompt in prompts], [tuple(completion) for completion in completions]
    if not apart:
        texts = Continued(
            Stem.empty(device), *(tuple(x) for x in (range(len(asked)), [0] * len(asked), [0] * len(asked)))
        )
        return _group(decoder, texts, range(len(asked)), asked, said)
    way = cheapest(asked, said, device) if shareable(decoder) else Sharing()
    order, found = [], []
    for texts in continued(decoder, way, asked, device):
        lengths = [len(asked[i]) - skip + len(said[i]) for i, skip in zip(texts.rows, texts.skipped, strict=True)]
        rising = sorted(range(len(lengths)), key=lengths.__getitem__)
        for group in grouped([lengths[i] for i in rising], device):
            order += [texts.rows[i] for i in rising[group]]
            found.append(_group(decoder, texts, rising[group], asked, said))
    sorted_states = torch.cat(found)
    if order == list(range(len(order))):
        return sorted_states
    places = torch.split(torch.arange(len(sorted_states)), [len(said[i]) for i in order])
    back = torch.cat([place for _, place in sorted(zip(order, places, strict=True), key=_first)])
    return sorted_states.index_select(0, back.to(device))


def _first(pair: tuple[int, Tensor]) -> int:
    return pair[0]


def _group(
    decoder: Any,
    texts: Continued,
    members: Sequence[int],
    prompts: Sequence[tuple[int, ...]],
    completions: Sequence[tuple[int, ...]],
) -> Tensor:
    """One forward pass over some of the texts; the states that predict their completions."""
    tails, told = [], []
    for i in members:
        tails.append(prompts[texts.rows[i]][texts.skipped[i] :])
        told.append(completions[texts.rows[i]])
    hidden, _ = read_behind(
        decoder, texts.stem.take([texts.of[i] for i in members]), [a + b for a, b in zip(tails, told, strict=True)]
    )
    width = hidden.shape[1]
    rows = []
    for i, (tail, completion) in enumerate(zip(tails, told, strict=True)):
        first = i * width + len(tail) - 1
        rows.append(torch.arange(first, first + len(completion)))
    return hidden.flatten(0, 1).index_select(0, torch.cat(rows).to(hidden.device))
