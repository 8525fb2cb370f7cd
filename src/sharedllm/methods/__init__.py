"""The ways of giving an LLM a long past, behind one protocol; one file a method.

A benchmark asks `create(name, llm, window)` and never which method it runs.
"""

from __future__ import annotations

from typing import Any

from sharedllm.config import check_choice
from sharedllm.methods.base import Method
from sharedllm.methods.encoder_decoder import EncoderDecoder
from sharedllm.methods.full import Full
from sharedllm.methods.retrieval import Retrieval
from sharedllm.methods.shared import Shared, SharedCompact
from sharedllm.methods.streaming import Streaming
from sharedllm.methods.truncate import Truncate
from sharedllm.methods.yarn import DynamicNTK, Yarn
from sharedllm.model import SharedLLM

METHODS: dict[str, type[Method]] = {
    m.name: m for m in (Shared, SharedCompact, Truncate, Retrieval, Full, Streaming, Yarn, DynamicNTK, EncoderDecoder)
}


def create(name: str, llm: SharedLLM, window: int, **given: Any) -> Method:
    """The method of that name; `given` are arguments of its own.

    Raises:
        UsageError: there is none; the nearest name is given.
    """
    check_choice("method", name, METHODS)
    return METHODS[name](llm, window, **given)


__all__ = ["METHODS", "Method", "create"]
