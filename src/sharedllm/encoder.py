"""The lower model: the LLM's own embedding and lowest M layers, reading chunks side by side.

It is a view of the loaded model, not a copy: the same modules in a shorter list. What it reads are
the keys and values that those layers compute anyway; they are caught where the model hands them to
its cache, so no family needs code of its own here.

Shapes: X chunks, C tokens a chunk, P tokens stored of each, M layers, K key/value heads, D head
dimension, R stored representations, E hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sharedllm.architectures import Parts, rotate
from sharedllm.packing import group_of, pack_keys, pack_values, unpack

LAYERED = ("keys", "values", "key_low", "key_step", "value_low", "value_step")  # whose chunk axis is the second


@dataclass
class Encoded:
    """What is kept of chunks that were read together."""

    lengths: Tensor
    """[X], tokens of each chunk."""
    tokens: Tensor
    """[X, P], which tokens of the chunk are stored, ascending; past the end of a chunk: C."""
    keys: Tensor
    """[M, X, K, P, D], before rotation, in half-split order (see `architectures`); packed: codes in uint8,
    [M, X, K, P, D * bits / 8]."""
    values: Tensor
    """[M, X, K, P, D], or codes."""
    key_low: Tensor
    """[M, X, K, G, D] as `packing` says; [M, X, 0] where nothing is packed. The same for the three below."""
    key_step: Tensor
    value_low: Tensor
    """[M, X, K, P, 1]."""
    value_step: Tensor
    rep_tokens: Tensor
    """[X, R], which tokens have a representation stored, ascending; past the end: C. R is 0 unless `search_by` is `last`."""
    reps: Tensor
    """[X, R, E], normed hidden state after the first layer."""

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in vars(self).values())

    @classmethod
    def cat(cls, parts: list[Encoded]) -> Encoded:
        """Join chunks of the same stored shape."""
        if len(parts) == 1:
            return parts[0]
        names = cls.__dataclass_fields__
        return cls(**{n: torch.cat([getattr(p, n) for p in parts], dim=int(n in LAYERED)) for n in names})

    def __getitem__(self, chunks: slice) -> Encoded:
        return Encoded(**{n: t[:, chunks] if n in LAYERED else t[chunks] for n, t in vars(self).items()})

    def to(self, device: torch.device) -> Encoded:
        return Encoded(**{n: t.to(device) for n, t in vars(self).items()})

    def lowest(self, layers: int) -> Encoded:
        """The same with the keys and values of the lowest layers alone."""
        return Encoded(**{n: t[:layers] if n in LAYERED else t for n, t in vars(self).items()})

    def packed(self, bits: int) -> Encoded:
        """The same with keys and values at 8 or 4 bits a number; 16 leaves them as they are."""
        if bits == 16:
            return self
        packed = (*pack_keys(self.keys, bits), *pack_values(self.values, bits))
        names = ("keys", "key_low", "key_step", "values", "value_low", "value_step")
        return Encoded(**{**vars(self), **dict(zip(names, packed, strict=True))})

    def at(self, chunk_S: Tensor, stored_S: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [M, K, S, D] of some stored tokens, named by their chunk and their place among the stored."""

        def take(x: Tensor, at: Tensor) -> Tensor:
            return x[:, chunk_S, :, at].permute(1, 2, 0, 3)

        keys, values = take(self.keys, stored_S), take(self.values, stored_S)
        if keys.dtype != torch.uint8:
            return keys, values
        D, group = self.key_low.shape[-1], group_of(stored_S, self.tokens.shape[1])
        return (
            unpack(keys, take(self.key_low, group), take(self.key_step, group), D),
            unpack(values, take(self.value_low, stored_S), take(self.value_step, stored_S), D),
        )

    def values_of(self, layer: int, device: torch.device | None = None) -> Tensor:
        """Values of all stored tokens in one layer, [X, K, P, D], on `device` or where they are kept."""
        values, low, step = (t[layer].to(device) for t in (self.values, self.value_low, self.value_step))
        return values if values.dtype != torch.uint8 else unpack(values, low, step, self.key_low.shape[-1])


class _Catch(DynamicCache):
    """A cache that keeps the wanted tokens' keys and values of each layer and lets the rest go."""

    def __init__(self, tokens: Tensor, parts: Parts, layers: int) -> None:
        super().__init__()
        self.tokens, self.parts = tokens, parts
        self.tables = parts.tables(tokens, layers)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        at = self.tokens.to(key_states.device)
        keys, values = (gather_tokens(states, at).to(self.tokens.device) for states in (key_states, value_states))
        cos, sin = (table[:, None] for table in self.tables[len(self.keys)])
        scale = 1.0 / (cos.square() + sin.square())
        self.keys.append(rotate(self.parts.half_split(keys), cos * scale, -sin * scale))
        self.values.append(values)
        return key_states, value_states


def gather_tokens(states_XKCD: Tensor, tokens_XP: Tensor) -> Tensor:
    """States of the named tokens: [X, K, C, D] and [X, P] to [X, K, P, D]; a token past C gives the last one."""
    index = tokens_XP.clamp(max=states_XKCD.shape[2] - 1)[:, None, :, None]
    return states_XKCD.gather(2, index.expand(-1, states_XKCD.shape[1], -1, states_XKCD.shape[3]))


class LowerModel:
    """The lowest `layers` layers of a decoder, run over chunks with positions from 0.

    Every parameter is the loaded model's own (the same storage).
    """

    def __init__(self, parts: Parts, layers: int) -> None:
        self.parts = parts
        self.apart: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while chunks are read, so that slots of a running answer stay out of them."""
        self.module: Any = copy.copy(parts.base)
        self.module._modules = dict(parts.base._modules)
        self.module._modules[parts.family.layers] = nn.ModuleList(list(parts.layers[:layers]))
        self.module._modules[parts.family.final_norm] = nn.Identity()

    @property
    def device(self) -> torch.device:
        return self.parts.device

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.dtype

    def first_layer(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Normed hidden state after the first layer, [B, T, E]."""
        short = LowerModel(self.parts, 1).module
        with self.apart():
            hidden = short(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        return self._norm_first(hidden)

    def values(self, input_ids: Tensor, attention_mask: Tensor | None, layer: int) -> Tensor:
        """Values of one layer (from 0), [B, K, T, D]."""
        short = LowerModel(self.parts, layer + 1).module
        tokens = torch.arange(input_ids.shape[1], device=self.device).expand(len(input_ids), -1)
        caught = _Catch(tokens, self.parts, layer + 1)
        with self.apart():
            short(input_ids=input_ids, attention_mask=attention_mask, past_key_values=caught, use_cache=True)
        return caught.values[layer]

    def _norm_first(self, hidden: Tensor) -> Tensor:
        return self.parts.norm(1)(hidden).to(self.device)

    def encode(self, input_ids_XC: Tensor, lengths_X: Tensor, tokens_XP: Tensor, rep_tokens_XR: Tensor) -> Encoded:
        """Read chunks once and keep what is named.

        Args:
            input_ids_XC: chunks, padded at the right (causal attention never looks there).
            lengths_X: tokens of each chunk.
            tokens_XP, rep_tokens_XR: tokens to keep, ascending, past a chunk's end filled with C or more.
        """
        caught = _Catch(tokens_XP, self.parts, len(getattr(self.module, self.parts.family.layers)))
        first: list[Tensor] = []

        def note(_module: nn.Module, _args: object, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            first.append(gather_tokens(hidden[:, None], rep_tokens_XR.to(hidden.device))[:, 0])

        layers = getattr(self.module, self.parts.family.layers)
        handle = layers[0].register_forward_hook(note)
        try:
            with self.apart():
                self.module(input_ids=input_ids_XC, past_key_values=caught, use_cache=True)
        finally:
            handle.remove()
        keys = torch.stack(caught.keys)
        none = [keys.new_zeros(*keys.shape[:2], 0) for _ in range(4)]
        return Encoded(
            lengths=lengths_X,
            tokens=tokens_XP,
            keys=keys,
            values=torch.stack(caught.values),
            key_low=none[0],
            key_step=none[1],
            value_low=none[2],
            value_step=none[3],
            rep_tokens=rep_tokens_XR,
            reps=self._norm_first(first[0]),
        )
