"""Rows that decode together: one forward pass gives each of them its next token.

A row joins with the cache of its own prompt and leaves when its answer ends. Caches are padded at the left, so that all
rows end at the same place; each row keeps its own positions, counted from the start of its window, and its own memory.

Shapes: B rows, T cached tokens of the longest row, V vocabulary, S slots.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from sharedllm.branch import Memory
from sharedllm.memory import build_memory
from sharedllm.model import SharedLLM


@dataclass
class TakenIn:
    """A prompt that the model has taken in."""

    cache: DynamicCache
    tokens: int
    memory: Memory
    """Of one row."""
    logits: Tensor
    """[V], of the first token to come."""


@torch.no_grad()
def take_in(
    llm: SharedLLM,
    ids: Sequence[int],
    memory: Memory | None,
    most: int,
    before: TakenIn | None = None,
    heard: Callable[[Tensor], None] | None = None,
) -> Generator[None, None, TakenIn]:
    """Run a prompt through the model, at most `most` tokens between two yields.

    Args:
        before: what the prompt goes on from; its cache grows.
        heard: hears what the branches attend to, as `Injection.reading` says.
    """
    cache, known = (DynamicCache(), 0) if before is None else (before.cache, before.tokens)
    logits = torch.empty(0)
    for at in range(0, len(ids), most):
        if at:
            yield
        part = torch.tensor([ids[at : at + most]], device=llm.device)
        start, end = known + at, known + at + part.shape[1]
        with torch.no_grad(), llm.injection.reading(memory, heard):
            out = llm.model(
                input_ids=part,
                attention_mask=torch.ones(1, end, dtype=torch.long, device=llm.device),
                position_ids=torch.arange(start, end, device=llm.device)[None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits = out.logits[0, -1].float()
    return TakenIn(cache, known + len(ids), no_memory(llm) if memory is None else memory, logits)


def no_memory(llm: SharedLLM) -> Memory:
    """The memory of one row that has no context: a null slot, which adds nothing."""
    return build_memory([None], llm.parts, llm.config, llm.model.get_input_embeddings().weight)


class Batch:
    """The rows that decode now; all rows are numbered in the order they joined."""

    def __init__(self, llm: SharedLLM) -> None:
        self.llm, self.rows = llm, 0
        self.clear()

    def clear(self) -> None:
        """Drop all rows."""
        self.rows = 0
        self._cache = DynamicCache()  # of all rows; built anew when some join, else each step adds a token to it
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self.llm.device)  # [B, T]
        self._next = torch.zeros(0, dtype=torch.long, device=self.llm.device)  # [B], position of the next token
        self._memory: Memory | None = None
        self._reads: Memory | None = None  # the same, where any row has slots

    def join(self, prompt: TakenIn, rows: int = 1) -> None:
        """Add `rows` rows that go on from one prompt."""
        layers: Iterable[tuple[Tensor, Tensor]] = (
            (k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in cached(prompt.cache)
        )
        mask = self._mask.new_ones(rows, prompt.tokens)
        place = self._next.new_full((rows,), prompt.tokens)
        memory = prompt.memory.expand(rows)
        if self.rows:
            width = max(self._mask.shape[1], prompt.tokens)
            layers = (
                (_stack(k, new_k, width), _stack(v, new_v, width))
                for (k, v), (new_k, new_v) in zip(cached(self._cache), layers, strict=True)
            )
            mask = torch.cat([F.pad(m, (width - m.shape[1], 0)) for m in (self._mask, mask)])
            place = torch.cat([self._next, place])
            assert self._memory is not None
            memory = join_memories(self._memory, memory)
        self._cache = DynamicCache(layers)  # which copies each layer as it comes
        self._mask, self._next, self.rows = mask, place, self.rows + rows
        self._remember(memory)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        if not rows:
            self.clear()
            return
        at = torch.tensor(rows, device=self.llm.device)
        mask = self._mask[at]
        first = int(mask.any(0).long().argmax())  # padding that only rows that left needed
        layers: Any = self._cache.layers
        for layer in layers:
            layer.keys, layer.values = layer.keys[at, :, first:], layer.values[at, :, first:]
        self._mask, self._next, self.rows = mask[:, first:], self._next[at], len(rows)
        assert self._memory is not None
        self._remember(select_memory(self._memory, at))

    def _remember(self, memory: Memory) -> None:
        """Read this memory from now on; whether it has slots is asked here, once, since a GPU is waited for to tell."""
        self._memory = memory
        self._reads = memory if bool(memory.mask[:, 1:].any()) else None

    @torch.no_grad()
    def step(self, ids: Sequence[int]) -> Tensor:
        """Take in one token a row; returns the logits of the next ones, [B, V] in fp32."""
        assert 0 < len(ids) == self.rows
        self._mask = F.pad(self._mask, (0, 1), value=1)
        with self.llm.injection.reading(self._reads):
            out = self.llm.model(
                input_ids=torch.tensor(ids, device=self.llm.device)[:, None],
                attention_mask=self._mask,
                position_ids=self._next[:, None],
                past_key_values=self._cache,
                use_cache=True,
            )
        self._next = self._next + 1
        return out.logits[:, -1].float()


def cached(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [B, K, T, D] of each layer of a cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def _stack(old: Tensor, new: Tensor, width: int) -> Tensor:
    """Rows under rows, [B, K, T, D] each, padded at the left to `width` tokens."""
    return torch.cat([F.pad(x, (0, 0, width - x.shape[2], 0)) for x in (old, new)])


def join_memories(a: Memory, b: Memory) -> Memory:
    """The rows of `a`, then those of `b`."""
    width = max(a.mask.shape[1], b.mask.shape[1])

    def stack(old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([F.pad(x, (0, 0, 0, width - x.shape[2])) for x in (old, new)])

    return Memory(
        [stack(x, y) for x, y in zip(a.keys, b.keys, strict=True)],
        [stack(x, y) for x, y in zip(a.values, b.values, strict=True)],
        torch.cat([F.pad(m, (0, width - m.shape[1])) for m in (a.mask, b.mask)]),
        None if a.query_at is None or b.query_at is None else torch.cat([a.query_at, b.query_at]),
    )


def select_memory(memory: Memory, rows: Tensor) -> Memory:
    """Some rows of a memory, without the slots that none of them has."""
    mask = memory.mask[rows]
    width = max(1, int(mask.any(0).nonzero().max()) + 1)
    keys, values = ([x[rows, :, :width] for x in layers] for layers in (memory.keys, memory.values))
    return Memory(keys, values, mask[:, :width], None if memory.query_at is None else memory.query_at[rows])
