"""`yarn` and `dynamic-ntk`: all tokens under the model's own attention, with its rotary frequencies scaled.

YaRN (arXiv 2309.00071) divides low frequencies by the factor by which a text is longer than what the
model was trained for, keeps high ones, and sharpens attention a little. Dynamic NTK (section 3.3 there)
raises the rotary base with the length read. Both are computed by transformers; here only the rotary
embedding, which has no weights, is replaced while the method runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from sharedllm.errors import UsageError
from sharedllm.methods.base import opened, plain_nll
from sharedllm.methods.full import Full, Read
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt

ROOM = 1024  # tokens of question and answer that a text which is read once has positions for


class Yarn(Full):
    """`full` with scaled positions; the factor is the smallest that covers what is read.

    A text that fits the trained positions is read by the model as it is. One that is longer and asked about is read once, with
    positions for `ROOM` tokens of question and answer.

    Raises:
        UsageError: the model's positions are scaled already, or differ between its layers.
    """

    name = "yarn"
    rope_type: ClassVar[str] = "yarn"

    def __init__(self, llm: SharedLLM, window: int) -> None:
        super().__init__(llm, window)
        rotary = llm.parts.config.rope_parameters
        own = rotary.get("rope_type", "default")
        if any(isinstance(value, dict) for value in rotary.values()):
            raise UsageError(
                f"{self.name} scales one rotary embedding, and this model's layers have several; use full, which reads with "
                "them as they are."
            )
        if own != "default":
            raise UsageError(
                f"{self.name} scales plain rotary positions, and this model's are of the type {own!r} already; "
                "use full, which reads with them as they are."
            )

    def scaling(self, tokens: int) -> dict[str, Any]:
        """What is set in the model's `rope_parameters` to read so many tokens."""
        trained = self.llm.window
        return {"rope_type": "yarn", "factor": tokens / trained, "original_max_position_embeddings": trained}

    @contextmanager
    def scaled(self, tokens: int) -> Iterator[None]:
        """Within this block the model's positions are scaled for so many tokens, if they need it."""
        parts = self.llm.parts
        if tokens <= self.llm.window:
            yield
            return
        config = copy.deepcopy(parts.config)
        config.rope_parameters = {**config.rope_parameters, **self.scaling(tokens)}
        setattr(parts.base, parts.family.rotary, type(parts.rotary)(config).to(self.llm.device))
        try:
            yield
        finally:
            setattr(parts.base, parts.family.rotary, parts.rotary)

    def prepare_to_ask(self, past: Tensor, prompt: Prompt) -> Tensor | Read:
        """What fits the trained positions is read with each question: whether it still fits then follows from that too."""
        if not self.keeps_cache or len(past) <= self.llm.window:
            return past
        with self.scaled(len(past) + ROOM):
            return super().prepare_to_ask(past, prompt)

    def score(self, past: Tensor, window: Tensor, targets: int) -> Tensor:
        seen = opened(self.llm, torch.cat([past, window]))
        with self.scaled(len(seen)):
            return plain_nll(self.llm, seen, targets)

    def generate(self, past: Tensor, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        with self.scaled(len(past) + len(window) + max_new_tokens):
            return super().generate(past, window, max_new_tokens, **kwargs)

    def ask(self, past: Tensor | Read, prompt: Prompt, max_new_tokens: int) -> Tensor:
        """A text that was read is read again for what its positions have no room for."""
        tokens = len(self.shown(past, prompt, max_new_tokens)) + max_new_tokens
        if isinstance(past, Read):
            room = len(past.ids) + ROOM
            past, tokens = (past.ids, tokens) if tokens > room else (past, room)
        with self.scaled(tokens):
            return super().ask(past, prompt, max_new_tokens)

    def rules(self, scored: bool, before: int = 0) -> dict[str, Any]:
        return super().rules(scored, before) if self.keeps_cache else {}

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "rope_type": self.rope_type, "trained_positions": self.llm.window}


class DynamicNTK(Yarn):
    """The base follows the length read so far; in an answer it grows with every token, and older keys keep theirs."""

    name = "dynamic-ntk"
    keeps_cache = False
    rope_type = "dynamic"

    def scaling(self, tokens: int) -> dict[str, Any]:
        return {"rope_type": "dynamic", "factor": 1.0}
