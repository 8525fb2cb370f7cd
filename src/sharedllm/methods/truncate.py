"""`truncate`: the newest window alone; everything before it is forgotten."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sharedllm.methods.base import Method, opened, plain_generate, plain_nll, room_in
from sharedllm.prompts import Prompt


class Truncate(Method):
    """The plain model over the window; a question is put after the newest tokens of the past that fit beside it."""

    name = "truncate"
    forgets = True

    @property
    def limit(self) -> int:
        return self.window

    def prepare(self, past: Tensor) -> Tensor:
        return past

    def score(self, past: Tensor, window: Tensor, targets: int) -> Tensor:
        return plain_nll(self.llm, opened(self.llm, window), targets)

    def generate(self, past: Tensor, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        return plain_generate(self.llm, window, max_new_tokens, **kwargs)

    def shown(self, past: Tensor, prompt: Prompt, max_new_tokens: int) -> list[int]:
        frame = len(prompt.with_text(past[-1:])) - len(past[-1:])
        room = room_in(self.window, frame, max_new_tokens)
        return prompt.with_text(past[max(0, len(past) - room) :])
