"""What ends an answer, and how its tokens are chosen, where a benchmark has it otherwise than the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from sharedllm.model import SharedLLM
from sharedllm.prompts import end_tokens

PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Settings of `generate` under which what was read already is written less, by the values that do nothing."""


@contextmanager
def ending(model: Any, **settings: Any) -> Iterator[None]:
    """Within this block the model's `generation_config` has these settings."""
    config = model.generation_config
    before = {name: getattr(config, name) for name in settings}
    try:
        vars(config).update(settings)
        yield
    finally:
        vars(config).update(before)


def endless(model: Any) -> AbstractContextManager[None]:
    """Within this block no token ends an answer, so that all answers have one length."""
    return ending(model, eos_token_id=None)


def stopping(llm: SharedLLM, at: str) -> AbstractContextManager[None]:
    """Within this block the last token of `at` ends an answer too, which has one token at least; where it is empty, nothing does.

    As LongBench has it for samsum, whose summaries a model goes on from with another dialogue.
    """
    if not at:
        return nullcontext()
    ends = [*end_tokens(llm.model), llm.tokenizer.encode(at, add_special_tokens=False)[-1]]
    return ending(llm.model, eos_token_id=ends, min_new_tokens=1)


def without_penalties(model: Any) -> dict[str, Any]:
    """Of `PENALTIES` those that the model's own `generation_config` has otherwise.

    Answers are compared without: a penalty falls on all that a method shows the model, so that one that shows a whole text
    would write another language than one that shows a question.
    """
    own = {name: getattr(model.generation_config, name, None) for name in PENALTIES}
    return {name: off for name, off in PENALTIES.items() if own[name] not in (None, off)}
