"""A branch where nothing is learnt, as few and large operations: what is constant is folded into its two matrices.

In a small model, and for one token, calls cost more than bytes. So the logits' scaling and what a query has in the added dimensions
go into the query's matrix and a bias, the gate and what is cut off of attended values into the output's matrix.

Shapes: H query heads, D head dimension, W = D + WIDER, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Folded:
    """The constants of one branch, in one dtype."""

    query: Tensor
    """[H * W, E], times the scaling of logits."""
    shift: Tensor
    """[H * W], a bias: the projection's own, the null logit, and what picks up the prior."""
    growth: Tensor | None
    """[H * W], of the null logit with `Place.log`."""
    output: Tensor
    """[E, H * W], times the gate."""


def folded(
    query: Tensor,
    query_bias: Tensor | None,
    output: Tensor,
    gate: Tensor | None,
    null_logit: Tensor | None,
    null_growth: Tensor | None,
    heads_of: Callable[[Tensor], Tensor],
    scaling: float,
    added: int,
    dtype: torch.dtype,
) -> Folded:
    """Fold the parts of a branch, computed in fp32 and rounded once.

    Args:
        query, query_bias, output: [H * D, E], [H * D] and [E, H * D].
        gate, null_logit, null_growth: [H]
        heads_of: from projected queries [B, T, H * D] to heads [B, T, H, D].
        added: dimensions, the null logit's first and the prior's next.
    """
    rows = heads_of(query.float().T[None])[0] * scaling  # [E, H, D]
    _, H, D = rows.shape
    shift = rows.new_zeros(H, D + added)
    if query_bias is not None:
        shift[:, :D] = heads_of(query_bias.float()[None, None])[0, 0] * scaling
    if null_logit is not None:
        shift[:, D] = null_logit.float()
    shift[:, D + 1] = scaling
    growth = None
    if null_growth is not None:
        growth = torch.zeros_like(shift)
        growth[:, D] = null_growth.float()
    columns = output.float().unflatten(1, (H, D))
    if gate is not None:
        columns = columns * gate.float()[:, None]
    return Folded(
        F.pad(rows, (0, added)).permute(1, 2, 0).flatten(0, 1).to(dtype),
        shift.flatten().to(dtype),
        None if growth is None else growth.flatten().to(dtype),
        F.pad(columns, (0, added)).flatten(1).to(dtype),
    )
