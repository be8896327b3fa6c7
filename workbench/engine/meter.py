"""What the models of a run computed: tokens read and written, and the FLOPs and bytes that follow from them.

Counted where a decoder is called, so what several texts share counts as often as it was read, and padding never. For
t tokens read, n tokens whose logits were formed, P weights that a token is multiplied by (embeddings apart; of experts
those it is sent to), V entries of width h, and attention layers l of a_l = heads x head dim:

    forward    2 P t + 4 sum_l a_l pairs_l + 2 V h n            pairs_l: a token and one that it attends to, itself too
    backward   2 (P + P_trained) t + 8 sum_l a_l pairs_l        the decoder's
    head       2 V h n for the states' gradient, 2 V h n more where the head is trained

These are a model's FLOPs: what is computed for padding, for masked pairs, or a second time under activation
checkpointing, is time and no work. Layers without attention pairs (recurrent ones) count by their weights alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from workbench.engine.heads import base_model, decoder
from workbench.records import Role

Mode = Literal["write", "read", "learn"]
"""Decoding; scoring without gradient; scoring with one."""
Key = tuple[Role, Mode, bool]
"""Who, how, and whether token by token (decoding behind a cache)."""


@dataclass(frozen=True)
class Attention:
    """Layers of one kind."""

    window: int | None
    """Positions a token attends to; None: all before it."""
    width: int
    """heads x head dim, summed over the layers."""
    cached: int
    """Bytes of keys and values a position, summed over the layers."""


@dataclass(frozen=True)
class Shape:
    """A model, as far as its FLOPs go."""

    weights: int
    """That a token is multiplied by, head and embeddings apart."""
    trained: int
    """Of these."""
    attention: tuple[Attention, ...]
    head: int
    """V x h."""
    head_trained: bool
    width: int
    """Bytes of a weight."""

    @classmethod
    def of(cls, model: Any) -> Shape:
        """Look at a causal LM as it is now: an adapter that is switched off multiplies nothing."""
        stack, config = decoder(model), base_model(model).config.get_text_config()
        tables = {id(m.weight) for m in stack.modules() if isinstance(m, nn.Embedding)}
        off = any(getattr(m, "disable_adapters", None) is True for m in stack.modules())  # models have a method of it
        weights = trained = 0
        for name, p in stack.named_parameters():
            if p.ndim < 2 or id(p) in tables or (off and "lora_" in name):
                continue
            count = p.numel() if p.ndim == 2 else int(p.numel() * _sent(config))
            weights += count
            trained += count if p.requires_grad else 0
        head = base_model(model).get_output_embeddings().weight
        width = head.element_size()
        return cls(weights, trained, _attention(config, width), head.numel(), head.requires_grad, width)


def _sent(config: Any) -> float:
    """Share of the experts that a token is sent to."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((n for name in names if (n := getattr(config, name, None))), None)
    return (getattr(config, "num_experts_per_tok", None) or experts or 1) / (experts or 1)


def _attention(config: Any, size: int) -> tuple[Attention, ...]:
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    windows = {"full_attention": None, "sliding_attention": getattr(config, "sliding_window", None)}
    return tuple(
        Attention(window, n * heads * dim, n * 2 * keys * dim * size)
        for kind, window in windows.items()
        if (n := list(kinds).count(kind))
    )


@dataclass
class Count:
    """What one role did in one way."""

    shape: Shape | None = None
    passes: int = 0
    read: int = 0
    """Tokens that went through the decoder."""
    pairs: tuple[int, ...] = ()
    """As `shape.attention`."""
    logits: int = 0
    """Tokens whose logits were formed here."""
    tokens: int = 0
    """Completion tokens written or scored, wherever that was."""

    def forward(self) -> float:
        """FLOPs without any gradient's."""
        if self.shape is None:
            return 0.0
        pairs = sum(4.0 * a.width * n for a, n in zip(self.shape.attention, self.pairs, strict=True))
        return 2.0 * self.shape.weights * self.read + pairs + 2.0 * self.shape.head * self.logits

    def head_backward(self) -> float:
        """FLOPs of the gradients that the loss forms as it goes."""
        if self.shape is None:
            return 0.0
        return 2.0 * self.shape.head * self.logits * (1 + self.shape.head_trained)

    def backward(self) -> float:
        """FLOPs of the decoder's gradients."""
        if self.shape is None:
            return 0.0
        pairs = sum(8.0 * a.width * n for a, n in zip(self.shape.attention, self.pairs, strict=True))
        return 2.0 * (self.shape.weights + self.shape.trained) * self.read + pairs

    def bytes(self, single: bool) -> float:
        """Memory that had to be read: all weights a pass, and token by token every key and value attended to."""
        if self.shape is None:
            return 0.0
        weights = float(self.passes) * self.shape.width * (self.shape.weights + (self.shape.head if single else 0))
        cached = sum(float(n) * a.cached for a, n in zip(self.shape.attention, self.pairs, strict=True))
        return weights + (cached if single else 0.0)


class Meter:
    """Counts for one engine. `take` reads it and begins anew."""

    def __init__(self) -> None:
        """Nothing counted."""
        self._counts: dict[Key, Count] = {}
        self._sums: dict[Key, Tensor] = {}
        self._shapes: dict[tuple[Role, int], Shape] = {}
        self._counts_now = True

    @contextlib.contextmanager
    def counting(self, counted: bool) -> Iterator[None]:
        """Unless `counted`, see nothing while the context lasts: what only fills up is nobody's work."""
        before, self._counts_now = self._counts_now, counted
        try:
            yield
        finally:
            self._counts_now = before

    @contextlib.contextmanager
    def watching(self, role: Role, model: Any, writing: bool = False) -> Iterator[None]:
        """Count what the decoder of `model` is given while the context lasts."""
        if (role, id(model)) not in self._shapes:
            self._shapes[role, id(model)] = Shape.of(model)
        shape = self._shapes[role, id(model)]

        def called(_: Any, args: Any, given: dict[str, Any]) -> None:
            if not self._counts_now:
                return
            mode: Mode = "write" if writing else "learn" if torch.is_grad_enabled() else "read"
            ids, mask = given["input_ids"], given.get("attention_mask")
            self._call(role, mode, shape, ids, torch.ones_like(ids) if mask is None else mask)

        handle = decoder(model).register_forward_pre_hook(called, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _call(self, role: Role, mode: Mode, shape: Shape, ids: Tensor, mask: Tensor) -> None:
        key = (role, mode, ids.shape[1] == 1)
        count = self._counts.setdefault(key, Count())
        count.shape, count.passes = shape, count.passes + 1
        own = mask[:, -ids.shape[1] :].sum(1)
        before = mask.sum(1) - own
        sums = [own.sum()]
        for kind in shape.attention:
            sums.append((_attended(before + own, kind.window) - _attended(before, kind.window)).sum())
        found = torch.stack(sums)  # stays on the device: nobody waits for it
        self._sums[key] = self._sums[key] + found if key in self._sums else found

    def scored(self, role: Role, tokens: int, here: bool = True) -> None:
        """So many completion tokens were scored; `here`: their states were asked for, and logits of each are formed."""
        if not self._counts_now:
            return
        mode: Mode = "learn" if role == "student" and torch.is_grad_enabled() else "read"
        count = self._counts.setdefault((role, mode, False), Count())
        count.tokens += tokens
        count.logits += tokens if here else 0

    def wrote(self, role: Role, tokens: int, beside: bool = False, here: bool = True) -> None:
        """So many completion tokens were written; `beside`: by another, in step with this role.

        Not `here`: by a server, which forms its own logits. A probe's pass beside it is no sign of them.
        """
        if not self._counts_now:
            return
        count = self._counts.setdefault((role, "write", True), Count())
        count.tokens += 0 if beside else tokens
        count.logits += tokens if here else 0

    def take(self) -> dict[Key, Count]:
        """Everything since the last call."""
        for key, sums in self._sums.items():
            count = self._counts[key]
            count.read, *pairs = sums.tolist()
            count.pairs = tuple(pairs)
        for (role, mode, single), count in self._counts.items():
            if count.shape is None and (other := self._counts.get((role, mode, not single))) is not None:
                count.shape, count.pairs = other.shape, (0,) * len(other.pairs)
        out, self._counts, self._sums = self._counts, {}, {}
        return out


def _attended(tokens: Tensor, window: int | None) -> Tensor:
    """Pairs among the first `tokens` of a text: each with itself and at most `window` - 1 before it."""
    if window is None:
        return tokens * (tokens + 1) // 2
    inside = tokens.clamp(max=window)
    return inside * (inside + 1) // 2 + (tokens - inside) * window
