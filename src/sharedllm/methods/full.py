"""`full`: all tokens under the model's own attention, past its trained positions too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sharedllm.methods.base import Method, plain_generate, plain_nll
from sharedllm.prompts import Prompt


class Full(Method):
    """The plain model over past and window together; memory and time grow with their whole length."""

    name = "full"

    def prepare(self, past: Tensor) -> Tensor:
        return past

    def score(self, past: Tensor, window: Tensor, targets: int) -> Tensor:
        return plain_nll(self.llm, torch.cat([past, window]), targets)

    def generate(self, past: Tensor, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        return plain_generate(self.llm, torch.cat([past, window]), max_new_tokens, **kwargs)

    def shown(self, past: Tensor, prompt: Prompt, max_new_tokens: int) -> list[int]:
        return prompt.with_text(past)

    def positions(self, tokens: int) -> int:
        return tokens
