"""The model's own attention of one token on a CPU, by matrix products: what an answer is written with.

torch's fused attention of one query reads its keys many times slower than the memory gives them (docs/LOG.md). Within
`by_products` a model whose attention is torch's fused one, found by transformers' `AttentionInterface`, takes `attention` in its
place: the same function, rounded otherwise.
All else, several tokens at a time, a GPU or learning, goes to the fused one as before.

Shapes: B rows, H query heads, K key/value heads, D head dimension, S tokens in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sharedllm.architectures import Parts
from sharedllm.attention import attend_plainly

NAME = "sharedllm_one_token"  # under which transformers finds `attention`


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' `sdpa_attention_forward`: query [B, H, T, D], key and value [B, K, S, D] to [B, T, H, D]."""
    B, H, T, D = query.shape
    usual = T > 1 or query.device.type != "cpu" or torch.is_grad_enabled() or dropout > 0
    by_head = attention_mask is not None and attention_mask.shape[1] != 1
    if usual or by_head or any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap", "s_aux")):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    K, S = key.shape[1:3]
    bias = None
    if attention_mask is not None:
        bias = attention_mask.expand(B, 1, 1, S)
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill(~bias, -torch.inf)
        bias = bias.repeat_interleave(K, dim=0)
    keys, values = (x.reshape(B * K, 1, S, -1) for x in (key, value))
    attended = attend_plainly(
        query.reshape(B * K, H // K, 1, D), keys, values, bias, D**-0.5 if scaling is None else scaling
    )
    return attended.reshape(B, 1, H, -1), None


@contextmanager
def by_products(parts: Parts) -> Iterator[None]:
    """Within this block the layers' attention of one token is `attention`, where it is torch's fused one and on a CPU."""
    with attending_by(NAME, attention, [c for layer, c in fused(parts) if parts.device_of(layer).type == "cpu"]):
        yield


def fused(parts: Parts) -> list[tuple[int, Any]]:
    """Layers whose attention is torch's fused one by transformers' `AttentionInterface`, each with the config that says so.

    Models that call the fused one themselves (Falcon) are not among them: they would take another's name for another way
    to attend.
    """
    layers = range(len(parts.layers) if getattr(parts.base, "_supports_attention_backend", False) else 0)
    configs = [(layer, getattr(parts.attention(layer), "config", None)) for layer in layers]
    return [(layer, config) for layer, config in configs if getattr(config, "_attn_implementation", None) == "sdpa"]


@contextmanager
def attending_by(name: str, function: Callable[..., Any], configs: Iterable[Any]) -> Iterator[None]:
    """Within this block layers with one of these `configs`, which attend by torch's fused attention, do so by `function`, which
    transformers finds under `name`."""
    apart = {id(config): config for config in configs}
    if apart:
        ALL_ATTENTION_FUNCTIONS.register(name, function)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    for config in apart.values():
        config._attn_implementation = name
    try:
        yield
    finally:
        for config in apart.values():
            config._attn_implementation = "sdpa"
