"""Attention of a few queries to many slots: torch's fused attention, or matrix products where they are faster.

Shapes: X rows and key/value heads on one axis, G query heads that share a key/value head, T queries, S slots, D head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_QUERIES = 64  # so many or fewer attend by matrix products on a CPU; measured (docs/LOG.md)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    frozen: bool = True,
) -> Tensor:
    """Attention of grouped queries [X, G, T, D] to keys and values [X, 1, S, D] under a bias [X, 1, 1, S] (None: zeros),
    [X, G, T, D]: torch's fused attention, or `attend_plainly` where that is faster.

    Args:
        frozen: keys and values need no gradients.
    """
    G, T = query.shape[1:3]
    learning = frozen and torch.is_grad_enabled()
    if softcap or (query.device.type == "cpu" and (learning or T <= FEW_QUERIES)):
        return attend_plainly(query, keys, values, bias, scaling, softcap)
    keys, values = (x.expand(-1, G, -1, -1) for x in (keys, values))
    mask = None if bias is None else bias.expand(-1, G, T, -1)
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)


def attend_plainly(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scaling: float, softcap: float | None = None
) -> Tensor:
    """Attention by matrix products, on a CPU for learning and for few queries, and for capped logits: [X, G, T, D],
    [X, 1, S, D] and [X, 1, 1, S] (None: zeros) to [X, G, T, D]. A cap does not hold for the first slot, whose logit is the null logit.

    torch's fused attention computes gradients of keys and values as well, which are frozen here. Forward and
    backward over 4 x 512 tokens and 1,793 slots took 0.23 s a layer with it, 0.08 s so, in bf16 on two cores. One query
    over 1,921 slots: 1.25 ms and 0.2 ms.
    """
    X, G, T, _ = query.shape
    weights = attention(query, keys, bias, scaling, softcap)
    return torch.matmul(weights.flatten(1, 2), values[:, 0]).view(X, G, T, -1)


def attention(query: Tensor, keys: Tensor, bias: Tensor | None, scaling: float, softcap: float | None = None) -> Tensor:
    """How much each query attends to each slot, [X, G, T, S]; arguments as of `attend_plainly`."""
    X, G, T, _ = query.shape
    rows = (query * scaling).flatten(1, 2)
    logits = torch.matmul(rows, keys[:, 0].transpose(1, 2)).view(X, G, T, -1)
    if softcap:
        logits = torch.cat([logits[..., :1], softcap * torch.tanh(logits[..., 1:] / softcap)], dim=3)
    return (logits if bias is None else logits + bias).softmax(dim=3)
