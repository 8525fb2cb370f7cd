"""Choosing the next token from its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-3  # below it the likeliest token is taken: it has all the probability but for ties
FIRST = 256  # of the likeliest tokens, which mostly have the probability that `top_p` asks for


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
        probabilities, tokens = self._kept(self._shares(logits_V.cpu()))
        upto = probabilities.cumsum(0, dtype=torch.float64)
        drawn = torch.rand(1, generator=self._generator, dtype=torch.float64) * upto[-1]
        return int(tokens[torch.searchsorted(upto, drawn, right=True).clamp(max=len(upto) - 1)])

    def _kept(self, shares_V: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the tokens that `top_p` keeps, and these; sorted no further than that takes, since sorting a whole
        vocabulary takes milliseconds for every token of every row (docs/LOG.md)."""
        if self.sampling.top_p >= 1:
            return shares_V, torch.arange(len(shares_V))
        for most in (FIRST, len(shares_V)):
            shares, tokens = shares_V.topk(min(most, len(shares_V)))
            if shares.sum() >= self.sampling.top_p:
                break
        kept = shares.cumsum(0) - shares < self.sampling.top_p
        kept[0] = True  # one is always left
        return shares[kept], tokens[kept]

    def _shares(self, logits_V: Tensor) -> Tensor:
        return ((logits_V - logits_V.max()) / self.sampling.temperature).softmax(0)
