"""Prompts and completions to the hidden states that predict the completions: teacher forcing.

The only shift in the code base is here: the state at index p - 1 + t predicts token t of a completion behind a prompt
of p tokens. Rows are read in groups of similar length and padded on the right; padding never leaves this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.engine.prefill import grouped


def states(
    decoder: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
) -> Tensor:
    """(N, h) states that predict each completion token, sequence after sequence; with gradient where it is enabled."""
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    found = []
    for group in grouped([lengths[i] for i in order], device):
        members = order[group]
        found.append(_group(decoder, [prompts[i] for i in members], [completions[i] for i in members], device))
    sorted_states = torch.cat(found)
    if order == list(range(len(order))):
        return sorted_states
    places = torch.split(torch.arange(len(sorted_states)), [len(completions[i]) for i in order])
    back = torch.cat([place for _, place in sorted(zip(order, places, strict=True), key=_first)])
    return sorted_states.index_select(0, back.to(device))


def _first(pair: tuple[int, Tensor]) -> int:
    return pair[0]


def _group(
    decoder: Any, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
) -> Tensor:
    """One forward pass."""
    texts = [(*prompt, *completion) for prompt, completion in zip(prompts, completions, strict=True)]
    width = max(map(len, texts))
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    mask = torch.zeros(len(texts), width, dtype=torch.long)
    rows = []
    for i, text in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(text)
        mask[i, : len(text)] = 1
        first = i * width + len(prompts[i]) - 1
        rows.append(torch.arange(first, first + len(completions[i])))
    position = torch.arange(width).expand(len(texts), -1)
    found = decoder(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=position.to(device),
        use_cache=False,  # a cache built on the way makes packed rows attend to each other
    ).last_hidden_state
    return found.flatten(0, 1).index_select(0, torch.cat(rows).to(device))
