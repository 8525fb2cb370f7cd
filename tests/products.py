"""Counting matrix products as PyTorch does."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _bmm(a_shape: Any, b_shape: Any, **_: Any) -> int:
    (b, m, k), n = a_shape, b_shape[-1]
    return 0 if b == k == 1 else 2 * b * m * k * n


def counter() -> FlopCounterMode:
    """PyTorch's, without single outer products: as such some releases of transformers compute the angles of rotary positions."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.bmm: _bmm})
