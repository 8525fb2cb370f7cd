"""The lower model: the LLM's own embedding and lowest M layers, reading chunks side by side.

It is a view of the loaded model, not a copy: the same modules in a shorter list. What it reads are
the keys and values that those layers compute anyway; they are caught where the model hands them to
its cache, so no family needs code of its own here.

Shapes: X chunks, C tokens a chunk, P tokens stored of each, M layers kept (all that read but `skipped_layers`), K key/value
heads, D head dimension, R stored representations, E hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sharedllm.architectures import Parts, rotate
from sharedllm.packing import group_of, pack_keys, pack_values, unpack

SEARCHED = ("search_values", "search_low", "search_step")
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
    search_values: Tensor
    """[X, K, P, D], or codes: values of `config.compared_layer`; [X, 0] where there is none."""
    search_low: Tensor
    """[X, K, P, 1]; [X, 0] where they are not packed. The same for the next."""
    search_step: Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in vars(self).values())

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Encoded:
        """From tensors by name; contexts saved by earlier releases lack those of the search."""
        none = tensors["value_low"].new_zeros(len(tensors["lengths"]), 0)
        return cls(**{**dict.fromkeys(SEARCHED, none), **tensors})

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

    def layers(self, start: int, end: int, compared: int | None = None) -> Encoded:
        """The same with the keys and values of these of its layers alone.

        Args:
            compared: a layer of its own whose values are kept apart for the search; None: what is so now stays.
        """
        kept = {n: t[start:end] if n in LAYERED else t for n, t in vars(self).items()}
        if compared is not None:
            kept |= dict(
                zip(SEARCHED, (t[compared] for t in (self.values, self.value_low, self.value_step)), strict=True)
            )
        return Encoded(**kept)

    def packed(self, bits: int) -> Encoded:
        """The same with keys and values at 8 or 4 bits a number; 16 leaves them as they are."""
        if bits == 16:
            return self
        searched = packed_values(self.search_values, bits) if self.search_values.numel() else {}
        return Encoded(**{**vars(self), **packed_layer(self.keys, self.values, bits), **searched})

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
        """Values of all stored tokens in one of its layers, [X, K, P, D], on `device` or where they are kept."""
        return self._numbers(self.values[layer], self.value_low[layer], self.value_step[layer], device)

    def search_values_on(self, device: torch.device | None = None) -> Tensor:
        """Values that were kept for the search, [X, K, P, D], on `device` or where they are kept."""
        return self._numbers(self.search_values, self.search_low, self.search_step, device)

    def _numbers(self, values: Tensor, low: Tensor, step: Tensor, device: torch.device | None) -> Tensor:
        values, low, step = (t.to(device) for t in (values, low, step))
        return values if values.dtype != torch.uint8 else unpack(values, low, step, self.key_low.shape[-1])


class _Caught(Exception):
    """All that was wanted of a forward pass is there."""


class _Catch(DynamicCache):
    """A cache that keeps the wanted tokens' keys and values of each layer and lets the rest go.

    Args:
        tokens: [X, P], those that are wanted; None: all, in their order.
        layers: of which all but the lowest `skipped` are wanted, and of layer `compared` the values apart; -1: of none.
        bits: at which they are kept, as `Encoded.packed`: one layer after the other, so that only one is there in full.
        stop: end the forward pass, by `_Caught`, with the last layer's keys and values.
    """

    def __init__(
        self,
        tokens: Tensor | None,
        at: Tensor,
        parts: Parts,
        layers: int,
        skipped: int,
        compared: int,
        bits: int,
        stop: bool,
    ) -> None:
        super().__init__()
        self.tokens, self.parts, self.wanted = tokens, parts, range(skipped, layers)
        self.bits, self.stop, self.device, self.compared, self.layer = bits, stop, at.device, compared, -1
        self.searched: dict[str, Tensor] = {}
        self.tables = [(cos[:, None], sin[:, None]) for cos, sin in parts.tables(at, layers)]
        self.kept: dict[str, list[Tensor]] = {name: [] for name in LAYERED}

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.layer += 1
        if self.layer in self.wanted:
            self._keep(key_states, value_states)
        if self.layer == self.compared:
            self.searched = packed_values(self._wanted(value_states), self.bits)
        if self.stop and self.layer == self.wanted.stop - 1:
            raise _Caught
        return key_states, value_states

    def _keep(self, key_states: Tensor, value_states: Tensor) -> None:
        keys, values = self._wanted(key_states), self._wanted(value_states)
        cos, sin = self.tables[self.layer]
        scale = 1.0 / (cos.square() + sin.square())
        keys = rotate(self.parts.half_split(keys), cos * scale, -sin * scale)
        for name, kept in packed_layer(keys, values, self.bits).items():
            self.kept[name].append(kept)

    def _wanted(self, states: Tensor) -> Tensor:
        if self.tokens is not None:
            states = gather_tokens(states, self.tokens.to(states.device))
        return states.to(self.device)


def packed_values(values: Tensor, bits: int) -> dict[str, Tensor]:
    """Values [X, K, P, D] that are kept for the search, as `packed_layer`."""
    none = values.new_zeros(len(values), 0)
    return dict(zip(SEARCHED, (values, none, none) if bits == 16 else pack_values(values, bits), strict=True))


def packed_layer(keys: Tensor, values: Tensor, bits: int) -> dict[str, Tensor]:
    """Keys and values [..., K, P, D] at 8 or 4 bits a number, or 16 as they are, by the names of `Encoded`'s fields."""
    if bits == 16:
        none = keys.new_zeros(keys.shape[0], 0)
        return dict(zip(LAYERED, (keys, values, none, none, none, none), strict=True))
    (keys, key_low, key_step), (values, value_low, value_step) = pack_keys(keys, bits), pack_values(values, bits)
    return dict(zip(LAYERED, (keys, values, key_low, key_step, value_low, value_step), strict=True))


def gather_tokens(states_XKCD: Tensor, tokens_XP: Tensor) -> Tensor:
    """States of the named tokens: [X, K, C, D] and [X, P] to [X, K, P, D]; a token past C gives the last one."""
    index = tokens_XP.clamp(max=states_XKCD.shape[2] - 1)[:, None, :, None]
    return states_XKCD.gather(2, index.expand(-1, states_XKCD.shape[1], -1, states_XKCD.shape[3]))


class LowerModel:
    """The lowest `layers` layers of a decoder, run over chunks with positions from 0.

    Of the lowest `skipped` nothing is kept but the values of layer `compared`, if that is not -1.

    Every parameter is the loaded model's own (the same storage).
    """

    def __init__(self, parts: Parts, layers: int, skipped: int = 0, compared: int = -1) -> None:
        self.parts, self.skipped, self.compared = parts, skipped, compared
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
        short = LowerModel(self.parts, layer + 1, skipped=layer)
        at = torch.arange(input_ids.shape[1], device=self.device).expand(len(input_ids), -1)
        caught = _Catch(None, at, self.parts, layer + 1, layer, -1, 16, stop=short.may_stop)
        with self.apart():
            short.fill(caught, input_ids=input_ids, attention_mask=attention_mask)
        return caught.kept["values"][0]

    @property
    def may_stop(self) -> bool:
        """Whether a forward pass may end inside the top layer, whose attention and MLP nobody reads.

        Not where something waits for the layer's end: weights divided over processes or kept elsewhere, compiled code.
        """
        inside = [self.module, *self._layers[-1].modules()]
        awaited = ("unshard", "_hf_hook", "_orig_mod")
        return not any(hasattr(m, name) for m in inside for name in awaited) and not any(
            m._compiled_call_impl for m in inside
        )

    @property
    def _layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = getattr(self.module, self.parts.family.layers)
        return layers

    def fill(self, caught: _Catch, **inputs: Any) -> None:
        """A forward pass into a cache."""
        try:
            self.module(**inputs, past_key_values=caught, use_cache=True)
        except _Caught:
            return

    def _norm_first(self, hidden: Tensor) -> Tensor:
        return self.parts.norm(1)(hidden).to(self.device)

    def encode(
        self, input_ids_XC: Tensor, lengths_X: Tensor, tokens_XP: Tensor, rep_tokens_XR: Tensor, bits: int = 16
    ) -> Encoded:
        """Read chunks once and keep what is named.

        Args:
            input_ids_XC: chunks, padded at the right (causal attention never looks there).
            lengths_X: tokens of each chunk.
            tokens_XP, rep_tokens_XR: tokens to keep, ascending, past a chunk's end filled with C or more.
            bits: of a number kept, as `Encoded.packed`.
        """
        in_order = torch.arange(input_ids_XC.shape[1], device=tokens_XP.device).expand_as(input_ids_XC)
        every = torch.equal(tokens_XP, in_order)
        M = len(self._layers)
        stop = M > 1 and self.may_stop  # what comes out of the first layer is wanted
        named = None if every else tokens_XP
        caught = _Catch(named, tokens_XP, self.parts, M, self.skipped, self.compared, bits, stop)
        first: list[Tensor] = []

        def note(_module: nn.Module, _args: object, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            first.append(gather_tokens(hidden[:, None], rep_tokens_XR.to(hidden.device))[:, 0])

        handle = self._layers[0].register_forward_hook(note)
        try:
            with self.apart():
                self.fill(caught, input_ids=input_ids_XC)
        finally:
            handle.remove()
        kept = {name: torch.stack(layers) for name, layers in caught.kept.items()}
        told = {"rep_tokens": rep_tokens_XR, "reps": self._norm_first(first[0])}
        return Encoded.of({"lengths": lengths_X, "tokens": tokens_XP, **kept, **told, **caught.searched})
