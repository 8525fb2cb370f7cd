"""Recalling: contexts searched once for the rows of a window, as the memory that the rows attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sharedllm.branch import Memory
from sharedllm.config import SharedConfig
from sharedllm.context import Context
from sharedllm.errors import UsageError
from sharedllm.keep import Span
from sharedllm.memory import Slots, build_memory, find, nearest_of, select_slots
from sharedllm.relevance import ASKING_TOKENS, CONTINUED_TOKENS, asking_tokens
from sharedllm.resolution import AS_TRAINED, Resolution
from sharedllm.words import Words

if TYPE_CHECKING:
    from sharedllm.model import SharedLLM

Contexts = Context | Sequence[Context | None] | None


def recalled(
    llm: SharedLLM,
    contexts: Contexts,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    *,
    search: str,
    noise: float,
    generator: torch.Generator | None,
    question_mask: Tensor | None,
    resolution: Resolution,
) -> Memory | None:
    """See `SharedLLM.recall`."""
    if input_ids.shape[1] == 0:
        raise UsageError("the window is empty; give at least one token to read the context with.")
    rows = list(contexts) if isinstance(contexts, Sequence) else [contexts] * input_ids.shape[0]
    if len(rows) != input_ids.shape[0]:
        raise UsageError(
            f"there are {len(rows)} contexts for {input_ids.shape[0]} rows; give one a row, or a single one for all."
        )
    rows = [None if context is None else llm.reader.bind(context) for context in rows]
    settings = [llm.config if context is None else settings_of(llm, context, resolution) for context in rows]
    if all(c is None or not c.blocks for c in rows):
        return None
    last = ASKING_TOKENS
    if search == "continue":
        last, settings = CONTINUED_TOKENS, [replace(config, search_prior=0.0) for config in settings]
    queries: Sequence[Tensor | None] = [None] * len(rows)
    asking: Tensor | Sequence[None] = [None] * len(rows)
    if search != "later":
        asking = asking_tokens(input_ids, attention_mask, question_mask, last)
        queries = llm.query(input_ids, attention_mask, asking)
    slots: list[Slots | None] = []
    for c, config, query, ids, mask in zip(rows, settings, queries, input_ids, asking, strict=True):
        if c is None:
            slots.append(None)
            continue
        words = None if mask is None else Words(c.ids, ids[mask])
        again = partial(llm.reader.again, c)
        slots.append(select_slots(c.blocks, config, query, noise, generator, c.keep, again, words))
    like = torch.empty(0, dtype=llm.dtype, device=llm.device)
    return build_memory(slots, llm.parts, llm.config, like)


def asks(llm: SharedLLM, context: Context, ids: Tensor, question_mask: Tensor | None) -> tuple[Tensor, Words]:
    """What a window `ids` [1, T] asks of a context: by representations [Q, R], and by words.

    Args:
        question_mask: [1, T], which of its tokens ask; None: the last ones, see `relevance.asked`.
    """
    ids = ids.to(llm.device)
    (representations,) = llm.query(ids, question_mask=question_mask)
    return representations, Words(context.ids, ids[asking_tokens(ids, None, question_mask)])


@torch.no_grad()
def nearest(llm: SharedLLM, context: Context, ids: Tensor, asking: Tensor | None) -> list[Span]:
    """The finest spans of a context, the nearest first to what `asking` [1, T] of a window `ids` [1, T] asks (None: its last
    tokens), where no memory is needed; see `Memory.nearest`."""
    context = llm.reader.bind(context)
    config = settings_of(llm, context)
    if not context.blocks:
        return []
    question, words = asks(llm, context, ids, asking)
    return nearest_of(context.blocks, find(context.blocks, config, question, keep=context.keep, words=words))


def settings_of(llm: SharedLLM, context: Context, resolution: Resolution = AS_TRAINED) -> SharedConfig:
    """The settings that a question reads a context under; what of it is not encoded yet is encoded.

    Raises:
        UsageError: it was made with another model or other settings, or a value is out of range.
    """
    llm.reader.encode(llm.reader.bind(context))
    return resolution.settings(llm.config)
