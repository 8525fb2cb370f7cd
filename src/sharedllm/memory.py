"""From stored chunks to the slots a batch attends to: search, gather, rotate, pad.

Shapes: X chunks of one context, P tokens stored a chunk, M layers kept, K key/value heads, D head dimension,
S slots, B rows, Q tokens of a question, R size of a representation (see `relevance`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharedllm.architectures import Parts, rotate
from sharedllm.branch import WIDER, Memory
from sharedllm.config import SharedConfig
from sharedllm.encoded import Encoded
from sharedllm.errors import UsageError
from sharedllm.keep import Span, span_mask
from sharedllm.relevance import near_parts, nearest_spans, node_scores, priors, span_scores
from sharedllm.tree import search, slot_tokens, tree_borders
from sharedllm.words import Words

Rotation = tuple[Tensor, Tensor]
"""Cos and sin of `Parts.tables`."""


@dataclass
class Slots:
    """The slots one row selected, in text order, before rotation."""

    keys: Tensor
    """[M, K, S, D]"""
    values: Tensor
    """[M, K, S, D]"""
    chunk: Tensor
    """[S], number of the chunk a slot comes from, counted from 1 among those that are read."""
    token: Tensor
    """[S], the token inside its chunk."""
    chunks: int
    """N, how many chunks are read."""
    prior: Tensor | None = None
    """[S], added to the logits of attention; None: nothing."""
    nearest: Sequence[Span] = ()
    """Finest spans of the context in its tokens, the nearest to the question first, where some are quoted."""


@dataclass
class Found:
    """What a search found in one block."""

    leaves: Tensor
    """[X, L + 1, 2], start and end in tokens, in text order."""
    slots: Tensor
    """[X], slots a leaf of each chunk keeps at most; 0 for a chunk that is left out."""
    scores: Tensor | None
    """[X], how near each chunk is to the question, the mean cosine of the tokens that ask; under `search_prior` what its nearest
    finest span comes to in `near_parts`, with its share of the words; None without a question."""
    kept: Tensor
    """[X, C], tokens that are taken in besides, because they are kept from compression."""
    borders: Tensor
    """[X, F + 1], of the finest spans in tokens."""
    priors: Tensor | None
    """[X, F], what is added to the logits of attention in each finest span; None: nothing."""
    near: Tensor | None = None
    """[X, F], how near each finest span is to the question, by `near_parts` and words; None without one."""
    alone: Tensor | None = None
    """[X, F], the mean cosine that a span comes to without its neighbours."""

    def prior(self, chunk_S: Tensor, token_S: Tensor) -> Tensor | None:
        """Of slots, by chunk (from 0) and token."""
        if self.priors is None:
            return None
        span_S = (self.borders[chunk_S, 1:] <= token_S[:, None]).sum(1)
        return self.priors[chunk_S, span_S]

    def taken(self) -> Tensor:
        """Which tokens of the chunks are slots, [X, C]."""
        tokens, mask = (x.flatten(1) for x in slot_tokens(self.leaves, self.slots[:, None, None]))
        chunk = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(tokens)
        taken = self.kept.clone()
        taken[chunk[mask], tokens[mask]] = True
        return taken


def find(
    blocks: Sequence[Encoded],
    config: SharedConfig,
    question_QR: Tensor | None = None,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    keep: Sequence[Span] = (),
    words: Words | None = None,
) -> list[Found]:
    """Search all chunks of one context for one question.

    The nearest `config.fine_chunks` chunks keep every token, the others what their trees say, and those beyond
    the nearest `config.read_chunks` nothing. Without a question the newest chunks and the later halves are
    chosen. A chunk with a token of `keep`, spans of the context's tokens, is never left out.
    Under `config.search_prior` the chunk of the nearest span is the nearest, else that which has most of the question
    somewhere in it.

    Args:
        words: of the context and the question, which count under `config.search_words`.
    """
    borders = [tree_borders(b.lengths, config.tree_depth, noise, generator) for b in blocks]
    sizes = [len(b.lengths) for b in blocks]
    scores: Sequence[list[Tensor] | None] = [None] * len(blocks)
    prior: Sequence[Tensor | None] = [None] * len(blocks)
    near_X: Sequence[Tensor | None] = [None] * len(blocks)
    parts: Sequence[Tensor | None] = [None] * len(blocks)
    alone: Sequence[Tensor | None] = [None] * len(blocks)
    order = torch.arange(sum(sizes))
    if question_QR is not None:
        spans = span_scores(blocks, config, question_QR, borders)
        near, alone = near_parts(spans), [some.mean(2) for some in spans]
        parts = worded = near
        if words is not None and config.search_words:
            shares = words.shares([b.lengths for b in blocks], borders)
            parts = worded = [n + config.search_words * share for n, share in zip(near, shares, strict=True)]
        levels = [node_scores(some, config.search_by) for some in spans]
        scores, nearness = levels, [level[0][:, 0] / len(question_QR) for level in levels]
        if config.search_prior:
            # Attention goes by nearness alone, which it was trained with (docs/LOG.md).
            prior, nearness = priors(near, config.search_prior), [some.amax(1) for some in worded]
        near_X, order = nearness, torch.cat(nearness).argsort(stable=True)
    total = sum(sizes)
    read = max(config.read_chunks, config.fine_chunks) if config.read_chunks else total
    slots = torch.full((total,), config.slots_per_leaf, device=borders[0].device)
    slots[order[: max(0, total - read)]] = 0
    slots[order[max(0, total - config.fine_chunks) :]] = config.chunk_length
    found = []
    kept_XC, shares_of = _kept_tokens(blocks, keep), slots.split(sizes)
    chosen = zip(borders, scores, near_X, shares_of, prior, kept_XC, parts, alone, strict=True)
    for border, score, nearest, n, p, kept, near_XF, alone_XF in chosen:
        n = torch.where(kept.any(1) & (n == 0), config.slots_per_leaf, n)
        found.append(Found(search(border, score), n, nearest, kept, border, p, near_XF, alone_XF))
    return found


def nearest_of(blocks: Sequence[Encoded], found: Sequence[Found]) -> list[Span]:
    """The finest spans of a context that was searched for a question, the nearest first; none without a question."""
    near = [some.near for some in found if some.near is not None]
    alone = [some.alone for some in found if some.alone is not None]
    if not near:
        return []
    return nearest_spans([block.lengths for block in blocks], [some.borders for some in found], near, alone)


def _kept_tokens(blocks: Sequence[Encoded], keep: Sequence[Span]) -> Iterator[Tensor]:
    """Which tokens of each block's chunks are kept, [X, C]."""
    lengths = [block.lengths.tolist() for block in blocks]
    kept = span_mask(keep, sum(map(sum, lengths))).split([n for some in lengths for n in some])
    for block, some in zip(blocks, lengths, strict=True):
        rows, kept = kept[: len(some)], kept[len(some) :]
        yield nn.utils.rnn.pad_sequence(rows, batch_first=True).to(block.lengths.device)


def _every(tokens: Tensor) -> Tensor:
    """The numbers of a chunk's tokens, in each row of [X, C]."""
    return torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1)


def gather_slots(
    encoded: Encoded, found: Found, again: Callable[[int], Encoded]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values [M, K, S, D] of the slots in text order, with their chunk (from 0) and token [S].

    Args:
        again: gives a chunk of the block with every token, where not all that are taken are stored.
    """
    taken = found.taken()
    chunk_S, token_S = taken.nonzero(as_tuple=True)
    every = _every(taken)
    at_XC = torch.searchsorted(encoded.tokens, every).clamp(max=encoded.tokens.shape[1] - 1)
    stored_XC = encoded.tokens.gather(1, at_XC) == every
    keys, values = encoded.at(chunk_S, at_XC[chunk_S, token_S])
    for x in (taken & ~stored_XC).any(1).nonzero().flatten().tolist():
        here = chunk_S == x
        whole = again(x).to(keys.device)
        more = whole.at(torch.zeros_like(token_S[here]), token_S[here])
        keys[:, :, here], values[:, :, here] = (x.to(keys.dtype) for x in more)
    return keys, values, chunk_S, token_S


def not_read_again(chunk: int) -> Encoded:
    """For contexts that store all that may be taken."""
    raise UsageError(f"not all that is taken of chunk {chunk} is stored, and there is no model to read it again with.")


def _counted_on(again: Callable[[int], Encoded], before: int) -> Callable[[int], Encoded]:
    """The same of the chunks of a block that `before` others stand before."""
    return lambda chunk: again(before + chunk)


def select_slots(
    blocks: Sequence[Encoded],
    config: SharedConfig,
    question_QR: Tensor | None,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
    keep: Sequence[Span] = (),
    again: Callable[[int], Encoded] = not_read_again,
    words: Words | None = None,
) -> Slots | None:
    """Search all chunks of one context and take their slots; None when there are no chunks.

    Args:
        again: gives a chunk, by its number from 0, with every token, where not all that are taken are stored.
        words: as for `find`.
    """
    if not blocks:
        return None
    parts, added, before = [], [], 0
    searched = find(blocks, config, question_QR, noise, generator, keep, words)
    for block, found in zip(blocks, searched, strict=True):
        if found.slots.any() or found.kept.any():  # else none of its chunks is read
            keys, values, chunk, token = gather_slots(block, found, _counted_on(again, before))
            parts.append((keys, values, chunk + before + 1, token))
            if (prior := found.prior(chunk, token)) is not None:
                added.append(prior)
        before += block.lengths.shape[0]
    keys, values = (torch.cat([p[i] for p in parts], dim=2) for i in (0, 1))
    chunk, token = (torch.cat([p[i] for p in parts]) for i in (2, 3))
    if config.read_chunks:  # those that are read follow each other, as in a text of only so many
        read, chunk = chunk.unique(return_inverse=True)
        chunk, before = chunk + 1, len(read)
    nearest = nearest_of(blocks, searched) if config.quoted_tokens else ()
    return Slots(keys, values, chunk, token, before, torch.cat(added) if added else None, nearest)


def slot_positions(slots: Slots, config: SharedConfig) -> tuple[Tensor, int]:
    """Rotary positions of the keys [S] and of the window's first query, by `config.positions`.

    `chunk`: key i of N chunks at i, query at N + 1 (arXiv 2603.04759). `chunk+inner`: the token inside
    the chunk on top, query at N + 1 + C. `sequence`: rank among the slots, query behind the last.
    `none`: all at 0. All queries of a window stand at that place, or move on from it (`config.moving_query`).
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
    B, K, D, skipped = len(rows), parts.kv_heads, parts.head_dim, config.skipped_layers
    lengths = [0 if r is None else r.keys.shape[2] for r in rows]
    width = 1 + max(lengths)
    device = like.device
    mask = torch.zeros(B, width, dtype=torch.bool, device=device)
    query_at = torch.zeros(B, dtype=torch.long, device=device)
    keys_M, values_M = [], []
    rotated: list[tuple[list[Rotation], list[Rotation]] | None] = []
    for b, row in enumerate(rows):
        mask[b, 1 : 1 + lengths[b]] = True
        # A row with nothing to attend to keeps its null slot, whose value is zero: the branch adds zero.
        mask[b, 0] = config.null_slot or lengths[b] == 0
        if row is None:
            rotated.append(None)
            continue
        positions, query_at[b] = slot_positions(row, config)
        M = config.injected_layers
        rotated.append((parts.tables(positions.to(device), M), parts.tables(query_at[b], M)))
    for layer in range(skipped, config.injected_layers):
        place = parts.device_of(layer)
        keys, values = [], []
        for row, tables, length in zip(rows, rotated, lengths, strict=True):
            if row is None or tables is None:
                keys.append(like.new_zeros(K, width, D + WIDER))
                values.append(like.new_zeros(K, width, D + WIDER))
                continue
            pad = (0, WIDER, 1, width - 1 - length)
            turned = rotate(row.keys[layer - skipped].to(device, torch.float32), *tables[0][layer])
            if not config.moving_query:
                cos, sin = tables[1][layer]
                turned = rotate(turned, cos, -sin)
            keys.append(F.pad(turned.to(like), pad))
            values.append(F.pad(row.values[layer - skipped].to(like), pad))
        keys_M.append(torch.stack(keys).to(place))
        keys_M[-1][:, :, 0, D] = 1
        for b, row in enumerate(rows):
            if row is not None and row.prior is not None:
                keys_M[-1][b, :, 1 : 1 + lengths[b], D + 1] = row.prior.to(keys_M[-1]) / parts.scaling(layer)
        values_M.append(torch.stack(values).to(place))
    nearest = [() if row is None else row.nearest for row in rows]
    return Memory(keys_M, values_M, mask, query_at if config.moving_query else None, nearest)
