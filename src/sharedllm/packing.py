"""Numbers kept at 8 or 4 bits: whole steps above a lowest value.

Keys share lowest value and step along tokens, in groups of one channel, because a few channels of keys are
far larger than the others; values share them along the channels of one token (the split found by KIVI,
arXiv 2402.02750). At 4 bits two numbers share a byte.

Shapes: [..., P, D], P tokens of D channels; G = ceil(P / GROUP).
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64  # tokens of one channel of keys that share a lowest value and a step


def pack_keys(keys: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [..., P, D * bits / 8] in uint8, lowest values and steps [..., G, D] in the dtype of `keys`."""
    P = keys.shape[-2]
    size = min(GROUP, P)
    short = -P % size
    if short:  # the last token again, so that padding does not widen a group's range
        keys = torch.cat([keys, keys[..., -1:, :].expand(*keys.shape[:-2], short, keys.shape[-1])], dim=-2)
    groups = keys.unflatten(-2, (-1, size))
    codes, low, step = _codes(groups, bits, dim=-2)
    return _join(codes.flatten(-3, -2)[..., :P, :], bits), low.squeeze(-2), step.squeeze(-2)


def pack_values(values: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [..., P, D * bits / 8] in uint8, lowest values and steps [..., P, 1] in the dtype of `values`."""
    codes, low, step = _codes(values, bits, dim=-1)
    return _join(codes, bits), low, step


def group_of(tokens: Tensor, stored: int) -> Tensor:
    """Group of keys in which each of the tokens is, where `stored` tokens were packed together."""
    return tokens // min(GROUP, stored)


def unpack(codes: Tensor, low: Tensor, step: Tensor, channels: int) -> Tensor:
    """Numbers [..., D] from codes [..., D * bits / 8], in the dtype of `step`; `low` and `step` broadcast to the result.

    Computed in fp32 whatever that is: a product rounded to bfloat16 is off by as much as half a step at 8 bits.
    """
    if codes.shape[-1] < channels:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    return codes.float().mul_(step.float()).add_(low.float()).to(step.dtype)


def _codes(numbers: Tensor, bits: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    top = 2**bits - 1
    low = numbers.amin(dim, keepdim=True)
    step = ((numbers.amax(dim, keepdim=True).float() - low.float()) / top).to(numbers.dtype)
    codes = (numbers.float() - low.float()).div_(step.float().clamp(min=1e-30))
    return codes.round_().clamp_(0, top).byte(), low, step


def _join(codes: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return codes.contiguous()
    return codes[..., 0::2] | (codes[..., 1::2] << 4)
