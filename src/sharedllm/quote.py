"""The passages nearest to a question, as text for its window: the finest grain of all.

What is injected reaches the lowest M layers. A few hundred tokens, those that the search finds nearest, can be read by all
layers for little, as in retrieval-augmented generation (arXiv 2005.11401); the rest stays compressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sharedllm.config import SharedConfig
from sharedllm.context import Context
from sharedllm.keep import Span
from sharedllm.prompts import Prompt
from sharedllm.recall import settings_of
from sharedllm.relevance import nearest_spans
from sharedllm.resolution import AS_TRAINED, Resolution

if TYPE_CHECKING:
    from sharedllm.model import SharedLLM

GAP = " ...\n"
"""What stands for the text between two passages."""
END = "\n\n"
"""What stands between the last one and the question."""


def with_quotes(
    llm: SharedLLM, context: Context, prompt: Prompt, max_new_tokens: int, resolution: Resolution = AS_TRAINED
) -> list[int]:
    """Token ids of a question with what is nearest to it quoted before it, no more than the window has room for; the
    question alone under `config.quoted_tokens` 0."""
    alone, around = prompt.alone(), sum(map(len, prompt.around_text()))
    room = llm.window - max_new_tokens - around
    passages = nearest(llm, context, alone, prompt.question_mask(), room, resolution)
    return prompt.with_text(passages)


def inserted(llm: SharedLLM, context: Context, ids: list[int], asking: Tensor | None, max_new_tokens: int) -> list[int]:
    """The same of a conversation: `ids` with the quotes before the first token of `asking` [1, T], those that ask; None, or
    none that do: as they are."""
    if asking is None or not asking.any():
        return ids
    end = list(llm.tokenizer(END, add_special_tokens=False)["input_ids"])
    passages = nearest(llm, context, ids, asking, llm.window - max_new_tokens - len(ids) - len(end)).tolist()
    at = int(asking[0].nonzero()[0])
    return [*ids[:at], *passages, *end, *ids[at:]] if passages else ids


def nearest(
    llm: SharedLLM,
    context: Context,
    ids: list[int],
    asking: Tensor,
    room: int,
    resolution: Resolution = AS_TRAINED,
) -> Tensor:
    """`quotes` for the tokens of a window `ids` that `asking` [1, T] says, at most `room` with the gaps, [n] token ids."""
    config = settings_of(llm, context, resolution)
    if min(config.quoted_tokens, room) < 1 or not context.blocks:
        return context.ids[:0]
    (asks,) = llm.query(torch.tensor([ids], device=llm.device), question_mask=asking.to(llm.device))
    found = quotes(context, config, asks, config.quoted_tokens, llm.tokenizer)
    return found[:room]


def quotes(context: Context, config: SharedConfig, question_QR: Tensor, most: int, tokenizer: Any) -> Tensor:
    """The passages of a context that are nearest to a question, in text order, [n] token ids: at most `most` of the text's
    own, and `GAP` between those that do not follow each other."""
    gap = torch.tensor(tokenizer(GAP, add_special_tokens=False)["input_ids"], dtype=context.ids.dtype)
    pieces: list[Tensor] = []
    for start, end in joined(within(nearest_spans(context.blocks, config, question_QR), most)):
        pieces += [gap, context.ids[start:end]]
    return torch.cat(pieces[1:]) if pieces else context.ids[:0]


def within(spans: Sequence[Span], most: int) -> list[Span]:
    """The first spans that have `most` tokens together, the last one cut to what is left."""
    chosen: list[Span] = []
    for start, end in spans:
        if most < 1:
            break
        chosen.append((start, min(end, start + most)))
        most -= end - start
    return chosen


def joined(spans: Sequence[Span]) -> list[Span]:
    """Spans in text order, those that touch as one."""
    whole: list[Span] = []
    for start, end in sorted(spans):
        if whole and whole[-1][1] == start:
            whole[-1] = (whole[-1][0], end)
        else:
            whole.append((start, end))
    return whole
