"""From stored chunks to the slots a batch attends to: search, gather, rotate, pad.

Shapes: X chunks of one context, P tokens stored a chunk, M layers, K key/value heads, D head dimension,
S slots, B rows, E hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm.architectures import Parts, rotate
from sharedllm.config import SharedConfig
from sharedllm.encoder import Encoded
from sharedllm.inject import Memory
from sharedllm.tree import search, slot_tokens, tree_borders


@dataclass
class Slots:
    """The slots one row selected, in text order, before rotation."""

    keys: Tensor
    """[M, K, S, D]"""
    values: Tensor
    """[M, K, S, D]"""
    chunk: Tensor
    """[S], number of the chunk a slot comes from, counted from 1."""
    token: Tensor
    """[S], the token inside its chunk."""
    chunks: int
    """N, how many chunks were searched."""


def find_leaves(
    encoded: Encoded,
    config: SharedConfig,
    query_E: Tensor | None,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Search every chunk for one query; leaves [X, L + 1, 2] in tokens. None: the later halves."""
    borders = tree_borders(encoded.lengths, config.tree_depth, noise, generator)
    similarity = None
    if query_E is not None:
        ends = (borders[:, 1:] - 1).clamp(min=0)
        at = torch.searchsorted(encoded.rep_tokens, ends).clamp(max=encoded.rep_tokens.shape[1] - 1)
        found = encoded.reps.gather(1, at[:, :, None].expand(-1, -1, encoded.reps.shape[2]))
        similarity = F.cosine_similarity(found.float(), query_E.float()[None, None], dim=2)
    return search(borders, similarity)


def gather_slots(encoded: Encoded, leaves_XLs: Tensor, slots_per_leaf: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values [M, K, S, D] of the leaves' slots in text order, with their chunk (from 0) and token [S]."""
    tokens, mask = (x.flatten(1) for x in slot_tokens(leaves_XLs, slots_per_leaf))
    at = torch.searchsorted(encoded.tokens, tokens.contiguous())
    chunk = torch.arange(tokens.shape[0], device=tokens.device)[:, None].expand_as(tokens)
    chunk_S, at_S, token_S = chunk[mask], at[mask], tokens[mask]
    keys, values = (x[:, chunk_S, :, at_S].permute(1, 2, 0, 3) for x in (encoded.keys, encoded.values))
    return keys, values, chunk_S, token_S


def select_slots(
    blocks: Sequence[Encoded],
    config: SharedConfig,
    query_E: Tensor | None,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Slots | None:
    """Search all chunks of one context and take their slots; None when there are no chunks."""
    parts, before = [], 0
    for block in blocks:
        leaves = find_leaves(block, config, query_E, noise, generator)
        keys, values, chunk, token = gather_slots(block, leaves, config.slots_per_leaf)
        parts.append((keys, values, chunk + before + 1, token))
        before += block.lengths.shape[0]
    if not parts:
        return None
    keys, values = (torch.cat([p[i] for p in parts], dim=2) for i in (0, 1))
    chunk, token = (torch.cat([p[i] for p in parts]) for i in (2, 3))
    return Slots(keys, values, chunk, token, before)


def slot_positions(slots: Slots, config: SharedConfig) -> tuple[Tensor, int]:
    """Rotary positions of the keys [S] and of every query, by `config.positions`.

    `chunk`: key i of N chunks at i, query at N + 1 (arXiv 2603.04759). `chunk+inner`: the token inside
    the chunk on top, query at N + 1 + C. `sequence`: rank among the slots, query behind the last.
    `none`: all at 0.
    """
    if config.positions == "chunk":
        return slots.chunk, slots.chunks + 1
    if config.positions == "chunk+inner":
        return slots.chunk + slots.token, slots.chunks + 1 + config.chunk_length
    if config.positions == "sequence":
        return torch.arange(len(slots.chunk), device=slots.chunk.device), len(slots.chunk)
    return torch.zeros_like(slots.chunk), 0


def build_memory(rows: Sequence[Slots | None], parts: Parts, config: SharedConfig, like: Tensor) -> Memory:
    """Rotate and pad the rows' slots into one memory with a null slot in front.

    Args:
        rows: one entry a batch row; None for a row without context.
        like: a tensor whose dtype and device the memory takes.
    """
    B, M, K, D = len(rows), config.injected_layers, parts.kv_heads, parts.head_dim
    lengths = [0 if r is None else r.keys.shape[2] for r in rows]
    width = 1 + max(lengths)
    device = like.device
    mask = torch.zeros(B, width, dtype=torch.bool, device=device)
    query_at = torch.zeros(B, dtype=torch.long, device=device)
    keys_M, values_M = [], []
    rotated: list[tuple[Tensor, Tensor] | None] = []
    for b, row in enumerate(rows):
        mask[b, 1 : 1 + lengths[b]] = True
        # A row with nothing to attend to keeps its null slot, whose value is zero: the branch adds zero.
        mask[b, 0] = config.null_slot or lengths[b] == 0
        if row is None:
            rotated.append(None)
            continue
        positions, query_at[b] = slot_positions(row, config)
        cos, sin = parts.cos_sin(positions.to(device))
        rotated.append((cos, sin))
    for layer in range(M):
        keys, values = [], []
        for row, table, length in zip(rows, rotated, lengths, strict=True):
            if row is None or table is None:
                keys.append(like.new_zeros(K, width, D))
                values.append(like.new_zeros(K, width, D))
                continue
            pad = (0, 0, 1, width - 1 - length)
            keys.append(F.pad(rotate(row.keys[layer].to(like), *table), pad))
            values.append(F.pad(row.values[layer].to(like), pad))
        keys_M.append(torch.stack(keys))
        values_M.append(torch.stack(values))
    cos, sin = (t[:, None, None] for t in parts.cos_sin(query_at))
    return Memory(keys_M, values_M, mask, cos, sin)
