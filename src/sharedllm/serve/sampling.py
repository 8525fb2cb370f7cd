"""Choosing the next token from its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-3  # below it the likeliest token is taken: it has all the probability but for ties


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are chosen."""

    temperature: float = 0.0
    """Below `COLDEST`: the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability (arXiv 1904.09751)."""
    seed: int | None = None
    logprobs: int | None = None
    """How many of the likeliest tokens are reported beside the chosen one; None: nothing is."""


@dataclass(frozen=True)
class Chosen:
    """A token with its log-probability under the model, and those of the likeliest tokens."""

    token: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one row; with a seed, the same ones each time."""

    def __init__(self, sampling: Sampling, row: int = 0) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed((sampling.seed + row) % 2**63)

    def choose(self, logits_V: Tensor) -> Chosen:
        """The next token."""
        s = self.sampling
        token = int(logits_V.argmax()) if s.temperature < COLDEST else self._draw(logits_V)
        if s.logprobs is None:
            return Chosen(token)
        logprobs = logits_V.log_softmax(0)
        values, tokens = logprobs.topk(min(s.logprobs, len(logprobs)))
        return Chosen(token, float(logprobs[token]), tuple(zip(tokens.tolist(), values.tolist(), strict=True)))

    def _draw(self, logits_V: Tensor) -> int:
        probabilities, tokens = self._shares(logits_V.cpu()).sort(descending=True)
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities.masked_fill(before >= self.sampling.top_p, 0.0)
        probabilities[0] = probabilities[0].clamp(min=1e-30)  # one is always left
        return int(tokens[torch.multinomial(probabilities, 1, generator=self._generator)])

    def _shares(self, logits_V: Tensor) -> Tensor:
        return ((logits_V - logits_V.max()) / self.sampling.temperature).softmax(0)
