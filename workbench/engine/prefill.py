"""From prompts to a cache that decoding writes into: what prompts share is read once, padding hardly ever.

Three things that a padded batch and a growing cache pay for are left out: the tokens with which all prompts begin are
read once; the rest is read in groups of similar length; and the cache has room for what is to come, so a step writes
its own keys and values and copies nobody else's. Rows are padded on the left, as before. A model whose cache is more
than keys and values (sliding windows, recurrent states) is read as one padded batch into its own cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

Prompt = tuple[int, ...]

_SHARED_FROM = 8
"""Common leading tokens worth a forward pass of their own."""
_GROUP_COSTS, _GROUP_COSTS_ON_DEVICE = 64, 4096
"""What one more forward pass costs, in tokens: an accelerator would rather read padding."""
_ROOM = 256
"""New tokens there is room for before the cache has to move."""


class Room:
    """One layer's keys and values (rows, heads, positions, d), with space behind them.

    What transformers asks of a cache layer, and rows that can be given up.
    """

    is_sliding = False
    is_compileable = False
    is_initialized = True

    def __init__(self, like: tuple[Tensor, Tensor], rows: int, length: int, room: int) -> None:
        """Empty: `length` positions of zeros (a masked NaN would still be one), `room` more unset."""
        self.rows, self.length = rows, length
        self.keys, self.values = (x.new_empty(rows, x.shape[1], length + room, x.shape[3]) for x in like)
        for x in (self.keys, self.values):
            x[:, :, :length].zero_()

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new positions; views of all there are."""
        first, self.length = self.length, self.length + keys.shape[-2]
        if self.length > self.keys.shape[-2]:
            self.keys, self.values = self._moved(self.keys, first), self._moved(self.values, first)
        self.keys[: self.rows, :, first : self.length] = keys
        self.values[: self.rows, :, first : self.length] = values
        return self.keys[: self.rows, :, : self.length], self.values[: self.rows, :, : self.length]

    def _moved(self, x: Tensor, used: int) -> Tensor:
        wider = x.new_empty(self.rows, x.shape[1], self.length + _ROOM, x.shape[3])
        wider[:, :, :used] = x[: self.rows, :, :used]
        return wider

    def keep(self, order: Sequence[int]) -> None:
        """Row i becomes what row order[i] was. `order` moves rows forward only, each to a place that is given up."""
        for i, source in enumerate(order):
            if i != source:
                self.keys[i, :, : self.length] = self.keys[source, :, : self.length]
                self.values[i, :, : self.length] = self.values[source, :, : self.length]
        self.rows = len(order)

    def get_seq_length(self) -> int:
        """Positions written."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(positions a query sees, the first of them)."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """None."""
        return -1


@dataclass
class Read:
    """Prompts that have been read: `hidden` (b, h) predicts each row's first token."""

    cache: Any
    mask: Tensor
    position: Tensor
    hidden: Tensor


def keep_rows(cache: Any, order: Sequence[int], device: torch.device) -> None:
    """Row i of the cache becomes what row order[i] was; the rest are given up."""
    if all(isinstance(layer, Room) for layer in cache.layers):
        for layer in cache.layers:
            layer.keep(order)
    else:
        cache.batch_select_indices(torch.tensor(order, device=device, dtype=torch.long))


def read(decoder: Any, prompts: Sequence[Prompt], new_tokens: int, device: torch.device) -> Read:
    """Read the prompts of all rows; equal ones once. There is room for `new_tokens` more before anything moves."""
    unique = sorted(set(prompts), key=len)
    place = {prompt: i for i, prompt in enumerate(unique)}
    index = torch.tensor([place[prompt] for prompt in prompts], device=device)
    ids, mask = padded(unique, device)
    position = mask.sum(1) - 1
    shared = shared_length(unique)
    pieces = _in_groups(decoder, unique, shared, device)
    if not pieces:
        shared, out = 0, _forward(decoder, ids, mask, None)
        if not _plain(out.cache):
            out.cache.batch_select_indices(index)
            return Read(out.cache, mask[index], position[index], out.last_hidden_state[index, -1])
        pieces = [out]
    hidden = torch.cat([out.last_hidden_state[:, -1] for out in pieces])
    cache = _assembled(unique, [out.cache for out in pieces], shared, index, min(new_tokens, _ROOM))
    return Read(cache, mask[index], position[index], hidden[index])


def _in_groups(decoder: Any, unique: Sequence[Prompt], shared: int, device: torch.device) -> list[Any]:
    """What the decoder says to each group, behind the tokens they share.

    [] if one batch is all there is, or if the cache is more than keys and values.
    """
    groups = [unique[group] for group in grouped([len(prompt) - shared for prompt in unique], device)]
    if len(groups) == 1 and not shared:
        return []
    common = None
    if shared:
        common = _forward(decoder, torch.tensor([unique[0][:shared]], device=device), None, None).cache
        if not _plain(common):
            return []
    pieces = []
    for group in groups:
        ids, mask = padded([prompt[shared:] for prompt in group], device)
        mask = torch.cat([mask.new_ones(len(group), shared), mask], 1)
        pieces.append(_forward(decoder, ids, mask, None if common is None else _repeated(common, len(group))))
        if not _plain(pieces[-1].cache):
            return []
    return pieces


def padded(prompts: Sequence[Prompt], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), padded on the left. The mask goes by position: a pad id may also end a text."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def shared_length(unique: Sequence[Prompt]) -> int:
    """How many leading tokens to read once: those all have in common, and at least one is left to each."""
    if len(unique) < 2:
        return 0
    same = sum(1 for _ in takewhile(_one, zip(*unique, strict=False)))
    shared = min(same, len(unique[0]) - 1)
    return shared if shared >= _SHARED_FROM else 0


def _one(tokens: tuple[int, ...]) -> bool:
    return len(set(tokens)) == 1


def price(device: torch.device) -> int:
    """What one more forward pass costs, in tokens."""
    return _GROUP_COSTS if device.type == "cpu" else _GROUP_COSTS_ON_DEVICE


def grouped(lengths: Sequence[int], device: torch.device) -> list[slice]:
    """Which neighbours to read together, `lengths` rising: the fewest padded tokens, where a group costs some too."""
    best: list[tuple[int, int]] = [(0, 0)]  # cost of the first i, and where their last group begins
    for i in range(1, len(lengths) + 1):
        best.append(min((best[j][0] + lengths[i - 1] * (i - j) + price(device), j) for j in range(i)))
    groups, end = [], len(lengths)
    while end:
        groups.append(slice(best[end][1], end))
        end = best[end][1]
    return groups[::-1]


def _forward(decoder: Any, ids: Tensor, mask: Tensor | None, cache: Any) -> Any:
    """`mask` covers what the cache holds too; a position is the number of tokens before it."""
    before = 0 if cache is None else cache.get_seq_length()
    if mask is None:
        mask = ids.new_ones(ids.shape)
    position = (mask.cumsum(1) - 1).clamp(min=0)[:, before:]
    more = {} if cache is None else {"cache": cache}
    return decoder(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=True, **more)


def _plain(cache: Any) -> bool:
    """Whether the cache is keys and values for every position, and nothing else."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers)


def _repeated(cache: Any, rows: int) -> Any:
    """A plain cache of one row as one of many."""
    from transformers import DynamicCache

    out = DynamicCache()
    for i, layer in enumerate(cache.layers):
        out.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), i)
    return out


def _assembled(unique: Sequence[Prompt], pieces: Sequence[Any], shared: int, index: Tensor, room: int) -> Any:
    """The groups' caches as one, padded on the left, a row for every entry of `index` into `unique`."""
    from transformers.cache_utils import CacheLayerMixin

    CacheLayerMixin.register(Room)  # a subclass would need the import before anybody decodes
    width, lengths = len(unique[-1]), [len(prompt) for prompt in unique]
    rows = index.tolist()
    whole = pieces[0]
    layers = []
    for i in range(len(whole.layers)):
        parts = [(piece.layers[i].keys, piece.layers[i].values) for piece in pieces]
        home = [(part, j) for part in parts for j in range(len(part[0]))]
        layer = Room(parts[0], len(rows), width, room)
        for row, u in enumerate(rows):
            part, j = home[u]
            rest = lengths[u] - shared
            for target, source in zip((layer.keys, layer.values), part, strict=True):
                target[row, :, width - rest : width] = source[j, :, source.shape[-2] - rest :]
                target[row, :, width - lengths[u] : width - rest] = source[j, :, :shared]
        for piece in pieces:
            piece.layers[i].keys = piece.layers[i].values = None
        layers.append(layer)
    whole.layers = layers
    return whole
