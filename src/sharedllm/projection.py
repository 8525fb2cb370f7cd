"""A linear map of a branch, which starts as one of the model's own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MERGED = 2**21
"""Numbers of a matrix up to which it is kept, with its change of low rank, as one where nothing is learnt: in a small model
calls cost more than bytes."""


class Projection(nn.Module):
    """A linear map [out, in] that starts as one of the model's own.

    With rank 0 a matrix of its own, trained whole; else the model's matrix (the same storage, never
    saved with the adapter) and a trained change of that rank, as in LoRA (arXiv 2106.09685). Weights are to be changed under
    `torch.no_grad`, as an optimizer does: see `versions`.
    """

    def __init__(self, weight: Tensor, rank: int, seed: int) -> None:
        super().__init__()
        self.frozen: list[Tensor] = []  # in a list, so that it is no parameter of the adapter
        self._merged: tuple[list[tuple[int, int]], Tensor] | None = None
        if rank == 0:
            self.weight = nn.Parameter(weight.detach().clone())
            return
        self.frozen.append(weight)
        draw = torch.randn(rank, weight.shape[1], generator=torch.Generator().manual_seed(seed))
        self.down = nn.Parameter((draw / weight.shape[1] ** 0.5).to(weight))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.frozen:
            return F.linear(x, self.weight.to(x.dtype), bias)
        if not torch.is_grad_enabled() and self.size <= MERGED:
            return F.linear(x, self._as_one().to(x.dtype), bias)
        change = F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        return F.linear(x, self.frozen[0].detach().to(x.dtype), bias) + change

    @property
    def size(self) -> int:
        """Numbers of its matrix."""
        return (self.frozen[0] if self.frozen else self.weight).numel()

    def _as_one(self) -> Tensor:
        """`matrix`, kept until its parts change."""
        parts = self.frozen[0], self.up, self.down
        state = versions(parts)
        if self._merged is None or self._merged[0] != state:
            self._merged = state, self.matrix(torch.float32).to(self.up.dtype)  # rounded once
        return self._merged[1]

    def forget(self) -> None:
        """Let go of the one matrix, whose parts changed unseen; see `versions`."""
        self._merged = None

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        """The map as one matrix [out, in], computed in `dtype` (None: in the weights' own)."""
        if not self.frozen:
            return self.weight if dtype is None else self.weight.to(dtype)
        whole, up, down = (
            part if dtype is None else part.to(dtype) for part in (self.frozen[0].detach(), self.up, self.down)
        )
        return whole + up @ down


def versions(weights: Iterable[Tensor]) -> list[tuple[int, int]]:
    """What a change of weights shows in, at little cost: where they are, and how often they were changed in place.

    A change through `.data` is not counted: what was made of the weights before would be taken for what they are now.
    """
    return [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights]
