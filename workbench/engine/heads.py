"""A causal LM taken apart: the stack of layers, and what its output layer multiplies hidden states with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workbench.divergence import Head, LowRank
from workbench.errors import InputError


def base_model(model: Any) -> Any:
    """The causal LM inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: Any) -> Any:
    """The stack that maps ids to final (normalised) hidden states, without the head."""
    return base_model(model).get_decoder()


def head_of(model: Any) -> Head:
    """The head of a causal LM; Gemma's softcap, Cohere's and Granite's logit scale, and LoRA on it included."""
    base = base_model(model)
    weight, bias, low_rank = projection(base.get_output_embeddings())
    config = base.config.get_text_config() if hasattr(base.config, "get_text_config") else base.config
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(
        weight=weight,
        bias=bias,
        scale=float(scale),
        softcap=getattr(config, "final_logit_softcapping", None),
        low_rank=low_rank,
    )


def projection(linear: Any) -> tuple[Tensor, Tensor | None, LowRank | None]:
    """(weight, bias, low-rank update) of an output layer; LoRA on it is an update while it is switched on.

    Several active adapters are one update, of their ranks' sum. Raises InputError for an adapter that is no sum of a
    weight and a product of two factors: logits would be others than the model's.
    """
    weight, bias = linear.weight, getattr(linear, "bias", None)
    if not hasattr(linear, "base_layer"):
        return weight, bias, None
    if linear.disable_adapters:
        # The teacher's, under an adapter: swapped in for the moment, so keep hold of what is there now.
        return weight.detach(), bias, None
    if linear.merged:
        return weight, bias, None
    updates = [_update(linear, name) for name in linear.active_adapters if _holds(linear, name)]
    if len(updates) < 2:
        return weight, bias, updates[0] if updates else None
    down = torch.cat([update.down for update in updates])
    up = torch.cat([update.up * update.scale for update in updates], 1)
    return weight, bias, LowRank(down, up)


def _holds(linear: Any, name: str) -> bool:
    """Whether the layer has anything of this adapter."""
    return any(name in getattr(linear, group, ()) for group in linear.adapter_layer_names)


def _update(linear: Any, name: str) -> LowRank:
    """The factors of plain LoRA. Raises InputError for anything else."""
    plain = name in getattr(linear, "lora_A", ()) and name not in linear.lora_variant and not linear.lora_bias[name]
    if not plain or (linear.training and getattr(linear.lora_dropout[name], "p", 0.0)):
        raise InputError(
            f"adapter '{name}' on the output layer is no plain LoRA. The loss reads its factors, and knows no other"
            " kind, no bias and no dropout. Use plain LoRA there, or leave the output layer out."
        )
    return LowRank(linear.lora_A[name].weight, linear.lora_B[name].weight, float(linear.scaling[name]))
