"""A branch: the cross-attention of one layer to the slots of a memory, and what a forward pass knows of both.

Shapes: B rows, T window tokens, H query heads, K key/value heads, G = H / K, D head dimension,
S slots of a row (all chunks, text order), E hidden size.
Source of the branch: arXiv 2603.04759. Gate and null slot are this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sharedllm.architectures import Parts, rotate
from sharedllm.attention import attend, attention
from sharedllm.config import SharedConfig
from sharedllm.errors import UsageError
from sharedllm.keep import Span
from sharedllm.projection import Projection
from sharedllm.weights import copied, normed

GROWTH = 3.5  # of the null logit at the start; measured without training (docs/LOG.md)
WIDER = (
    8  # dimensions added for the null logit and the prior; vectors of a multiple of 8 are read faster than of two more
)


@dataclass
class Memory:
    """The slots a batch attends to: keys already rotated, one null slot in front.

    keys, values: a tensor a layer with a branch, [B, K, 1 + S, D + WIDER], zero in the added dimensions but for the null slot's key,
    which has a 1 in the first, and the others', which have what the search adds to their logit in the second, over the
    layer's scaling; what belongs to a layer is on its device. mask: [B, 1 + S], True where a slot is real; query_at: [B],
    rotary position of the window's first query. None: all queries stand at one place, and the keys were rotated back by
    it, so that no query has to be rotated.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    query_at: Tensor | None
    nearest: Sequence[Sequence[Span]] = ()
    """Of each row the finest spans of its context, the nearest to the question first, where `config.quoted_tokens` needs
    them. Rows that are chosen, repeated or joined later have left them behind."""

    @property
    def rows(self) -> int:
        return self.mask.shape[0]

    def __getitem__(self, rows: Tensor) -> Memory:
        """Some of the rows, by their numbers."""
        keys, values = ([x[rows.to(x.device)] for x in layers] for layers in (self.keys, self.values))
        at = rows.to(self.mask.device)
        return Memory(keys, values, self.mask[at], None if self.query_at is None else self.query_at[at])

    def expand(self, rows: int) -> Memory:
        """Each row repeated in place until there are `rows`: how `generate` lays out beams."""
        n, rest = divmod(rows, self.rows)
        if rest or n == 0:
            raise UsageError(
                f"a batch of {rows} rows cannot take in the contexts of {self.rows}; give one context a row."
            )

        def repeat(x: Tensor) -> Tensor:
            return x.repeat_interleave(n, dim=0)

        return Memory(
            [repeat(k) for k in self.keys],
            [repeat(v) for v in self.values],
            repeat(self.mask),
            None if self.query_at is None else repeat(self.query_at),
        )


@dataclass
class Place:
    """Where the tokens of a forward pass stand in the window: the same for all layers.

    log: [B or 1, T, 1], log(1 + (t / C)^2) of token t of the window; tables: cos and sin of each layer with a branch, on its
    device, [B, T, 1, R], where queries are rotated; padding: on each device, what slots that are not real lose in the
    logits, [B * K, 1, 1, 1 + S], None where all are; ones: what a query has in the added dimensions but for the first.
    """

    log: Tensor
    tables: list[tuple[Tensor, Tensor]] | None
    padding: dict[torch.device, Tensor | None]
    ones: Tensor

    @classmethod
    def of(cls, memory: Memory, window_BT: Tensor, config: SharedConfig, parts: Parts) -> Place:
        """Of tokens that stand at `window_BT` [B or 1, T] in the window, counted in chunks."""
        places, tables, lost = [keys.device for keys in memory.keys], None, None
        if memory.query_at is not None:
            query_at = memory.query_at[:, None] + window_BT.to(memory.query_at.device)
            every = parts.tables(query_at, config.injected_layers)
            found = zip(every[config.skipped_layers :], places, strict=True)
            tables = [(cos[:, :, None].to(at), sin[:, :, None].to(at)) for (cos, sin), at in found]
        if memory.mask.device.type != "cpu" or not memory.mask.all():  # on a GPU, to look would be to wait
            lost = torch.zeros_like(memory.mask, dtype=memory.keys[0].dtype).masked_fill(~memory.mask, -torch.inf)
            lost = lost.repeat_interleave(parts.kv_heads, dim=0)[:, None, None]
        padding = {at: None if lost is None else lost.to(at) for at in set(places)}
        ones = memory.keys[0].new_zeros(WIDER - 1)
        ones[:1] = 1
        return cls(window_BT.square().log1p()[..., None], tables, padding, ones)


class Branch(nn.Module):
    """The trained weights of one injected layer: a norm, q, o, a gate and a null logit a head."""

    def __init__(self, parts: Parts, layer: int, config: SharedConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = parts.heads, parts.kv_heads, parts.head_dim
        self.scaling, self.softcap, self.query_heads = parts.scaling(layer), parts.softcap(layer), parts.query_heads
        self.norm = copied(parts.norm(layer))
        query_norm = parts.query_norm(layer)
        self.query_norm = copied(query_norm) if query_norm is not None else None
        weight, bias = parts.query_weights(layer)
        output = parts.output_weights(layer)
        self.query = Projection(weight, config.rank, seed=2 * layer)
        self.query_bias = nn.Parameter(bias.detach().clone()) if bias is not None else None
        gated = config.init == "copied"
        self.output = Projection(output if gated else torch.zeros_like(output), config.rank, seed=2 * layer + 1)
        self.gate = nn.Parameter(weight.new_zeros(self.heads)) if gated else None
        self.null_logit = nn.Parameter(weight.new_zeros(self.heads)) if config.null_slot else None
        self.null_growth = nn.Parameter(weight.new_full((self.heads,), GROWTH)) if config.null_growth else None
        self.requires_grad_(True)

    def forward(
        self,
        hidden_BTE: Tensor,
        memory: Memory,
        number: int,
        place: Place,
        heard: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """What the branch adds to the residual, [B, T, E], in the dtype of `hidden_BTE`.

        Args:
            number: of this layer among those with a branch, from 0.
            heard: hears how much each head attended to each slot, [B, H, T, 1 + S], times the size of its gate.
        """
        B, T, _ = hidden_BTE.shape
        H, K, D = self.heads, self.kv_heads, self.head_dim
        dtype = hidden_BTE.dtype
        bias = None if self.query_bias is None else self.query_bias.to(dtype)
        query = self.query_heads(self.query(normed(self.norm, hidden_BTE), bias), self.query_norm)
        if place.tables is not None:
            query = rotate(query, *place.tables[number])
        query = torch.cat([query, *self._added(query, place)], dim=3).transpose(1, 2)  # [B, H, T, D + WIDER]
        # Grouped keys are read in place: rows and key/value heads share an axis, the group broadcasts.
        query = query.reshape(B * K, H // K, T, -1)
        keys, values = (x.reshape(B * K, 1, -1, x.shape[-1]) for x in (memory.keys[number], memory.values[number]))
        padding = place.padding[query.device]
        attended = attend(query, keys, values, padding, self.scaling, self.softcap)
        if heard is not None:
            weights = attention(query, keys, padding, self.scaling, self.softcap).reshape(B, H, T, -1)
            heard(weights if self.gate is None else weights * self.gate.detach().abs().to(dtype).view(1, H, 1, 1))
        attended = attended.view(B, H, T, -1)[..., :D]
        if self.gate is not None:
            attended = attended * self.gate.to(dtype).view(1, H, 1, 1)
        return self.output(attended.transpose(1, 2).reshape(B, T, H * D))

    def _added(self, query: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """What a query has in the added dimensions: the null logit, which the null slot's key alone picks up, [B, T, H, 1],
        and what picks up the prior of the others.

        In the mask the null logit would ask for a gradient of the mask, for which torch leaves its fused attention.
        """
        B, T, H, _ = query.shape
        rest = place.ones.to(query).expand(B, T, H, -1)
        if self.null_logit is None:
            return rest[..., 1:2], rest
        logit = self.null_logit.to(query.dtype)
        if self.null_growth is not None:
            logit = logit + self.null_growth.to(query.dtype) * place.log.to(query)
        return (logit / self.scaling).expand(B, T, H)[..., None], rest
