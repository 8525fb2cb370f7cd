"""`truncate`: the newest window alone; everything before it is forgotten."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sharedllm.methods.base import Method, new_tokens, plain_nll


class Truncate(Method):
    """The plain model over the window."""

    name = "truncate"

    def prepare(self, past: Tensor) -> None:
        return None

    def score(self, past: None, window: Tensor, targets: int) -> Tensor:
        return plain_nll(self.llm, window, targets)

    def generate(self, past: None, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        out = self.llm.generate(window[None], max_new_tokens=max_new_tokens, do_sample=False, **kwargs)
        return new_tokens(out, len(window))
