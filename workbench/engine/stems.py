"""What several texts begin with, read once: keys and values that all of them continue, with gradient.

Every chat begins with the same template, and the rollouts of a group with the same prompt; behind a prompt of p tokens
G rollouts of c tokens cost p + G c tokens instead of G (p + c). The sum is the same, so are its gradients: what a stem
is asked for by many flows back into it once. Only where a cache is keys and values for every position, and not while
activations are checkpointed, which throws away what a stem is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from workbench.engine.prefill import Prompt, grouped, price, shared_length


@dataclass(frozen=True, eq=False)
class Stem:
    """m beginnings of at most w tokens. Positions without a token are masked, wherever they stand."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    """Per layer keys and values, (m, heads, w, d)."""
    mask: Tensor
    """(m, w)."""

    @classmethod
    def empty(cls, device: torch.device) -> Stem:
        """One beginning of no tokens."""
        return cls((), torch.ones(1, 0, dtype=torch.long, device=device))

    @property
    def lengths(self) -> Tensor:
        """(m,) tokens."""
        return self.mask.sum(1)

    def take(self, index: Sequence[int]) -> Stem:
        """Row i is beginning `index[i]`."""
        if len(self.mask) == 1:  # no copies
            n = len(index)
            layers = tuple((k.expand(n, -1, -1, -1), v.expand(n, -1, -1, -1)) for k, v in self.layers)
            return Stem(layers, self.mask.expand(n, -1))
        at = torch.tensor(index, device=self.mask.device)
        return Stem(tuple((k.index_select(0, at), v.index_select(0, at)) for k, v in self.layers), self.mask[at])

    def cache(self) -> Any:
        """The same as a cache of transformers', to be read once."""
        from transformers import DynamicCache

        out = DynamicCache()
        for i, (keys, values) in enumerate(self.layers):
            out.update(keys, values, i)
        return out

    def wider(self, width: int) -> Stem:
        """With masked positions up to `width`."""
        more = width - self.mask.shape[1]
        layers = tuple((pad(k, (0, 0, 0, more)), pad(v, (0, 0, 0, more))) for k, v in self.layers)
        return Stem(layers, pad(self.mask, (0, more)))


def read_behind(decoder: Any, stem: Stem, texts: Sequence[Prompt], keep: bool = False) -> tuple[Tensor, Stem]:
    """((m, width, h) hidden states of texts behind the rows of `stem`, and the stem with them where `keep`).

    Texts are padded on the right; a state behind a text's end means nothing.
    """
    device, width = stem.mask.device, max(map(len, texts))
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    own = torch.zeros(len(texts), width, dtype=torch.long)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(text)
        own[i, : len(text)] = 1
    mask = torch.cat([stem.mask, own.to(device)], 1)
    position = stem.lengths[:, None] + torch.arange(width, device=device)
    # Without a stem nothing is cached: a cache built on the way makes packed rows attend to each other.
    more = {"cache": stem.cache(), "use_cache": True} if stem.layers or keep else {"use_cache": False}
    out = decoder(input_ids=ids.to(device), attention_mask=mask, position_ids=position, **more)
    if not keep:
        return out.last_hidden_state, stem
    return out.last_hidden_state, Stem(tuple((layer.keys, layer.values) for layer in out.cache.layers), mask)


@dataclass(frozen=True, eq=False)
class Continued:
    """Texts and what they continue: text i comes behind beginning `of[i]` of `stem`, which is `skipped[i]` tokens."""

    stem: Stem
    rows: tuple[int, ...]
    """Which of the texts asked for these are."""
    of: tuple[int, ...]
    skipped: tuple[int, ...]


@dataclass(frozen=True)
class Sharing:
    """What to read once: `template` tokens that all prompts begin with, and whole prompts that come more than once."""

    template: int = 0
    prompts: bool = False


def cheapest(prompts: Sequence[Prompt], completions: Sequence[Prompt], device: torch.device) -> Sharing:
    """The sharing that reads the fewest tokens, padding and what a forward pass costs included."""
    template = shared_length(sorted(set(prompts), key=len))
    ways = [Sharing(s, p) for s in dict.fromkeys((0, template)) for p in (False, True)]
    return min(ways, key=lambda way: _cost(way, prompts, completions, device))


def _cost(way: Sharing, prompts: Sequence[Prompt], completions: Sequence[Prompt], device: torch.device) -> int:
    repeated = _repeated(way, prompts)
    stems = [len(prompt) - way.template - 1 for prompt in repeated]
    leaves: tuple[list[int], list[int]] = ([], [])
    for prompt, completion in zip(prompts, completions, strict=True):
        known = len(prompt) - 1 if prompt in repeated else way.template
        leaves[prompt in repeated].append(len(prompt) - known + len(completion))
    first = way.template + price(device) if way.template else 0
    return first + sum(_padded(sorted(lengths), device) for lengths in (stems, *leaves))


def _padded(lengths: Sequence[int], device: torch.device) -> int:
    groups = grouped(lengths, device)
    return sum(lengths[g.stop - 1] * (g.stop - g.start) + price(device) for g in groups)


def _repeated(way: Sharing, prompts: Sequence[Prompt]) -> dict[Prompt, int]:
    """Prompts that come more than once, shortest first, each with its place; the last token is left to the texts."""
    if not way.prompts:
        return {}
    often = [p for p, n in Counter(prompts).items() if n > 1 and len(p) > way.template + 1]
    return {p: i for i, p in enumerate(sorted(often, key=len))}


def continued(decoder: Any, way: Sharing, prompts: Sequence[Prompt], device: torch.device) -> list[Continued]:
    """Read what is shared; all texts, each behind the longest beginning that was read for it."""
    stem = Stem.empty(device)
    if way.template:
        _, stem = read_behind(decoder, stem, [prompts[0][: way.template]], keep=True)
    repeated = _repeated(way, prompts)
    rest = [i for i, prompt in enumerate(prompts) if prompt not in repeated]
    found = [Continued(stem, tuple(rest), (0,) * len(rest), (way.template,) * len(rest))] if rest else []
    if repeated:
        rows = [i for i, prompt in enumerate(prompts) if prompt in repeated]
        stems = _read_prompts(decoder, stem, [prompt[way.template : -1] for prompt in repeated])
        of = tuple(repeated[prompts[i]] for i in rows)
        found.append(Continued(stems, tuple(rows), of, tuple(len(prompts[i]) - 1 for i in rows)))
    return found


def _read_prompts(decoder: Any, stem: Stem, texts: Sequence[Prompt]) -> Stem:
    """One stem with a row for each of the texts, lengths rising."""
    pieces = []
    for group in grouped([len(text) for text in texts], stem.mask.device):
        members = texts[group]
        _, read = read_behind(decoder, stem.take([0] * len(members)), members, keep=True)
        pieces.append(read)
    width = max(piece.mask.shape[1] for piece in pieces)
    pieces = [piece.wider(width) for piece in pieces]
    layers = tuple(
        (torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts]))
        for parts in zip(*(piece.layers for piece in pieces), strict=True)
    )
    return replace(pieces[0], layers=layers, mask=torch.cat([piece.mask for piece in pieces]))


def shareable(decoder: Any) -> bool:
    """Whether a cache of this model is keys and values for every position, and lasts until the gradient needs it."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = getattr(decoder, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return False
    layers = DynamicCache(config=config).layers
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    plain = all(type(layer) is DynamicLayer for layer in layers) and set(kinds) == {"full_attention"}
    recomputed = any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules())
    return plain and not (recomputed and decoder.training)
