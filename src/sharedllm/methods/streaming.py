"""`streaming`: attention sinks and a rolling window, StreamingLLM (arXiv 2309.17453).

A token attends to the first `sinks` tokens of the text and to the newest `window`, itself among them.
Every other key and value is dropped, so memory stays constant and time grows linearly. Positions are those
inside the cache: sink k sits at k, the newest token never further than at sinks + window - 1. A key and a
value are computed once, when their token is read, by what that token could see. Layers that have a window of their own
take this one.

The paper reads token by token. Here a block of tokens is read at a time (`rolling.py`), and that is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm.errors import UsageError
from sharedllm.methods.base import Method, opening_of
from sharedllm.methods.estimate import Passes, cache_bytes, forward_bytes, one_pass
from sharedllm.methods.rolling import RollingCache, sinks_apart
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt, end_tokens

BLOCK = 256  # tokens read at a time once there are sinks; of 64 to 512 the fastest on two cores (docs/LOG.md)


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
        return self._taken_in(past, tuple(opening_of(self.llm)))

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
            with cache.reading(stop - start, self.llm.dtype, self.llm.device) as (positions, mask):
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
        """Both what was read and what goes on from it are kept; with how much all heads attend to what, or copies of the sinks."""
        kept = self.positions(tokens)
        keys, size = kept + BLOCK * (1 + self._copies), self.llm.dtype.itemsize
        mask = BLOCK * keys
        made = mask * (2 * size + 3)  # from marks of a byte, by way of a copy
        weights = 0 if self._copies else 3 * self.llm.parts.heads * mask * size
        passed, logits = (forward_bytes(self.llm, BLOCK, n, keys) for n in (0, min(scored, BLOCK)))
        return 2 * cache_bytes(self.llm, kept) + max(made, mask * size + weights + passed, logits)

    def reading(self, tokens: int) -> Passes:
        whole, rest = divmod(tokens, BLOCK)
        kept = min(tokens, self.window)
        return self._block(BLOCK, kept).times(whole) + self._block(rest, kept)

    def _block(self, tokens: int, kept: int) -> Passes:
        """A block, whose tokens are all held against what is kept, the block itself and the copies of the sinks."""
        keys = kept + tokens * (1 + self._copies)
        return one_pass(tokens, keys - tokens // 2)

    @property
    def _copies(self) -> int:
        """Copies of sinks that each token of a block brings."""
        return 0 if sinks_apart(self.llm.parts) else self.sinks

    def kept_bytes(self, past: Read) -> int:
        return int(past.ids.nbytes) + sum(x.nbytes for pair in past.cache.kept.values() for x in pair)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "sinks": self.sinks}

    def rules(self, scored: bool, before: int = 0) -> dict[str, Any]:
        return {} if scored else {"read_in_prompt": True, "block": BLOCK, "sinks_apart": sinks_apart(self.llm.parts)}


def _around(text: Tensor, prompt: Prompt) -> tuple[tuple[int, ...], list[int]]:
    """Token ids that stand before a text and after it; of a text without any, those of the question alone after it."""
    if len(text) == 0:
        return (), prompt.alone()
    before, after = prompt.around_text()
    return tuple(before), after
