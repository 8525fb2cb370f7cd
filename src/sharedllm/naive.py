"""The whole mechanism said plainly: one row, one chunk, one head at a time, no batches, no hooks.

The fast path is tested against this file, outputs and gradients. It is written to be read next to
arXiv 2603.04759, and is far too slow to use. What a layer of each model family computes is in `naive_layers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from sharedllm.config import SharedConfig
from sharedllm.naive_layers import (
    embed,
    head_dim,
    key_heads,
    layers,
    logits_of,
    mix,
    norm_before,
    norm_heads,
    run_layer,
    score,
    turn,
)

Span = tuple[int, int]


@dataclass
class Slot:
    """One surviving token of one chunk: a key and a value for every layer and key/value head."""

    chunk: int  # from 1
    token: int  # inside the chunk
    keys: list[list[Tensor]]  # [layer][key/value head] -> [D], not rotated
    values: list[list[Tensor]]
    prior: float = 0.0  # added to its logits


def forward(
    llm: Any,
    window: Sequence[int],
    chunks: Sequence[Sequence[int]],
    search: str = "query",
    keep: Sequence[Span] = (),
) -> Tensor:
    """Logits [T, V] of one row: a window of token ids after some chunks of token ids.

    `keep` are spans of the chunks' tokens, counted from the first one's beginning, that are kept from compression.
    """
    config: SharedConfig = llm.config
    read = [read_chunk(llm, chunk) for chunk in chunks]
    lengths = [len(chunk) for chunk in chunks]
    asking = {"query": 64, "continue": 256}.get(search, 0)  # newest tokens that are searched by
    nearness = scorer(llm, window, chunks, read, asking) if asking else None
    score = None if nearness is None else lambda i, span: sum(nearness((i, span)))
    prior, nearest = None, None
    if nearness is not None and chunks and config.search_prior and search == "query":
        spans = near_spans(config, lengths, nearness)
        prior = priors(config, spans)
        shares = word_shares(chunks, window[-64:], config.tree_depth)
        worded = {span: value + config.search_words * shares[span] for span, value in spans.items()}
        nearest = {i: max(value for (chunk, _), value in worded.items() if chunk == i) for i in range(len(chunks))}
    order = chunk_order(lengths, score if nearest is None else lambda i, _: nearest[i])
    fine = order[max(0, len(order) - config.fine_chunks) :]
    near_enough = order[-max(config.read_chunks, config.fine_chunks) :] if config.read_chunks else order
    kept = kept_tokens(lengths, keep)
    taken = {*near_enough, *(i for i, tokens in enumerate(kept) if tokens)}
    slots: list[Slot] = []
    for number, i in enumerate(sorted(taken), 1):
        keys, values = read[i]
        near = None if score is None else partial(score, i)
        tokens = set(kept[i])
        for leaf in search_tree(len(chunks[i]), config.tree_depth, near):
            tokens |= set(compress(leaf, config.chunk_length if i in fine else config.slots_per_leaf))
        for token in sorted(tokens):
            at = (
                [[head[token] for head in layer] for layer in keys],
                [[head[token] for head in layer] for layer in values],
            )
            slots.append(Slot(number, token, *at, 0.0 if prior is None else prior(i, token)))
    return decode(llm, window, slots, len(taken))


def scorer(
    llm: Any,
    window: Sequence[int],
    chunks: Sequence[Sequence[int]],
    read: Sequence[tuple[list[Any], list[Any]]],
    asking: int,
) -> Callable[..., list[float]]:
    """How near spans, each a chunk's number from 0 and a span of it, come together to each of the `asking` tokens that
    the window ends with."""
    config: SharedConfig = llm.config
    if config.search_by == "last":
        asked, told = first_layer(llm, window)[-1], [first_layer(llm, chunk) for chunk in chunks]
        return lambda *spans: [max(cosine(told[i][max(0, end - 1)], asked) for i, (_, end) in spans)]
    layer = min(config.search_layer, config.injected_layers - 1)

    def reps(values: list[Any]) -> list[Tensor]:
        return [torch.cat(heads).detach() for heads in zip(*values[layer], strict=True)]

    stored = [
        range(len(chunk)) if config.fine_chunks else candidates(len(chunk), config.tree_depth, config.slots_per_leaf)
        for chunk in chunks
    ]
    tokens = [reps(values) for _, values in read]
    every = [tokens[i][t] for i in range(len(chunks)) for t in stored[i]]
    mean = torch.stack(every).mean(0) if every else 0
    question = [rep - mean for rep in reps(read_chunk(llm, window)[1])[-asking:]]

    def nearness(*spans: tuple[int, Span]) -> list[float]:
        inside = [tokens[i][t] - mean for i, span in spans for t in stored[i] if span[0] <= t < span[1]]
        return [max((cosine(token, asked) for token in inside), default=-1.0) for asked in question]

    return nearness


def near_spans(
    config: SharedConfig, lengths: list[int], nearness: Callable[..., list[float]]
) -> dict[tuple[int, Span], float]:
    """How near every finest span, a chunk's number and a span of it, is to the question: the better of it with the one before
    and with the one after."""
    spans = [(i, span) for i, n in enumerate(lengths) for span in finest((0, n), config.tree_depth)]
    pairs = [tuple(spans[i : i + 2]) for i in range(max(1, len(spans) - 1))]
    means = {pair: fmean(nearness(*pair)) for pair in pairs}
    return {span: max(mean for pair, mean in means.items() if span in pair) for span in spans}


def priors(config: SharedConfig, near: dict[tuple[int, Span], float]) -> Callable[[int, int], float]:
    """What the search adds to the logits of a slot, by its chunk and token: how much less near its finest span is to the
    question than the nearest of all."""

    def prior(i: int, token: int) -> float:
        mine = next(span for span in near if span[0] == i and span[1][0] <= token < span[1][1])
        return config.search_prior * (near[mine] - max(near.values()))

    return prior


def word_shares(chunks: Sequence[Sequence[int]], asking: Sequence[int], depth: int) -> dict[tuple[int, Span], float]:
    """BM25 of every finest span, a chunk's number and a span of it, as a share of the best one's."""
    spans = [(i, span) for i, chunk in enumerate(chunks) for span in finest((0, len(chunk)), depth)]
    parts = [list(chunks[i][start:end]) for i, (start, end) in spans]
    mean = max(1.0, fmean(map(len, parts)))

    def bm25(part: list[int]) -> float:
        total = 0.0
        for token in set(asking):
            held = sum(token in other for other in parts)
            rare = math.log(1 + (len(parts) - held + 0.5) / (held + 0.5))
            total += rare * part.count(token) * 2.2 / (part.count(token) + 1.2 * (0.25 + 0.75 * len(part) / mean))
        return total

    scores = [bm25(part) for part in parts]
    return {span: score / max(scores) if score else 0.0 for span, score in zip(spans, scores, strict=True)}


def finest(node: Span, depth: int) -> list[Span]:
    """What is left of a node that is halved `depth` times."""
    if depth == 0:
        return [node]
    middle = (node[0] + node[1]) // 2
    return finest((node[0], middle), depth - 1) + finest((middle, node[1]), depth - 1)


def kept_tokens(lengths: list[int], keep: Sequence[Span]) -> list[list[int]]:
    """Of each chunk its tokens that are kept from compression."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [
        [t for t in range(n) if any(a <= start + t < b for a, b in keep)]
        for start, n in zip(starts, lengths, strict=True)
    ]


def chunk_order(lengths: list[int], score: Callable[[int, Span], float] | None) -> list[int]:
    """Numbers of the chunks, the nearest last; without a question the newest."""
    order = list(range(len(lengths)))
    if score is not None:
        order.sort(key=lambda i: score(i, (0, lengths[i])))
    return order


def search_tree(length: int, depth: int, score: Callable[[Span], float] | None) -> list[Span]:
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
        elif score is None:
            chosen, kept = right, left
        else:
            chosen, kept = (right, left) if score(right) >= score(left) else (left, right)
        leaves.append(kept)
        if level == depth - 1:
            leaves.append(chosen)
        node = chosen
    return sorted(leaf for leaf in leaves if leaf[0] < leaf[1])


def candidates(length: int, depth: int, slots: int) -> list[int]:
    """The tokens that some node of a chunk's tree would keep."""
    nodes, found = [(0, length)], set()
    for _ in range(depth):
        nodes = [half for s, e in nodes for half in ((s, (s + e) // 2), ((s + e) // 2, e))]
        found |= {token for node in nodes if node[0] < node[1] for token in compress(node, slots)}
    return sorted(found)


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
    hidden, _, _ = run_layer(llm.model, 0, embed(llm.model, ids))
    return [norm_before(llm.model, 1, h) for h in hidden]


def read_chunk(llm: Any, ids: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """Unrotated keys and values of a chunk read on its own: [layer][head][token] -> [D]."""
    hidden, keys, values = embed(llm.model, ids), [], []
    for j in range(llm.config.injected_layers):
        hidden, k, v = run_layer(llm.model, j, hidden)
        keys.append(k)
        values.append(v)
    return keys, values


def decode(llm: Any, ids: Sequence[int], slots: list[Slot], chunks: int) -> Tensor:
    """The whole model over the window, with a branch in each of the lowest layers."""
    hidden = embed(llm.model, ids)
    for j in range(len(layers(llm.model))):
        injected = llm.config.skipped_layers <= j < llm.config.injected_layers and bool(slots)
        add = partial(branch, llm, j, slots=slots, chunks=chunks) if injected else None
        hidden, _, _ = run_layer(llm.model, j, hidden, add)
    return logits_of(llm.model, hidden)


def branch(llm: Any, j: int, hidden: Tensor, t: int, slots: list[Slot], chunks: int) -> Tensor:
    """What the injection adds to the hidden state of the window's token t in layer j."""
    weights, model = llm.injection.branches[j], llm.model
    group = model.config.num_attention_heads // key_heads(model.config)
    query = weights.query.matrix() @ weights.norm(hidden)
    if weights.query_bias is not None:
        query = query + weights.query_bias
    heads = []
    for h, q in enumerate(norm_heads(model.config, weights.query_norm, query)):
        q = turn(model, j, q, position_of_query(llm.config, t, slots, chunks))
        logits, values = [], []
        for rank, slot in enumerate(slots):
            key = turn(model, j, slot.keys[j][h // group], position_of_slot(llm.config, slot, rank))
            logits.append(score(model.config, q, key, slot.prior))
            values.append(slot.values[j][h // group])
        if weights.null_logit is not None:
            rate = 0 if weights.null_growth is None else weights.null_growth[h]
            logits.append(weights.null_logit[h] + rate * math.log(1 + (t / llm.config.chunk_length) ** 2))
            values.append(torch.zeros(head_dim(model.config)))
        shares = torch.stack(logits).softmax(dim=0)
        attended = mix(shares, values)
        heads.append(attended if weights.gate is None else weights.gate[h] * attended)
    return weights.output.matrix() @ torch.cat(heads)


def position_of_slot(config: SharedConfig, slot: Slot, rank: int) -> int:
    inner = slot.chunk + slot.token
    return {"chunk": slot.chunk, "chunk+inner": inner, "sequence": rank, "none": 0}[config.positions]


def position_of_query(config: SharedConfig, t: int, slots: list[Slot], chunks: int) -> float:
    behind = chunks + 1 + config.chunk_length
    first = {"chunk": chunks + 1, "chunk+inner": behind, "sequence": len(slots), "none": 0}[config.positions]
    return first + (t / config.chunk_length if config.moving_query else 0)
