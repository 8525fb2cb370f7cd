"""`shared`: this project's method; the past compressed by the lower model and injected.

Source: arXiv 2603.04759.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sharedllm.context import Context
from sharedllm.methods.base import Method, new_tokens, target_nll


class Shared(Method):
    """Scoring searches without a query (always the later half); generating searches by the window."""

    name = "shared"

    def prepare(self, past: Tensor) -> Context | None:
        if len(past) == 0:
            return None
        context = self.llm.read(past)
        if not context.blocks:  # short enough for the window, but here it is to be compressed
            self.llm.reader.encode(context)
        return context

    @torch.no_grad()
    def score(self, past: Context | None, window: Tensor, targets: int) -> Tensor:
        ids = window[None].to(self.llm.device)
        logits = self.llm(ids, context=past, search="later", use_cache=False, logits_to_keep=targets + 1).logits
        return target_nll(logits, ids, targets)[0]

    def generate(self, past: Context | None, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        out = self.llm.generate(window[None], context=past, max_new_tokens=max_new_tokens, do_sample=False, **kwargs)
        return new_tokens(out, len(window))

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **self.llm.config.to_dict()}
