"""`full`: all tokens under the model's own attention, past its trained positions too."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from sharedllm.methods.base import Method, opened, plain_generate, plain_nll
from sharedllm.methods.estimate import cache_bytes
from sharedllm.prompts import Prompt


@dataclass(frozen=True)
class Read:
    """Token ids [P] of a text, those of a prompt that were read before them, and the keys and values of both."""

    ids: Tensor
    before: list[int]
    cache: Cache

    def copy(self) -> Cache:
        """A cache with the same contents; reading on with it, which joins tensors to new ones, leaves this as it is."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return cache


class Full(Method):
    """The plain model over past and window together; memory and time grow with their whole length.

    A text that is to be asked about is read once, behind what a prompt puts before it, and its keys and values are kept.
    """

    name = "full"
    keeps_cache = True

    def prepare(self, past: Tensor) -> Tensor:
        return past

    @torch.no_grad()
    def prepare_to_ask(self, past: Tensor, prompt: Prompt) -> Tensor | Read:
        if len(past) == 0:
            return past
        before = prompt.around_text()[0]
        ids = torch.cat([past.new_tensor(before), past])[None].to(self.llm.device)
        cache = DynamicCache(config=self.llm.model.config)
        self.llm.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return Read(past, before, cache)

    def score(self, past: Tensor, window: Tensor, targets: int) -> Tensor:
        return plain_nll(self.llm, opened(self.llm, torch.cat([past, window])), targets)

    def generate(self, past: Tensor, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        return plain_generate(self.llm, torch.cat([past, window]), max_new_tokens, **kwargs)

    def shown(self, past: Tensor | Read, prompt: Prompt, max_new_tokens: int) -> list[int]:
        return prompt.with_text(past.ids if isinstance(past, Read) else past)

    def ask(self, past: Tensor | Read, prompt: Prompt, max_new_tokens: int) -> Tensor:
        """What was read behind the same words as `prompt` has before a text is not read again."""
        more: dict[str, Any] = {"pad_token_id": prompt.pad_id}
        if isinstance(past, Read) and past.before == prompt.around_text()[0]:
            more["past_key_values"] = past.copy()
        return plain_generate(self.llm, torch.tensor(self.shown(past, prompt, max_new_tokens)), max_new_tokens, **more)

    def kept_bytes(self, past: Tensor | Read) -> int:
        if not isinstance(past, Read):
            return int(past.nbytes)
        kept = (getattr(layer, name, None) for layer in past.cache.layers for name in ("keys", "values"))
        return int(past.ids.nbytes) + sum(int(x.nbytes) for x in kept if x is not None)

    def positions(self, tokens: int) -> int:
        return tokens

    def peak_bytes(self, tokens: int, scored: int = 0) -> int:
        """Where a text is read once, its cache is kept beside the one of the answer, which joins it to new tensors."""
        kept = cache_bytes(self.llm, tokens) if self.keeps_cache and not scored else 0
        return super().peak_bytes(tokens, scored) + kept

    def rules(self, scored: bool, before: int = 0) -> dict[str, Any]:
        return {} if scored else {"read_once": True}
