"""The whole mechanism said plainly: one row, one chunk, one head at a time, no batches, no hooks.

The fast path is tested against this file, outputs and gradients. It is written to be read next to
arXiv 2603.04759, for Llama-like models (pre-norm, half-split rotary pairs), and is far too slow to use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharedllm.config import SharedConfig

Span = tuple[int, int]


@dataclass
class Slot:
    """One surviving token of one chunk: a key and a value for every layer and key/value head."""

    chunk: int  # from 1
    token: int  # inside the chunk
    keys: list[list[Tensor]]  # [layer][key/value head] -> [D], not rotated
    values: list[list[Tensor]]


def forward(llm: Any, window: Sequence[int], chunks: Sequence[Sequence[int]], search: str = "query") -> Tensor:
    """Logits [T, V] of one row: a window of token ids after some chunks of token ids."""
    config: SharedConfig = llm.config
    query = first_layer(llm, window)[-1] if search == "query" else None
    slots: list[Slot] = []
    for i, chunk in enumerate(chunks):
        keys, values = read_chunk(llm, chunk)
        leaves = search_tree(len(chunk), config.tree_depth, first_layer(llm, chunk), query)
        for leaf in leaves:
            for token in compress(leaf, config.slots_per_leaf):
                at = (
                    [[head[token] for head in layer] for layer in keys],
                    [[head[token] for head in layer] for layer in values],
                )
                slots.append(Slot(i + 1, token, *at))
    return decode(llm, window, slots, len(chunks))


def search_tree(length: int, depth: int, reps: list[Tensor], query: Tensor | None) -> list[Span]:
    """Leaves of one chunk in text order: at each level keep one half, go on into the other."""
    node, leaves = (0, length), []
    for level in range(depth):
        start, end = node
        middle = (start + end) // 2
        left, right = (start, middle), (middle, end)
        if left[0] == left[1]:
            chosen, kept = right, left
        elif right[0] == right[1]:
            chosen, kept = left, right
        elif query is None:
            chosen, kept = right, left
        else:
            nearness = [cosine(reps[half[1] - 1], query) for half in (left, right)]
            chosen, kept = (right, left) if nearness[1] >= nearness[0] else (left, right)
        leaves.append(kept)
        if level == depth - 1:
            leaves.append(chosen)
        node = chosen
    return sorted(leaf for leaf in leaves if leaf[0] < leaf[1])


def compress(leaf: Span, slots: int) -> list[int]:
    """The last token of each of `slots` equal parts of a leaf; every token of a leaf no longer than that."""
    start, end = leaf
    kept = min(slots, end - start)
    return [start + (k + 1) * (end - start) // kept - 1 for k in range(kept)]


@torch.no_grad()
def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-8))


def first_layer(llm: Any, ids: Sequence[int]) -> list[Tensor]:
    """Normed hidden state of each token after the first layer."""
    layer, hidden = llm.parts.layers[0], embed(llm, ids)
    hidden = feed_forward(layer, self_attention(llm, 0, hidden)[0])
    return [llm.parts.layers[1].input_layernorm(h) for h in hidden]


def read_chunk(llm: Any, ids: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """Unrotated keys and values of a chunk read on its own: [layer][head][token] -> [D]."""
    hidden, keys, values = embed(llm, ids), [], []
    for j in range(llm.config.injected_layers):
        hidden, k, v = self_attention(llm, j, hidden)
        hidden = feed_forward(llm.parts.layers[j], hidden)
        keys.append(k)
        values.append(v)
    return keys, values


def decode(llm: Any, ids: Sequence[int], slots: list[Slot], chunks: int) -> Tensor:
    """The whole model over the window, with a branch in each of the lowest layers."""
    hidden = embed(llm, ids)
    for j, layer in enumerate(llm.parts.layers):
        hidden, _, _ = self_attention(llm, j, hidden)
        if j < llm.config.injected_layers and slots:
            hidden = [h + branch(llm, j, h, slots, chunks) for h in hidden]
        hidden = feed_forward(layer, hidden)
    return llm.model.lm_head(torch.stack([llm.parts.base.norm(h) for h in hidden]))


def branch(llm: Any, j: int, hidden: Tensor, slots: list[Slot], chunks: int) -> Tensor:
    """What the injection adds to one token's hidden state in layer j."""
    weights, D = llm.injection.branches[j], llm.parts.head_dim
    group = llm.parts.heads // llm.parts.kv_heads
    query = weights.query.matrix() @ weights.norm(hidden)
    if weights.query_bias is not None:
        query = query + weights.query_bias
    heads = []
    for h in range(llm.parts.heads):
        q = query[h * D : (h + 1) * D]
        q = q if weights.query_norm is None else weights.query_norm(q)
        q = turn(llm, q, position_of_query(llm.config, slots, chunks))
        logits, values = [], []
        for rank, slot in enumerate(slots):
            key = turn(llm, slot.keys[j][h // group], position_of_slot(llm.config, slot, rank))
            logits.append(q @ key / math.sqrt(D))
            values.append(slot.values[j][h // group])
        if weights.null_logit is not None:
            logits.append(weights.null_logit[h])
            values.append(torch.zeros(D))
        shares = torch.stack(logits).softmax(dim=0)
        attended = mix(shares, values)
        heads.append(attended if weights.gate is None else weights.gate[h] * attended)
    return weights.output.matrix() @ torch.cat(heads)


def mix(shares: Tensor, values: list[Tensor]) -> Tensor:
    return sum((s * v for s, v in zip(shares, values, strict=True)), torch.zeros_like(values[0]))


def position_of_slot(config: SharedConfig, slot: Slot, rank: int) -> int:
    inner = slot.chunk + slot.token
    return {"chunk": slot.chunk, "chunk+inner": inner, "sequence": rank, "none": 0}[config.positions]


def position_of_query(config: SharedConfig, slots: list[Slot], chunks: int) -> int:
    behind = chunks + 1 + config.chunk_length
    return {"chunk": chunks + 1, "chunk+inner": behind, "sequence": len(slots), "none": 0}[config.positions]


def embed(llm: Any, ids: Sequence[int]) -> list[Tensor]:
    return [llm.model.get_input_embeddings().weight[i] for i in ids]


def self_attention(llm: Any, j: int, hidden: list[Tensor]) -> tuple[list[Tensor], list[Any], list[Any]]:
    """Layer j's causal self-attention with its residual; also its unrotated keys and values, [head][token]."""
    layer, D = llm.parts.layers[j], llm.parts.head_dim
    attention, group = layer.self_attn, llm.parts.heads // llm.parts.kv_heads
    normed = [layer.input_layernorm(h) for h in hidden]

    def heads(projection: Any, count: int) -> list[list[Tensor]]:
        return [[projection(x)[h * D : (h + 1) * D] for x in normed] for h in range(count)]

    queries = heads(attention.q_proj, llm.parts.heads)
    keys, values = (heads(p, llm.parts.kv_heads) for p in (attention.k_proj, attention.v_proj))
    if hasattr(attention, "q_norm"):
        queries = [[attention.q_norm(x) for x in head] for head in queries]
        keys = [[attention.k_norm(x) for x in head] for head in keys]
    out = []
    for t, h_in in enumerate(hidden):
        mixed = []
        for h in range(llm.parts.heads):
            q, past = turn(llm, queries[h][t], t), range(t + 1)
            logits = torch.stack([q @ turn(llm, keys[h // group][s], s) / math.sqrt(D) for s in past])
            mixed.append(mix(logits.softmax(0), [values[h // group][s] for s in past]))
        out.append(h_in + attention.o_proj(torch.cat(mixed)))
    return out, keys, values


def feed_forward(layer: Any, hidden: list[Tensor]) -> list[Tensor]:
    return [h + layer.mlp(layer.post_attention_layernorm(h)) for h in hidden]


def turn(llm: Any, x: Tensor, position: int) -> Tensor:
    """Rotary embedding of one head's vector: pairs (i, i + D/2) turn by position times frequency i."""
    half = x.shape[0] // 2
    angles = position * llm.parts.rotary.inv_freq
    a, b = x[:half], x[half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()])
