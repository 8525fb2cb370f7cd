"""What `streaming` keeps of a text, and how a block of tokens attends to it as each of its tokens would alone.

Rotary attention knows only differences of positions, and those inside the window are the same in the cache and in the
text. A sink alone seems further behind with each token of a block. So a block's queries are turned back for the
sinks, by what their token is too far away. A model that calls torch's attention itself (Falcon) takes no other one: it
is handed each sink once for every distance needed, each copy shown to its own tokens alone.

Shapes: H query heads, K key/value heads, D head dimension, N tokens kept, T tokens of a block, S sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sharedllm.architectures import Parts, rotate, rotated_back
from sharedllm.own_attention import attending_by, fused

NAME = "sharedllm_streaming"  # under which transformers finds `attention`


class RollingCache(DynamicCache):
    """What is kept of a text: for every layer the keys before rotation, in half-split order, and the values, [1, K, N, D].

    Within `reading` a block's forward pass hands its keys and values over layer by layer.
    """

    def __init__(self, parts: Parts, sinks: int, window: int) -> None:
        super().__init__()
        self.parts, self.sinks, self.window = parts, sinks, window
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.length = 0

    def copy(self) -> RollingCache:
        """Another cache with the same contents; reading on with one leaves the other as it is."""
        other = RollingCache(self.parts, self.sinks, self.window)
        other.kept, other.length = dict(self.kept), self.length
        return other

    @contextmanager
    def reading(self, tokens: int, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions [1, T] of the next tokens and their additive attention mask; the block is to be read within this.

        No more tokens than sinks are still missing may come while some are.
        """
        apart = sinks_apart(self.parts)
        with attending_by(NAME, attention, [config for _, config in fused(self.parts)]):
            given = self._open(tokens, dtype, device, apart)
            token = _READING.set(self)
            try:
                yield given
            finally:
                _READING.reset(token)

    def _open(self, tokens: int, dtype: torch.dtype, device: torch.device, apart: bool) -> tuple[Tensor, Tensor]:
        """As `reading`; the mask is [1, 1, T, S + others].

        Args:
            apart: what sinks too far away give comes by `attention`; otherwise they are handed over in copies.
        """
        before, sinks = self.length, min(self.sinks, self.length + tokens)
        assert before >= self.sinks or before + tokens <= self.sinks
        place = torch.arange(before, before + tokens, device=device)
        beyond = (place - (self.sinks + self.window - 1)).clamp(min=0)  # how much too far away a sink would seem
        far = bool(beyond[-1]) and sinks > 0
        copies = torch.arange(1 if apart else int(beyond[-1]) + 1, device=device)
        sink, other = torch.arange(sinks, device=device), torch.arange(sinks, before + tokens, device=device)
        shown = torch.ones(tokens, 1, dtype=torch.bool, device=device) if apart else copies == beyond[:, None]
        seen_sinks = shown[:, :, None] & (sink <= place[:, None])[:, None, :]
        seen_others = (other <= place[:, None]) & (other > place[:, None] - self.window)
        seen = torch.cat([seen_sinks.flatten(1), seen_others], dim=1)
        # One table for all places, since some depend on the furthest of them.
        tables = self.parts.tables(torch.arange(before + tokens, device=device), len(self.parts.layers))
        self._new, self._old = at(tables, place), at(tables, torch.arange(before, device=device))
        self._copies = at(tables, copies[:, None] + sink)
        self._back = at(tables, beyond) if apart and far else None
        self.length = min(before + tokens, self.sinks + self.window - 1)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)
        return place[None], mask[None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Take a block's rotated keys and its values in; returns all it may attend to, the sinks first."""
        half_split, own = self.parts.half_split, self.parts.own_order
        plain, values = rotated_back(half_split(key_states), *self._new[layer_idx]), value_states
        keys = key_states
        if layer_idx in self.kept:
            old_keys, old_values = self.kept[layer_idx]
            plain, values = torch.cat([old_keys, plain], dim=2), torch.cat([old_values, values], dim=2)
            keys = torch.cat([own(rotate(old_keys, *self._old[layer_idx])), keys], dim=2)
        self.kept[layer_idx] = (self._lasting(plain), self._lasting(values))
        cos, sin = self._copies[layer_idx]
        sink_keys, sink_values = (x[:, :, None, : self.sinks].expand(-1, -1, len(cos), -1, -1) for x in (plain, values))
        sink_keys = own(rotate(sink_keys, cos, sin))
        return (
            torch.cat([sink_keys.flatten(2, 3), keys[:, :, self.sinks :]], dim=2),
            torch.cat([sink_values.flatten(2, 3), values[:, :, self.sinks :]], dim=2),
        )

    def _lasting(self, x: Tensor) -> Tensor:
        """Of keys or values [1, K, tokens, D]: the sinks, and what the next token sees of the rest."""
        dropped = x.shape[2] - self.length
        return torch.cat([x[:, :, : self.sinks], x[:, :, self.sinks + dropped :]], dim=2) if dropped else x

    def turned(self, query: Tensor, layer: int) -> Tensor | None:
        """Queries [1, H, T, D] as they are to meet the sinks, in half-split order; None: no sink seems too far away."""
        if self._back is None:
            return None
        cos, sin = self._back[layer]
        scale = (cos.square() + sin.square()).rsqrt()
        return rotate(self.parts.half_split(query), cos * scale, -sin * scale)


_READING: ContextVar[RollingCache | None] = ContextVar("reading", default=None)


def sinks_apart(parts: Parts) -> bool:
    """Whether sinks come by `attention`: all layers take another one in place of torch's."""
    return len(fused(parts)) == len(parts.layers)


def at(tables: list[tuple[Tensor, Tensor]], places: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of the layers' tables [P, R] those of some places, [*places.shape, R]; layers that share theirs go on to."""
    found = {id(cos): (cos[places], sin[places]) for cos, sin in tables}
    return [found[id(cos)] for cos, _ in tables]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' `sdpa_attention_forward`, of a block that is read into a cache, by matrix products: query [1, H, T, D], key and
    value [1, K, S + others, D] to [1, T, H, D]. Of some hundred queries under a mask they take half the time of torch's fused one on a CPU.
    """
    cache = _READING.get()
    if cache is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    K, S = key.shape[1], min(cache.sinks, key.shape[2])
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    layer: int = module.layer_idx  # type: ignore[assignment]
    logits = query.unflatten(1, (K, -1)).flatten(2, 3) @ key.transpose(2, 3)
    if (turned := cache.turned(query, layer)) is not None:
        sinks = cache.parts.half_split(key[:, :, :S])
        logits[..., :S] = turned.unflatten(1, (K, -1)).flatten(2, 3) @ sinks.transpose(2, 3)
    shape = (-1, query.shape[2])  # query heads of a key/value head, T
    weights = (logits.unflatten(2, shape) + attention_mask[:, None]).softmax(dim=4).flatten(2, 3)
    return (weights @ value).unflatten(2, shape).flatten(1, 2).transpose(1, 2).contiguous(), None
