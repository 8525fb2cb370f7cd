"""Branches for one new token of one row, as every token of an answer is: what `Branch.forward` computes, in fewer calls.

In a small model a call costs more than what it computes. So each branch's matrices are kept as one each, the output's with
the gate in it; the null logits of all branches are computed together; and a query is scaled right into its wider place.
`Branch.forward` is the plain twin, and does whatever `fits` refuses.

Shapes: L branches, H query heads, K key/value heads, D head dimension, S slots, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm.architectures import rotate
from sharedllm.branch import WIDER, Branch, Memory, Place
from sharedllm.projection import MERGED, versions
from sharedllm.weights import normed


@dataclass
class Merged:
    """A branch's matrices, [H * D, E] with its bias and [E, H * D]."""

    query: Tensor
    bias: Tensor | None
    output: Tensor

    @classmethod
    def of(cls, branch: Branch, dtype: torch.dtype) -> Merged:
        query, output = branch.query.matrix(torch.float32), branch.output.matrix(torch.float32)
        if branch.gate is not None:
            output = output * branch.gate.float().repeat_interleave(branch.head_dim)
        # On a CPU torch multiplies one row by a matrix in float16 twice as fast as in bfloat16 (docs/LOG.md), and it rounds less.
        kept = torch.float16 if dtype == torch.bfloat16 and query.device.type == "cpu" else dtype
        bias = None if branch.query_bias is None else branch.query_bias.to(dtype)
        return cls(query.to(kept), bias, output.to(kept))


class OneToken:
    """The branches of an injection, for one token at a time.

    `begin` takes in what the tokens of an answer attend to, `locate` where in the window the next token stands, and a call
    gives what a branch adds to it. Weights that change are seen by the next `begin`, but for those changed through `.data`:
    see `projection.versions`.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        self._branches = branches
        self._small = all(branch.softcap is None and branch.query.size <= MERGED for branch in branches)
        self._state: list[Any] = []  # of the weights, when these were made of them:
        self._merged: list[Merged] = []
        self._null = self._growth = self._scaling = torch.empty(0)
        self._keys, self._values = list[Tensor](), list[Tensor]()  # from `begin` to `end`
        self._place: Place | None = None
        self._wide = torch.empty(0)

    def fits(self, memory: Memory, tokens: int) -> bool:
        """Whether one token comes of one row, nothing is learnt, and the model is one in which calls cost more than bytes."""
        if tokens > 1 or memory.rows > 1 or torch.is_grad_enabled() or not self._small:
            return False
        return len({keys.device for keys in memory.keys}) == 1

    def begin(self, memory: Memory) -> None:
        """Take a memory in, and the weights as they are now."""
        self._keys = [keys[0].transpose(1, 2) for keys in memory.keys]
        self._values = [values[0] for values in memory.values]
        branches, dtype = self._branches, memory.keys[0].dtype
        weights = [w for b in branches for w in (*b.parameters(), *b.query.frozen, *b.output.frozen)]
        state = [dtype, *versions(weights)]
        if state == self._state:
            return
        self._merged = [Merged.of(branch, dtype) for branch in branches]
        none = memory.keys[0].new_zeros(branches[0].heads, dtype=torch.float32)
        self._null, self._growth = (
            torch.stack([none if weight is None else weight.float() for weight in every])
            for every in ([b.null_logit for b in branches], [b.null_growth for b in branches])
        )
        self._scaling = none.new_tensor([[branch.scaling] for branch in branches])
        self._state = state

    def end(self) -> None:
        """Let go of the memory."""
        self._keys, self._values, self._place = [], [], None

    def forget(self) -> None:
        """Let the next `begin` take in the weights, although no change of them shows."""
        self._state = []

    def locate(self, place: Place) -> None:
        """Where the next token stands."""
        assert self._keys, "begin comes first"
        self._place = place
        dims = self._keys[0].shape[1]  # those of a head, and WIDER more
        self._wide = self._keys[0].new_zeros(*self._null.shape, dims)
        self._wide[..., dims - WIDER] = self._null + self._growth * place.log.float()
        self._wide[..., dims - WIDER + 1] = self._scaling

    def __call__(self, number: int, hidden: Tensor) -> Tensor:
        """What branch `number` adds to the residual `hidden` [1, 1, E], in its dtype."""
        place, branch, merged, dtype = self._place, self._branches[number], self._merged[number], hidden.dtype
        assert place is not None, "locate comes first"
        row = normed(branch.norm, hidden)[0]
        query = F.linear(row.to(merged.query.dtype), merged.query).to(dtype)
        if merged.bias is not None:
            query = query + merged.bias
        query = branch.query_heads(query[None], branch.query_norm)
        if place.tables is not None:
            query = rotate(query, *place.tables[number])
        wide = self._wide[number]
        torch.mul(query[0, 0], branch.scaling, out=wide[:, : branch.head_dim])
        logits = torch.bmm(wide.view(branch.kv_heads, -1, wide.shape[1]), self._keys[number])
        padding = place.padding[hidden.device]
        if padding is not None:
            logits = logits + padding[:, 0]
        attended = torch.bmm(logits.softmax(dim=2), self._values[number])[..., : branch.head_dim]
        attended = attended.reshape(1, -1).to(merged.output.dtype)
        return F.linear(attended, merged.output).to(dtype)[None]
