"""The passages nearest to a question, as text for its window: the finest grain of all.

What is injected reaches the lowest M layers. A few hundred tokens, those that the search finds nearest, can be read by all
layers for little, as in retrieval-augmented generation (arXiv 2005.11401); the rest stays compressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sharedllm.branch import Memory
from sharedllm.context import Context
from sharedllm.keep import Span
from sharedllm.prompts import Prompt
from sharedllm.recall import settings_of
from sharedllm.resolution import AS_TRAINED, Resolution

if TYPE_CHECKING:
    from sharedllm.model import SharedLLM

GAP = " ...\n"
"""What stands for the text between two passages."""
END = "\n\n"
"""What stands between the last one and the question."""


def asked(
    llm: SharedLLM, context: Context, prompt: Prompt, max_new_tokens: int, resolution: Resolution = AS_TRAINED
) -> tuple[Memory | None, list[int]]:
    """What a question attends to in a context, None where that is empty, and its token ids `with_quotes` of what is nearest."""
    ids = torch.tensor([prompt.alone()], device=llm.device)
    memory = llm.recall(context, ids, question_mask=prompt.question_mask().to(llm.device), resolution=resolution)
    spans = () if memory is None else memory.nearest[0]
    return memory, with_quotes(llm, context, prompt, max_new_tokens, spans, resolution)


def with_quotes(
    llm: SharedLLM,
    context: Context,
    prompt: Prompt,
    max_new_tokens: int,
    spans: Sequence[Span],
    resolution: Resolution = AS_TRAINED,
) -> list[int]:
    """Token ids of a question with what is nearest to it quoted before it, no more than the window has room for; the
    question alone under `config.quoted_tokens` 0.

    Args:
        spans: of the context, the nearest to the question first; see `Memory.nearest`.
    """
    around = sum(map(len, prompt.around_text()))
    most = settings_of(llm, context, resolution).quoted_tokens
    passages = quotes(context, spans, most, llm.tokenizer, llm.window - max_new_tokens - around)
    return prompt.with_text(passages)


def inserted(
    llm: SharedLLM,
    context: Context,
    ids: list[int],
    asking: Tensor | None,
    max_new_tokens: int,
    spans: Sequence[Span],
    window: int | None = None,
) -> list[int]:
    """The same of a conversation: `ids` with the quotes before the first token of `asking` [1, T], those that ask; None, or
    none that do: as they are. `window`: the most tokens that it has with the answer; None: the model's."""
    if asking is None or not asking.any():
        return ids
    end = _end(llm.tokenizer)
    room = (window or llm.window) - max_new_tokens - len(ids) - len(end)
    passages = quotes(context, spans, settings_of(llm, context).quoted_tokens, llm.tokenizer, room).tolist()
    at = int(asking[0].nonzero()[0])
    return [*ids[:at], *passages, *end, *ids[at:]] if passages else ids


def most_tokens(llm: SharedLLM) -> int:
    """Tokens that quotes in a conversation take at most, with what stands between and behind them; 0 where none are made."""
    config, count = llm.config, llm.config.quoted_tokens
    if not count:
        return 0
    passages = -(-count // max(1, config.chunk_length >> config.tree_depth))  # of a complete chunk, none beside another
    gap = len(llm.tokenizer(GAP, add_special_tokens=False)["input_ids"])
    return count + (passages - 1) * gap + len(_end(llm.tokenizer))


def _end(tokenizer: Any) -> list[int]:
    """Token ids of `END` as they are before a word, which may differ from those of `END` by itself."""
    whole, word, alone = (list(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (f"{END}a", "a", END))
    return whole[: -len(word)] if whole[-len(word) :] == word else alone


def quotes(context: Context, spans: Sequence[Span], most: int, tokenizer: Any, room: int | None = None) -> Tensor:
    """The first passages of a context in `spans`, in text order, [n] token ids: at most `most` of the text's own, and `GAP`
    between those that do not follow each other. Where all of it must fit `room`, the last in `spans` give way."""
    gap = torch.tensor(tokenizer(GAP, add_special_tokens=False)["input_ids"], dtype=context.ids.dtype)
    if room is not None:
        most = min(most, room)
    passages = joined(within(spans, most))
    while room is not None and passages and _length(passages, len(gap)) > room:
        most = min(most, sum(end - start for start, end in passages)) - 1
        passages = joined(within(spans, most))
    pieces: list[Tensor] = []
    for start, end in passages:
        pieces += [gap, context.ids[start:end]]
    return torch.cat(pieces[1:]) if pieces else context.ids[:0]


def _length(passages: Sequence[Span], gap: int) -> int:
    """Tokens of some passages with `gap` between each two."""
    return sum(end - start for start, end in passages) + gap * max(0, len(passages) - 1)


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
