"""A text as a map: the tree of each chunk, which halves a question chose, how finely each is read, what of it stands word for
word in the window, and how much an answer attended to each part.

The answer is run through the model once more, behind its question: that gives the attention it was written with, and
leaves the answering itself as fast as it is.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sharedllm.branch import Memory
from sharedllm.context import Context
from sharedllm.explain import chunks_read
from sharedllm.keep import Span
from sharedllm.model import SharedLLM
from sharedllm.quote import END, GAP, inserted, joined, within
from sharedllm.recall import asks
from sharedllm.serve.batch import take_in
from sharedllm.serve.split import Split

ANSWER_TOKENS = 64  # of an answer between two yields: attention to all slots is held for so many


def mapped(
    llm: SharedLLM, context: Context, split: Split, answer: list[int], room: int, most: int
) -> Generator[None, None, dict[str, Any]]:
    """What a question's `Memory` is made of, as plain numbers; in slices.

    Chunks and leaves have the fields of `explain.ChunkRead` and `explain.Leaf`; a leaf's `attention` is its share of what the
    answer attended to in the context; None without an answer. `quoted` are the spans, in tokens of the context, that stand in
    the window word for word; attention to those is none to the context.

    Args:
        split: the question's window.
        answer: token ids of the answer, [] for none; what does not fit the window is passed over.
        room: tokens that the answer could take when it was written, which decides how much could be quoted.
        most: tokens of the window taken in between two yields.
    """
    ids = torch.tensor([split.ids], device=llm.device)
    memory = llm.recall(context, ids, question_mask=split.asking)
    assert memory is not None, "a context that is attended to has chunks"
    yield
    question, words = asks(llm, context, ids, split.asking)
    chunks = [asdict(chunk) for chunk in chunks_read(context, llm.config, question, words)]
    leaves = [leaf for chunk in chunks for leaf in chunk["leaves"]]
    for leaf in leaves:
        leaf["attention"] = None
    yield
    shown = inserted(llm, context, split.ids, split.asking, room, memory.nearest[0])
    answer = answer[: llm.window - len(shown)]  # what was generated fits
    spans = quoted(llm, memory.nearest[0], len(shown) - len(split.ids))
    about: dict[str, Any] = {
        "slots": sum(chunk["slots"] for chunk in chunks),
        "attention": None,
        "quoted": [{"start": start, "end": end} for start, end in spans],
        "chunks": chunks,
    }
    if answer:
        weights = yield from attended(llm, shown, answer, memory, most)
        about["attention"] = float(weights[1:].sum() / weights.sum().clamp(min=1e-30))
        shares = weights[1:] / weights[1:].sum().clamp(min=1e-30)
        for leaf, share in zip(leaves, shares.split([leaf["slots"] for leaf in leaves]), strict=True):
            leaf["attention"] = float(share.sum())
    return about


def quoted(llm: SharedLLM, nearest: Sequence[Span], added: int) -> list[Span]:
    """The spans of a context that a window quotes, in text order: the most that make it `added` tokens longer.

    Args:
        nearest: see `Memory.nearest`, from which `quote.inserted` took them.
    """
    gap, end = (len(llm.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (GAP, END))
    for most in range(llm.config.quoted_tokens if added else 0, 0, -1):
        spans = joined(within(nearest, most))
        if sum(b - a for a, b in spans) + gap * (len(spans) - 1) + end == added:
            return spans
    return []


def attended(
    llm: SharedLLM, ids: list[int], answer: list[int], memory: Memory, most: int
) -> Generator[None, None, Tensor]:
    """How much was attended to each slot of a memory while an answer was written, [1 + S], the null slot first.

    Summed over layers, heads (each counts by the size of its gate) and the answer's tokens.
    """
    total = torch.zeros(memory.mask.shape[1])

    def heard(weights_BHTS: Tensor) -> None:
        total.add_(weights_BHTS[0].float().sum((0, 1)).cpu())

    question = yield from take_in(llm, ids[:-1], memory, most)
    yield
    yield from take_in(llm, [ids[-1], *answer[:-1]], memory, ANSWER_TOKENS, question, heard)
    return total
