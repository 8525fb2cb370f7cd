"""`shared`: this project's method; the past compressed by the lower model and injected.

Source: arXiv 2603.04759.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sharedllm.answering import written
from sharedllm.branch import Memory
from sharedllm.context import Context
from sharedllm.methods.base import Method, new_tokens, opened, opening_of, target_nll
from sharedllm.methods.estimate import Passes, attended_bytes, in_chunks, slot_bytes
from sharedllm.prompts import Prompt
from sharedllm.quote import asked
from sharedllm.relevance import ASKING_TOKENS, CONTINUED_TOKENS, going_on
from sharedllm.tree import candidate_tokens


class Shared(Method):
    """Scoring searches by the last `CONTINUED_TOKENS` before the targets; with fewer than `ASKING_TOKENS` it takes the
    newest chunks and the later halves. Generating searches by the window.

    A question stands in the window, with what is nearest to it (`config.quoted_tokens`), and is searched by; all of the
    text is compressed.
    """

    name = "shared"
    reads_once = True
    compact = False
    """Whether little is kept of the text and a chunk read again for each question; see `SharedLLM.read`."""

    def prepare(self, past: Tensor) -> Context | None:
        if len(past) == 0:
            return None
        context = self.llm.read(past, compact=self.compact)
        if not context.blocks:  # short enough for the window, but here it is to be compressed
            self.llm.reader.encode(context)
        return context

    def prepare_tails(self, ids: Tensor, tails: Sequence[tuple[int, int]]) -> Iterator[Context | None]:
        """Reads once where the stretches end together and start at the same borders of chunks."""
        (longest, before), C = tails[0], self.llm.config.chunk_length
        end = len(ids) - before
        whole = self.prepare(ids[end - longest : end])
        for tokens, other in tails:
            skipped = longest - tokens
            if whole is not None and tokens and other == before and skipped % C == 0:
                yield whole.without_first(skipped // C)
            else:
                stop = len(ids) - other
                yield self.prepare(ids[stop - tokens : stop])

    @torch.no_grad()
    def score(self, past: Context | None, window: Tensor, targets: int) -> Tensor:
        ids = opened(self.llm, window)[None].to(self.llm.device)
        asking = going_on(ids.shape[1], ids.shape[1] - targets)[None]
        asking[:, : len(opening_of(self.llm))] = False
        search = "continue" if len(window) - targets >= ASKING_TOKENS else "later"
        memory = self.llm.recall(past, ids, search=search, question_mask=asking)
        self.taken_in = _slots(memory)
        with self.llm.injection.reading(memory):
            logits = self.llm.model(input_ids=ids, use_cache=False, logits_to_keep=targets + 1).logits
        return target_nll(logits, ids, targets)[0]

    def generate(self, past: Context | None, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        out = self.llm.generate(window[None], context=past, max_new_tokens=max_new_tokens, do_sample=False, **kwargs)
        return new_tokens(out, len(window))

    def shown(self, past: Context | None, prompt: Prompt, max_new_tokens: int) -> list[int]:
        return self._asked(past, prompt, max_new_tokens)[1]

    def ask(self, past: Context | None, prompt: Prompt, max_new_tokens: int) -> Tensor:
        memory, shown = self._asked(past, prompt, max_new_tokens)
        ids = torch.tensor([shown], device=self.llm.device)
        return written(self.llm, ids, memory, max_new_tokens, {"pad_token_id": prompt.pad_id})

    @torch.no_grad()
    def _asked(self, past: Context | None, prompt: Prompt, max_new_tokens: int) -> tuple[Memory | None, list[int]]:
        return (None, prompt.alone()) if past is None else asked(self.llm, past, prompt, max_new_tokens)

    def peak_bytes(self, tokens: int, scored: int = 0) -> int:
        """The stored tokens of all chunks, one chunk being read, and the slots taken in."""
        config, C = self.llm.config, self.llm.config.chunk_length
        chunks = self._chunks(tokens, scored)
        read = min(chunks, config.read_chunks or chunks)
        slots = read * config.slots_per_chunk + min(read, config.fine_chunks) * C
        return super().peak_bytes(tokens, scored) + self._stored_bytes(chunks) + slot_bytes(self.llm, slots + C)

    def _chunks(self, tokens: int, scored: int) -> int:
        """How many chunks `prepare` reads."""
        return -(-max(0, tokens - (self.window if scored else 0)) // self.llm.config.chunk_length)

    def _stored_bytes(self, chunks: int) -> int:
        """What is kept of so many chunks."""
        config, size = self.llm.config, self.llm.dtype.itemsize
        every = config.fine_chunks and not self.compact
        stored = len(candidate_tokens(config.chunk_length, config.tree_depth, config.slots_per_leaf))
        bits = 8 * size if config.stored_bits == 16 else config.stored_bits + 1  # and the steps they are packed in
        tokens = chunks * (config.chunk_length if every else stored)
        return slot_bytes(self.llm, tokens) * bits // (8 * size)

    def reading(self, tokens: int) -> Passes:
        lowest = self.llm.config.injected_layers / len(self.llm.parts.layers)
        return in_chunks(tokens, self.llm.config.chunk_length).times(lowest)

    def added(self) -> list[nn.Module]:
        return [self.llm.injection]

    def kept_bytes(self, past: Context | None) -> int:
        return 0 if past is None else past.nbytes

    def attended_bytes(self, past: Context | None, prompt: Prompt, max_new_tokens: int) -> int:
        """Of the slots in the lowest M layers, with what a branch adds to them, and of what is quoted in all."""
        memory, shown = self._asked(past, prompt, max_new_tokens)
        quoted = len(shown) - len(prompt.alone())
        return attended_bytes(self.llm, _slots(memory), quoted)

    def settings(self) -> dict[str, Any]:
        settings = {**super().settings(), **self.llm.config.to_dict()}
        if not settings["skipped_layers"]:
            del settings["skipped_layers"]  # rows from before there was such a setting stay known
        return settings

    def rules(self, scored: bool, before: int = 0) -> dict[str, Any]:
        return {"searched_by": CONTINUED_TOKENS} if scored and before >= ASKING_TOKENS else {}


def _slots(memory: Memory | None) -> int:
    """Slots a layer that a window takes in; the null slot is no text."""
    return 0 if memory is None else int(memory.mask[:, 1:].sum())


class SharedCompact(Shared):
    """`shared` on compact contexts: a quarter of the bytes kept, and one chunk more to read for each question."""

    name = "shared-compact"
    compact = True
