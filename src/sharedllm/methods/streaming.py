"""`streaming`: attention sinks and a rolling window, StreamingLLM (arXiv 2309.17453).

A token attends to the first `sinks` tokens of the text and to the newest `window`, itself among them.
Every other key and value is dropped, so memory stays constant and time grows linearly. Positions are those
inside the cache: sink k sits at k, the newest token never further than at sinks + window - 1. A key and a
value are computed once, when their token is read, by what that token could see.

The paper reads token by token. Here a block of tokens is read at a time, and that is exact: rotary
attention knows only differences of positions, those inside the window are the same in the cache and in
the text, and a sink, which seems further behind with each token of a block, is repeated once for every
distance needed, each copy shown to its own tokens alone.

Shapes: K key/value heads, D head dimension, N tokens kept, T tokens of a block, S copies of sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from sharedllm.architectures import Parts, rotate
from sharedllm.errors import UsageError
from sharedllm.methods.base import Method
from sharedllm.methods.estimate import Passes, cache_bytes, forward_bytes, one_pass
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt, end_tokens

BLOCK = 256  # tokens read at a time once there are sinks; of 32 to 512 the fastest on two cores (docs/LOG.md)


class RollingCache(DynamicCache):
    """What is kept of a text: for every layer the keys before rotation and the values, [1, K, N, D].

    `open` says how many tokens come next and gives what the model's forward pass needs for them;
    the pass then hands its keys and values over layer by layer.
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

    def open(self, tokens: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Positions [1, T] of the next tokens and their additive attention mask [1, 1, T, S + keys].

        No more tokens than sinks are still missing may come while some are.
        """
        before, sinks = self.length, min(self.sinks, self.length + tokens)
        assert before >= self.sinks or before + tokens <= self.sinks
        place = torch.arange(before, before + tokens, device=device)
        beyond = (place - (self.sinks + self.window - 1)).clamp(min=0)  # how much too far away a sink would seem
        copies = torch.arange(int(beyond[-1]) + 1, device=device)
        sink, other = torch.arange(sinks, device=device), torch.arange(sinks, before + tokens, device=device)
        seen_sinks = (copies == beyond[:, None])[:, :, None] & (sink <= place[:, None])[:, None, :]
        seen_others = (other <= place[:, None]) & (other > place[:, None] - self.window)
        seen = torch.cat([seen_sinks.flatten(1), seen_others], dim=1)
        self._new = self.parts.cos_sin(place)
        self._old = self.parts.cos_sin(torch.arange(before, device=device))
        self._copies = self.parts.cos_sin(copies[:, None] + sink)
        self.length = min(before + tokens, self.sinks + self.window - 1)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, -torch.inf)
        return place[None], mask[None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Take a block's rotated keys and its values in; returns all it may attend to, the sinks' copies first."""
        cos, sin = self._new
        scale = 1.0 / (cos.square() + sin.square())
        plain, keys, values = rotate(key_states, cos * scale, -sin * scale), key_states, value_states
        if layer_idx in self.kept:
            old_keys, old_values = self.kept[layer_idx]
            plain, values = torch.cat([old_keys, plain], dim=2), torch.cat([old_values, values], dim=2)
            keys = torch.cat([rotate(old_keys, *self._old), keys], dim=2)
        self.kept[layer_idx] = (self._lasting(plain), self._lasting(values))
        sink_keys, sink_values = (
            x[:, :, None, : self.sinks].expand(-1, -1, len(self._copies[0]), -1, -1) for x in (plain, values)
        )
        sink_keys = rotate(sink_keys, *self._copies)
        return (
            torch.cat([sink_keys.flatten(2, 3), keys[:, :, self.sinks :]], dim=2),
            torch.cat([sink_values.flatten(2, 3), values[:, :, self.sinks :]], dim=2),
        )

    def _lasting(self, x: Tensor) -> Tensor:
        """Of keys or values [1, K, tokens, D]: the sinks, and what the next token sees of the rest."""
        dropped = x.shape[2] - self.length
        return torch.cat([x[:, :, : self.sinks], x[:, :, self.sinks + dropped :]], dim=2) if dropped else x


@dataclass(frozen=True)
class Read:
    """Token ids [P] of a text, those of a prompt that were read before them, and what is kept of both."""

    ids: Tensor
    cache: RollingCache
    before: tuple[int, ...] = ()


class Streaming(Method):
    """The text is read once, where it is to be asked about inside the prompt: what stands before it there is read first,
    so that it is among the sinks. A question that puts something else before the text has it read again.

    Several lengths of one text share no reading: each has sinks of its own.

    Args:
        sinks: first tokens that are never dropped; 0 is a plain rolling window.
    Raises:
        UsageError: `sinks` is negative.
    """

    name = "streaming"

    def __init__(self, llm: SharedLLM, window: int, sinks: int = 4) -> None:
        super().__init__(llm, window)
        if sinks < 0:
            raise UsageError(f"sinks is {sinks}; it must be at least 0.")
        self.sinks = sinks

    def prepare(self, past: Tensor) -> Read:
        return self._taken_in(past, ())

    def prepare_to_ask(self, past: Tensor, prompt: Prompt) -> Read:
        return self._taken_in(past, _around(past, prompt)[0])

    def _taken_in(self, past: Tensor, before: tuple[int, ...]) -> Read:
        cache = RollingCache(self.llm.parts, self.sinks, self.window)
        for _ in self._read(cache, torch.cat([past.new_tensor(before), past])):
            pass
        return Read(past, cache, before)

    def score(self, past: Read, window: Tensor, targets: int) -> Tensor:
        nats = []
        for stop, logits in self._read(past.cache.copy(), window, len(window) - targets - 1):
            following = window[stop - len(logits) + 1 : stop + 1].to(logits.device)
            nats.append(F.cross_entropy(logits[: len(following)].float(), following, reduction="none"))
        return torch.cat(nats)[-targets:]

    def generate(self, past: Read, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        """Takes no argument of transformers' `generate`, which knows no cache of this kind."""
        if kwargs:
            raise UsageError(f"streaming generates greedily and takes no {min(kwargs)}; leave it out.")
        ends, least = end_tokens(self.llm.model), self.llm.model.generation_config.min_new_tokens or 0
        cache, new, ids = past.cache.copy(), list[int](), window
        while len(new) < max_new_tokens and not (new and new[-1] in ends):
            *_, (_, logits) = self._read(cache, ids)
            if len(new) < least:
                logits[-1, list(ends)] = -torch.inf
            new.append(int(logits[-1].argmax()))
            ids = torch.tensor(new[-1:])
        return torch.tensor(new)

    def shown(self, past: Read, prompt: Prompt, max_new_tokens: int) -> list[int]:
        """What of the text is still in the cache when the answer ends, and the question."""
        before, question = _around(past.ids, prompt)
        read, room = [*before, *past.ids.tolist()], max(0, self.window - len(question) - max_new_tokens)
        sinks, rest = read[: self.sinks], read[self.sinks :]
        return [*sinks, *rest[max(0, len(rest) - room) :], *question]

    def ask(self, past: Read, prompt: Prompt, max_new_tokens: int) -> Tensor:
        before, question = _around(past.ids, prompt)
        if before != past.before:
            past = self.prepare_to_ask(past.ids, prompt)
        return self.generate(past, torch.tensor(question), max_new_tokens)

    @torch.no_grad()
    def _read(self, cache: RollingCache, ids: Tensor, first: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Read `ids` [T] on, block by block; yields where a block stops and logits [n, V] of its last n tokens.

        Args:
            first: the first token whose logits are wanted; a block before it gives those of its last alone.
        """
        start, first = 0, len(ids) if first is None else first
        while start < len(ids):
            missing = self.sinks - cache.length
            stop = min(len(ids), start + (missing if missing > 0 else BLOCK))
            positions, mask = cache.open(stop - start, self.llm.dtype, self.llm.device)
            logits = self.llm.model(
                input_ids=ids[None, start:stop].to(self.llm.device),
                position_ids=positions,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=max(1, stop - max(start, first)),
            ).logits
            del mask  # before the next one is made
            yield stop, logits[0]
            start = stop

    def positions(self, tokens: int) -> int:
        return min(tokens, self.sinks + self.window)

    def peak_bytes(self, tokens: int, scored: int = 0) -> int:
        """Both what was read and what goes on from it are kept; keys of every sink are repeated for a block."""
        kept = self.positions(tokens)
        keys = kept + BLOCK * (1 + self.sinks)
        mask, size = BLOCK * keys, self.llm.dtype.itemsize
        made = mask * (2 * size + 3)  # from marks of a byte, by way of a copy
        passed, logits = (forward_bytes(self.llm, BLOCK, n, keys) for n in (0, min(scored, BLOCK)))
        return 2 * cache_bytes(self.llm, kept) + max(made, mask * size + passed, logits)

    def reading(self, tokens: int) -> Passes:
        whole, rest = divmod(tokens, BLOCK)
        kept = min(tokens, self.window)
        return self._block(BLOCK, kept).times(whole) + self._block(rest, kept)

    def _block(self, tokens: int, kept: int) -> Passes:
        """A block, whose tokens are all held against what is kept, the block itself and the copies of the sinks."""
        keys = kept + tokens * (1 + self.sinks)
        return one_pass(tokens, keys - tokens // 2)

    def kept_bytes(self, past: Read) -> int:
        return int(past.ids.nbytes) + sum(x.nbytes for pair in past.cache.kept.values() for x in pair)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "sinks": self.sinks}

    def rules(self, scored: bool, before: int = 0) -> dict[str, Any]:
        return {} if scored else {"read_in_prompt": True, "block": BLOCK}


def _around(text: Tensor, prompt: Prompt) -> tuple[tuple[int, ...], list[int]]:
    """Token ids that stand before a text and after it; of a text without any, those of the question alone after it."""
    if len(text) == 0:
        return (), prompt.alone()
    before, after = prompt.around_text()
    return tuple(before), after
