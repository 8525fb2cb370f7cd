"""Questions about a context: whether the model reads the text itself, the answer, and what was read for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sharedllm.branch import Memory
from sharedllm.context import Context
from sharedllm.errors import UsageError
from sharedllm.explain import Passage, chunks_read, finest
from sharedllm.prompts import Answer, Prompt
from sharedllm.quote import asked
from sharedllm.recall import asks, settings_of
from sharedllm.resolution import Resolution

if TYPE_CHECKING:
    from sharedllm.model import SharedLLM

NEW_TOKENS = 128
"""Of an answer at most, where nothing says how many."""
RESERVED = ("attention_mask", "input_ids", "inputs", "inputs_embeds", "past_key_values")
"""Of the arguments of `generate`, what is made of the question."""
BY_LENGTH = "max_length counts text and question as well as the answer; say max_new_tokens instead."


def answer(
    llm: SharedLLM,
    context: Context,
    question: str,
    most: int | None,
    resolution: Resolution,
    kwargs: dict[str, Any],
) -> Answer:
    """See `SharedLLM.answer`."""
    refuse_reserved(kwargs)
    prompt = Prompt(llm.tokenizer, question)
    max_new_tokens = asked_for(most, kwargs)
    check(llm, prompt, max_new_tokens, resolution)
    context = llm.reader.bind(context)
    ids, compressed = window(llm, context, prompt, max_new_tokens)
    if compressed:
        llm.reader.encode(context)  # what of it was only tokenised so far: reading is no search
    memory, started = None, time.perf_counter()
    if compressed:
        memory, shown = asked(llm, context, prompt, max_new_tokens, resolution)
        ids = torch.tensor([shown], device=llm.device)
    searched = time.perf_counter()
    new = written(llm, ids, memory, max_new_tokens, {"pad_token_id": prompt.pad_id, **kwargs})
    return Answer(
        text=llm.tokenizer.decode(new, skip_special_tokens=True).strip(),
        compressed=memory is not None,
        slots=0 if memory is None else memory.mask.shape[1] - 1,
        search_seconds=searched - started,
        generate_seconds=time.perf_counter() - searched,
        generated_tokens=len(new),
    )


def asked_for(most: int | None, kwargs: dict[str, Any], default: int = NEW_TOKENS) -> int:
    """How many tokens an answer may have: `most`, or what the configuration among `kwargs` says, or else the default.

    Raises:
        UsageError: it says `max_length` alone, which counts the question as well.
    """
    config = kwargs.get("generation_config")
    said = (most, getattr(config, "max_new_tokens", None))
    if said == (None, None) and getattr(config, "max_length", None) is not None:
        raise UsageError(BY_LENGTH)
    return next((int(number) for number in said if number is not None), default)


def refuse_reserved(kwargs: dict[str, Any]) -> None:
    """Raise `UsageError` for arguments of `generate` that a question has no use for."""
    for name in RESERVED:
        if kwargs.get(name) is not None:
            raise UsageError(f"{name} is made of the question; leave it out, or call generate with token ids.")
    if kwargs.get("max_length") is not None:
        raise UsageError(BY_LENGTH)
    rows = kwargs.get("num_return_sequences") or getattr(kwargs.get("generation_config"), "num_return_sequences", None)
    if (rows or 1) > 1:
        raise UsageError(
            f"num_return_sequences is {rows}, and a question has one answer; ask several times with do_sample=True, "
            "or call generate."
        )


def check(llm: SharedLLM, prompt: Prompt, max_new_tokens: int, resolution: Resolution) -> None:
    """Raise `UsageError` for what no text can be asked: before one is read, which may take long.

    The question and its answer must fit the window, the settings must be in their ranges.
    """
    resolution.settings(llm.config)
    size = question_tokens(llm, prompt, max_new_tokens)
    if size + max_new_tokens > llm.window:
        raise UsageError(
            f"the question has {size} tokens and the answer may take {max_new_tokens:,}, the model's window is "
            f"{llm.window:,}; ask for at most {llm.window - size:,}, or chat, where answers may be of any length."
        )


def question_tokens(llm: SharedLLM, prompt: Prompt, max_new_tokens: int) -> int:
    """Tokens of a question alone; `UsageError` where they fill the window, or nothing is to be written."""
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
    if (size := len(prompt.alone())) >= llm.window:
        raise UsageError(f"the question has {size} tokens and the model's window {llm.window}; ask a shorter one.")
    return size


@torch.no_grad()
def written(llm: SharedLLM, ids: Tensor, memory: Memory | None, max_new_tokens: int, kwargs: dict[str, Any]) -> Tensor:
    """Token ids written behind `ids` [1, T], greedily unless `kwargs` (of Hugging Face's `generate`) say otherwise, [new]."""
    said = getattr(kwargs.get("generation_config"), "do_sample", None)
    greedy = {"do_sample": False} if said is None else {}  # else the model's own settings would say
    with llm.injection.reading(memory):
        out = llm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            **{**greedy, **kwargs},
        )
    new: Tensor = getattr(out, "sequences", out)[0, ids.shape[1] :]  # a dictionary under return_dict_in_generate
    return new


def explain(
    llm: SharedLLM,
    context: Context,
    question: str,
    passages: int,
    max_new_tokens: int,
    resolution: Resolution,
) -> list[Passage]:
    """See `SharedLLM.explain`."""
    prompt = Prompt(llm.tokenizer, question)
    question_tokens(llm, prompt, max_new_tokens)
    context = llm.reader.bind(context)
    ids, compressed = window(llm, context, prompt, max_new_tokens)
    if not compressed:
        return [Passage(1, 0, context.tokens, context.tokens, None, llm.tokenizer.decode(context.ids))]
    with llm.lower.apart():  # another thread may read on
        config = settings_of(llm, context, resolution)
        query, words = asks(llm, context, ids, prompt.question_mask())
        return finest(llm, context, chunks_read(context, config, query, words), passages)


def fits(llm: SharedLLM, context: Context, prompt: Prompt, max_new_tokens: int) -> bool:
    """Whether the model reads the text itself: text, question and answer fit its window."""
    return prompt.tokens_with(context.tokens) + max_new_tokens <= llm.window


def window(llm: SharedLLM, context: Context, prompt: Prompt, max_new_tokens: int) -> tuple[Tensor, bool]:
    """What the model itself reads, [1, T]: text and question where the answer fits behind them, else the question alone.

    Also whether the latter, so that the text is compressed.
    """
    with llm.lower.apart():  # another thread may read on
        if fits(llm, context, prompt, max_new_tokens):
            return torch.tensor([prompt.with_text(context.ids)], device=llm.device), False
    return torch.tensor([prompt.alone()], device=llm.device), True
