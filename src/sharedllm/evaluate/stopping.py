"""What ends an answer besides the model's own end, where a benchmark says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sharedllm.model import SharedLLM
from sharedllm.prompts import end_tokens


@contextmanager
def stopping(llm: SharedLLM, at: str) -> Iterator[None]:
    """Within this block the last token of `at` ends an answer too, which has one token at least; where it is empty, nothing does.

    As LongBench has it for samsum, whose summaries a model goes on from with another dialogue.
    """
    if not at:
        yield
        return
    config = llm.model.generation_config
    before = config.eos_token_id, config.min_new_tokens
    config.eos_token_id = [*end_tokens(llm.model), llm.tokenizer.encode(at, add_special_tokens=False)[-1]]
    config.min_new_tokens = 1
    try:
        yield
    finally:
        config.eos_token_id, config.min_new_tokens = before
