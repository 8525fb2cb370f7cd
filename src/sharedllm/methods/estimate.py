"""What a run will take of memory and of work, counted from shapes; the model's weights are left out.

The counts follow a decoder of the Llama kind under fused attention, which never holds a matrix of tokens by keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sharedllm.branch import WIDER
from sharedllm.model import SharedLLM


@dataclass(frozen=True)
class Passes:
    """Forward passes as their parts: tokens that pass all weights of the model, and pairs of a query and a key in all layers."""

    tokens: float = 0.0
    pairs: float = 0.0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.tokens + other.tokens, self.pairs + other.pairs)

    def times(self, number: float) -> Passes:
        return Passes(number * self.tokens, number * self.pairs)


def one_pass(tokens: int, before: int = 0) -> Passes:
    """A pass over `tokens` tokens, each of which attends to those before it and to `before` others."""
    return Passes(tokens, tokens * (tokens + 1) / 2 + tokens * before)


def in_chunks(tokens: int, chunk_length: int) -> Passes:
    """Passes over chunks of `chunk_length` tokens, each by itself."""
    whole, rest = divmod(tokens, chunk_length)
    return one_pass(chunk_length).times(whole) + one_pass(rest)


def cache_bytes(llm: SharedLLM, tokens: int, layers: int | None = None) -> int:
    """Keys and values of `tokens` tokens, in all layers or in so many."""
    parts = llm.parts
    layers = len(parts.layers) if layers is None else layers
    return 2 * tokens * layers * parts.kv_heads * parts.head_dim * llm.dtype.itemsize


def slot_bytes(llm: SharedLLM, slots: int) -> int:
    """Keys and values of so many slots in all layers with a branch, as they are stored."""
    return cache_bytes(llm, slots, llm.config.branches)


def attended_bytes(llm: SharedLLM, slots: int, quoted: int = 0) -> int:
    """What a question attends to: slots with the dimensions that a branch adds to them, and quoted tokens in all layers."""
    D = llm.parts.head_dim
    return slot_bytes(llm, slots) * (D + WIDER) // D + cache_bytes(llm, quoted)


def forward_bytes(llm: SharedLLM, tokens: int, scored: int = 0, keys: int | None = None) -> int:
    """Most that is held at once in a forward pass over `tokens` tokens, its cache left out.

    Args:
        scored: tokens whose likelihood is computed.
        keys: tokens attended to where they are more than `tokens`.
    """
    parts, size = llm.parts, llm.dtype.itemsize
    E, H, K = parts.hidden_size, parts.heads * parts.head_dim, parts.kv_heads * parts.head_dim
    keys = max(keys or 0, tokens)
    residual = 2 * tokens * E * size  # the sum and what a norm made of it
    norm = residual + 3 * tokens * E * 4  # in fp32
    turned = tokens * (5 * H + 5 * K + 2 * parts.head_dim)  # queries, keys and values, and what rotates them
    attention = residual + (turned + keys * (2 * H + 4 * K)) * size  # grouped keys are repeated
    mlp = residual + 3 * tokens * mlp_width(parts.config) * size
    logits = residual + scored * parts.vocab_size * (size + 4 + (4 if size < 4 else 0))  # and fp32, and softmax
    return max(norm, attention, mlp, logits)


def mlp_width(config: Any) -> int:
    """Numbers a token has inside an MLP; a configuration that does not say has four times the hidden size."""
    names = ("intermediate_size", "ffn_hidden_size", "n_inner")
    widths = (getattr(config, name, None) for name in names)
    return next((int(width) for width in widths if isinstance(width, int)), 4 * int(config.hidden_size))
