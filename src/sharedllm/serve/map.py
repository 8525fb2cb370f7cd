"""A document as a map: the tree of each chunk, which halves a question chose, and how finely each is read."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict
from typing import Any

import torch

from sharedllm.context import Context
from sharedllm.explain import chunks_read
from sharedllm.model import SharedLLM
from sharedllm.serve.chat import Said, window_ids


def mapped(llm: SharedLLM, context: Context, question: str) -> Generator[None, None, dict[str, Any]]:
    """What `Memory` of this question is made of, as plain numbers; in slices. Without a question: the newest chunks.

    Chunks and leaves have the fields of `explain.ChunkRead` and `explain.Leaf`.
    """
    yield
    if not context.blocks:  # it fits the window, and is read there
        whole = {"start": 0, "tokens": context.tokens, "slots": context.tokens, "leaves": []}
        return {"tokens": context.tokens, "compressed": False, "slots": context.tokens, "chunks": [whole]}
    asks = None
    if question.strip():
        ids, asking = window_ids(llm.tokenizer, [Said("user", question.strip())])
        asks = llm.query(torch.tensor([ids], device=llm.device), question_mask=asking)[0]
    chunks = [asdict(chunk) for chunk in chunks_read(context, llm.config, asks)]
    slots = sum(chunk["slots"] for chunk in chunks)
    return {"tokens": context.tokens, "compressed": True, "slots": slots, "chunks": chunks}
