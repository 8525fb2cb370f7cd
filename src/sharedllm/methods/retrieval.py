"""`retrieval`: the passages nearest to a question as text in the window, and nothing of the rest.

Retrieval-augmented generation (arXiv 2005.11401) over one text, by the search of `shared`: the same passages that `shared`
quotes, read by the plain model. So what `shared` has beyond this method is the compressed whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sharedllm.context import Context
from sharedllm.methods.base import Method, greedy, opened, plain_generate, plain_nll
from sharedllm.methods.estimate import cache_bytes, slot_bytes
from sharedllm.methods.shared import Shared
from sharedllm.prompts import Prompt
from sharedllm.quote import quotes, with_quotes
from sharedllm.recall import nearest
from sharedllm.relevance import ASKING_TOKENS
from sharedllm.resolution import Resolution

QUOTED_TOKENS = 256  # where the adapter's settings quote nothing


class Retrieval(Shared):
    """A question stands behind the passages in the window. Scored tokens are searched for by those before them."""

    name = "retrieval"

    @property
    def quoted(self) -> int:
        """Tokens of the passages together."""
        return self.llm.config.quoted_tokens or QUOTED_TOKENS

    @torch.no_grad()
    def score(self, past: Context | None, window: Tensor, targets: int) -> Tensor:
        if past is not None:
            before = torch.cat([past.ids[-ASKING_TOKENS:].to(window), window[: len(window) - targets]])[-ASKING_TOKENS:]
            window = self._behind_passages(past, before, window)
        return plain_nll(self.llm, opened(self.llm, window), targets)

    def generate(self, past: Context | None, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        if past is not None:
            window = self._behind_passages(past, window, window)
        return plain_generate(self.llm, window, max_new_tokens, **kwargs)

    @torch.no_grad()
    def shown(self, past: Context | None, prompt: Prompt, max_new_tokens: int) -> list[int]:
        alone = prompt.alone()
        if past is None:
            return alone
        spans = nearest(self.llm, past, torch.tensor([alone]), prompt.question_mask())
        return with_quotes(self.llm, past, prompt, max_new_tokens, spans, Resolution(quoted_tokens=self.quoted))

    def ask(self, past: Context | None, prompt: Prompt, max_new_tokens: int) -> Tensor:
        return greedy(self.llm, self.shown(past, prompt, max_new_tokens), prompt, max_new_tokens)

    def positions(self, tokens: int) -> int:
        return min(tokens, self.window + self.quoted)

    def peak_bytes(self, tokens: int, scored: int = 0) -> int:
        """What is stored of all chunks, and one chunk being read."""
        stored = self._stored_bytes(self._chunks(tokens, scored))
        return Method.peak_bytes(self, tokens, scored) + stored + slot_bytes(self.llm, self.llm.config.chunk_length)

    def added(self) -> list[nn.Module]:
        return []

    @torch.no_grad()
    def attended_bytes(self, past: Context | None, prompt: Prompt, max_new_tokens: int) -> int:
        return cache_bytes(self.llm, len(self.shown(past, prompt, max_new_tokens)) - len(prompt.alone()))

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "quoted_tokens": self.quoted}

    def rules(self, scored: bool, before: int = 0) -> dict[str, Any]:
        return {}

    def _behind_passages(self, past: Context, asking: Tensor, window: Tensor) -> Tensor:
        """A window [T] with the passages nearest to the last tokens of `asking` [n] before it."""
        spans = nearest(self.llm, past, asking[None], None)
        return torch.cat([quotes(past, spans, self.quoted, self.llm.tokenizer).to(window), window])
