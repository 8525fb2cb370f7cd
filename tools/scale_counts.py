"""Operations and bytes of four ways to read a long text, counted from shapes; `scale.py` makes docs/SCALE.md of them.

A multiply and an add are two operations. Counted are the products of matrices and of attention; pairs that a mask rules
out are not, nor are norms, rotations, softmax and what else grows with tokens times width alone.

Symbols: N tokens of a text, C tokens a chunk, L layers, M injected layers, E hidden size, H query heads, K key/value heads,
D head dimension, S slots, W weights of a layer that every token passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig

from sharedllm.branch import WIDER
from sharedllm.config import SharedConfig
from sharedllm.methods.encoder_decoder import CrossConfig
from sharedllm.methods.estimate import cache_bytes
from sharedllm.methods.streaming import BLOCK, Streaming
from sharedllm.projection import MERGED
from sharedllm.reader import Reader
from sharedllm.relevance import ASKING_TOKENS

METHODS = ("full", "shared", "streaming", "encoder-decoder")


class Shape:
    """A decoder of the Llama kind without weights, under the names that `methods.estimate` and `reader` ask a model for."""

    def __init__(self, name: str, config: LlamaConfig, dtype: torch.dtype = torch.bfloat16) -> None:
        self.name, self.dtype, self.config = name, dtype, config
        self.parts: Any = SimpleNamespace(
            layers=range(config.num_hidden_layers),
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            window=config.max_position_embeddings,
        )

    @property
    def layers(self) -> int:
        return len(self.parts.layers)

    @property
    def query_weights(self) -> int:
        """Weights of a layer's queries: E H D; those of its output are as many."""
        return self.parts.hidden_size * self.parts.heads * self.parts.head_dim

    @property
    def key_weights(self) -> int:
        """Weights of a layer's keys: E K D; those of its values are as many."""
        return self.parts.hidden_size * self.parts.kv_heads * self.parts.head_dim

    @property
    def layer_weights(self) -> int:
        """W = 2 E H D + 2 E K D + 3 E I, with I the width of the MLP."""
        return (
            2 * self.query_weights + 2 * self.key_weights + 3 * self.parts.hidden_size * self.config.intermediate_size
        )

    @property
    def head_weights(self) -> int:
        """Of the logits: E times the vocabulary."""
        return self.parts.hidden_size * self.parts.vocab_size

    @property
    def weight_bytes(self) -> int:
        """What every new token reads of the model."""
        return (self.layers * self.layer_weights + self.head_weights) * self.dtype.itemsize

    def attention(self, pairs: int, wider: int = 0) -> int:
        """Operations of one layer's attention over pairs of a query and a key: 4 H D each, the logit and the sum."""
        return 4 * self.parts.heads * (self.parts.head_dim + wider) * pairs


@dataclass(frozen=True)
class Cost:
    """Operations, and bytes, of one method on one text."""

    read: int
    """Operations to take the text in."""
    kept: int
    """Bytes kept of it for any question."""
    attended: int
    """Bytes of keys and values of the text that one question attends to, in all layers."""
    search: int
    """Operations to find what a question attends to."""
    search_bytes: int
    """Bytes of the store that this goes through, and of token ids."""
    token: int
    """Operations of a new token."""
    token_bytes: int
    """Bytes that a new token reads: weights, keys and values."""


def pairs(tokens: int, seen: int | None = None) -> int:
    """Pairs of a token and one it attends to, itself among them: all before it, or the newest `seen`."""
    near = min(tokens, seen or tokens)
    return near * (near + 1) // 2 + (tokens - near) * near


def in_chunks(tokens: int, chunk: int) -> list[tuple[int, int]]:
    """How many chunks of which length: the complete ones, then the ragged last one."""
    full, rest = divmod(tokens, chunk)
    return [(count, n) for count, n in ((full, chunk), (1, rest)) if count and n]


def forward(shape: Shape, tokens: int, pairs: int, layers: int | None = None) -> int:
    """Operations of so many layers, or all: 2 W a token, and attention."""
    return (shape.layers if layers is None else layers) * (2 * shape.layer_weights * tokens + shape.attention(pairs))


def chunked(shape: Shape, tokens: int, chunk: int, layers: int | None = None) -> int:
    """Operations of reading chunks that do not see each other."""
    return sum(count * forward(shape, n, pairs(n), layers) for count, n in in_chunks(tokens, chunk))


def encoded(shape: Shape, tokens: int, chunk: int, layers: int) -> int:
    """Operations of reading chunks for the keys and values of so many layers: of the top one, if there are more, only those
    and the queries."""
    if layers == 1:
        return chunked(shape, tokens, chunk, 1)
    return chunked(shape, tokens, chunk, layers - 1) + 2 * (shape.query_weights + 2 * shape.key_weights) * tokens


def cost(method: str, shape: Shape, tokens: int, config: SharedConfig, window: int, asked: int) -> Cost:
    """The cost of a method.

    Args:
        window: newest tokens that `streaming` keeps besides its sinks.
        asked: tokens of question and answer that a new token attends to besides the text.
    """
    if method == "shared":
        return _shared(shape, tokens, config, asked)
    if method == "encoder-decoder":
        return _encoder_decoder(shape, tokens, asked)
    return _streaming(shape, tokens, window, asked) if method == "streaming" else _full(shape, tokens, asked)


def _full(shape: Shape, tokens: int, asked: int) -> Cost:
    kept = cache_bytes(shape, tokens)  # type: ignore[arg-type]
    read = forward(shape, tokens, pairs(tokens)) + 2 * shape.head_weights
    return Cost(read, kept, kept, 0, 0, *_token(shape, tokens + asked))


def _streaming(shape: Shape, tokens: int, window: int, asked: int) -> Cost:
    method = Streaming(shape, window)  # type: ignore[arg-type]
    seen = method.positions(tokens)
    read = forward(shape, tokens, pairs(tokens, seen)) + 2 * shape.head_weights * -(-tokens // BLOCK)
    kept = cache_bytes(shape, seen)  # type: ignore[arg-type]
    return Cost(read, kept, kept, 0, 0, *_token(shape, method.positions(tokens + asked)))


def _encoder_decoder(shape: Shape, tokens: int, asked: int) -> Cost:
    L, kept = shape.layers, cache_bytes(shape, tokens)  # type: ignore[arg-type]
    read = chunked(shape, tokens, CrossConfig().chunk_length) + L * 4 * shape.key_weights * tokens
    operations, read_bytes = _token(shape, asked)
    crossed = L * (4 * shape.query_weights + shape.attention(tokens))
    weights = L * 2 * shape.query_weights * shape.dtype.itemsize
    return Cost(read, kept, kept, 0, 0, operations + crossed, read_bytes + weights + kept)


def _shared(shape: Shape, tokens: int, config: SharedConfig, asked: int) -> Cost:
    attended = memory_bytes(shape, tokens, config) + wider_bytes(shape, tokens, config)
    operations, read_bytes = _token(shape, asked)
    quoted = shape.layers * shape.attention(min(tokens, config.quoted_tokens))
    search, search_bytes = _search(shape, tokens, config)
    weights = config.branches * _branch_weights(shape, config)
    return Cost(
        read=encoded(shape, tokens, config.chunk_length, config.injected_layers),
        kept=stored_bytes(shape, tokens, config),
        attended=attended,
        search=search,
        search_bytes=search_bytes,
        token=operations + quoted + _crossed(shape, tokens, config),
        token_bytes=read_bytes + weights * shape.dtype.itemsize + attended,
    )


def taking_in(shape: Shape, tokens: int, config: SharedConfig) -> int:
    """Operations from a search to the first token: a question of `ASKING_TOKENS` tokens with what is quoted before it."""
    asked = ASKING_TOKENS + min(tokens, config.quoted_tokens)
    return forward(shape, asked, pairs(asked)) + 2 * shape.head_weights + asked * _crossed(shape, tokens, config)


def _crossed(shape: Shape, tokens: int, config: SharedConfig) -> int:
    """Operations of all branches for one token of the window."""
    slots_seen = shape.attention(1 + slots(tokens, config), WIDER)
    return config.branches * (2 * _branch_weights(shape, config) + slots_seen)


def _branch_weights(shape: Shape, config: SharedConfig) -> int:
    """Weights of a branch: of its queries and its output, and of their changes of low rank where those are kept apart."""
    low_rank = 2 * config.rank * (shape.parts.hidden_size + shape.parts.heads * shape.parts.head_dim)
    return 2 * shape.query_weights + (low_rank if shape.query_weights > MERGED else 0)


def _token(shape: Shape, seen: int) -> tuple[int, int]:
    """Operations and bytes of one token of the model itself, which attends to `seen` tokens in every layer."""
    operations = forward(shape, 1, seen) + 2 * shape.head_weights
    return operations, shape.weight_bytes + cache_bytes(shape, seen)  # type: ignore[arg-type]


def slots(tokens: int, config: SharedConfig) -> int:
    """S: slots a layer that one question takes in where the chunk that it takes whole is a complete one."""
    chunks = -(-tokens // config.chunk_length)
    read = min(chunks, config.read_chunks or chunks)
    fine = min(read, config.fine_chunks)
    return fine * config.chunk_length + (read - fine) * config.slots_per_chunk


def memory_bytes(shape: Shape, tokens: int, config: SharedConfig) -> int:
    """What a question attends to of the text itself: 2 M K D numbers a slot, and what is quoted in all layers."""
    slot = 2 * config.branches * shape.parts.kv_heads * shape.parts.head_dim * shape.dtype.itemsize
    return slots(tokens, config) * slot + cache_bytes(shape, min(tokens, config.quoted_tokens))  # type: ignore[arg-type]


def wider_bytes(shape: Shape, tokens: int, config: SharedConfig) -> int:
    """What `WIDER` dimensions add to the keys and values of slots; rows of `bench` from before they were counted leave it out."""
    return 2 * config.branches * shape.parts.kv_heads * WIDER * slots(tokens, config) * shape.dtype.itemsize


def stored_bytes(shape: Shape, tokens: int, config: SharedConfig) -> int:
    """What a context keeps, `Context.nbytes`: the layout of its chunks as the reader gives it, and 4 bytes a token id."""
    return 4 * tokens + sum(
        count * _layout(shape, n, config).nbytes for count, n in in_chunks(tokens, config.chunk_length)
    )


def _layout(shape: Shape, n: int, config: SharedConfig) -> Any:
    return Reader(shape, config, "", None).layout(n)  # type: ignore[arg-type]


def _search(shape: Shape, tokens: int, config: SharedConfig) -> tuple[int, int]:
    """Operations and bytes of finding what a question of `ASKING_TOKENS` tokens attends to, `search_by` tokens.

    The question passes the layers up to the one that is searched; each of its tokens is compared with every stored one.
    All values of that layer are unpacked twice: for their mean, and to compare them. Where words count, all token ids are
    looked through for each token that asks.
    """
    Q, M, K = ASKING_TOKENS, config.branches, shape.parts.kv_heads * shape.parts.head_dim
    layouts = [(count, _layout(shape, n, config)) for count, n in in_chunks(tokens, config.chunk_length)]
    stored = sum(count * kept.tokens.numel() for count, kept in layouts)
    packed = sum(
        count * sum(x.nbytes for x in (kept.values, kept.value_low, kept.value_step)) for count, kept in layouts
    )
    below = config.representing_layer
    asking = forward(shape, Q, pairs(Q), below) + 2 * (shape.query_weights + 2 * shape.key_weights) * Q
    words = 4 * tokens * Q if config.search_words else 0
    return asking + 2 * stored * K * Q, 2 * packed // M + words
