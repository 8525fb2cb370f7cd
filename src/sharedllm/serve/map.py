"""A document as a map: the tree of each chunk, which halves a question chose, and how finely each is read."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from sharedllm.context import Context
from sharedllm.memory import find
from sharedllm.model import SharedLLM
from sharedllm.serve.chat import Said, window_ids


def mapped(llm: SharedLLM, context: Context, question: str) -> Generator[None, None, dict[str, Any]]:
    """What `Memory` of this question is made of, as plain numbers; in slices. Without a question: the newest chunks.

    A chunk is {start, tokens, slots, leaves}; a leaf {start, end, slots, level, chosen}, in tokens of the context. Leaves
    go from level 1, the coarsest, to L, whose two are `chosen`: where the search ended. `slots` 0: left out.
    """
    yield
    if not context.blocks:  # it fits the window, and is read there
        whole = {"start": 0, "tokens": context.tokens, "slots": context.tokens, "leaves": []}
        return {"tokens": context.tokens, "compressed": False, "slots": context.tokens, "chunks": [whole]}
    asks = None
    if question.strip():
        ids, asking = window_ids(llm.tokenizer, [Said("user", question.strip())])
        asks = llm.query(torch.tensor([ids], device=llm.device), question_mask=asking)[0]
    chunks: list[dict[str, Any]] = []
    at, depth = 0, llm.config.tree_depth
    for block, found in zip(context.blocks, find(context.blocks, llm.config, asks), strict=True):
        for tokens, most, leaves in zip(
            block.lengths.tolist(), found.slots.tolist(), found.leaves.tolist(), strict=True
        ):
            drawn = [_leaf(at, start, end, most) for start, end in leaves]
            for leaf, level in zip(drawn, _levels(leaves, depth), strict=True):
                leaf.update(level=level, chosen=level == depth)
            chunks.append({"start": at, "tokens": tokens, "slots": sum(d["slots"] for d in drawn), "leaves": drawn})
            at += tokens
    slots = sum(chunk["slots"] for chunk in chunks)
    return {"tokens": context.tokens, "compressed": True, "slots": slots, "chunks": chunks}


def _leaf(at: int, start: int, end: int, most: int) -> dict[str, Any]:
    return {"start": at + start, "end": at + end, "slots": min(end - start, most)}


def _levels(leaves: list[list[int]], depth: int) -> list[int]:
    """Level of each of L + 1 leaves in text order, by their lengths: the longest is level 1; the last two share L."""
    order = sorted(range(len(leaves)), key=lambda i: leaves[i][0] - leaves[i][1])
    levels = [0] * len(leaves)
    for rank, i in enumerate(order):
        levels[i] = min(rank + 1, depth)
    return levels
