"""The protocol of a method: take a past in, score tokens after it, generate after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm.model import SharedLLM


class Method(ABC):
    """One way of using a long past.

    Args:
        llm: the model; methods of other people's use `llm.model` alone.
        window: newest tokens that the model sees itself.
    """

    name: ClassVar[str]

    def __init__(self, llm: SharedLLM, window: int) -> None:
        self.llm, self.window = llm, window

    @abstractmethod
    def prepare(self, past: Tensor) -> Any:
        """Take in the token ids [P] before the window; returns what `score` and `generate` need of them."""

    @abstractmethod
    def score(self, past: Any, window: Tensor, targets: int) -> Tensor:
        """Negative log-likelihood in nats of the last `targets` tokens of `window` [T]; shape [targets]."""

    @abstractmethod
    def generate(self, past: Any, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        """Token ids generated greedily after `window` [T]; shape [new]."""

    def settings(self) -> dict[str, Any]:
        """What a results row says of the method besides its name."""
        return {"window": self.window}


def target_nll(logits_BTV: Tensor, ids_BT: Tensor, targets: int) -> Tensor:
    """Nats of each of the last `targets` tokens, given logits of the whole window. [B, targets]."""
    scored = logits_BTV[:, -targets - 1 : -1].float()
    return F.cross_entropy(scored.transpose(1, 2), ids_BT[:, -targets:], reduction="none")


@torch.no_grad()
def plain_nll(llm: SharedLLM, ids: Tensor, targets: int) -> Tensor:
    """The same of the plain model over `ids` [T]; logits are computed for the targets alone."""
    batch = ids[None].to(llm.device)
    logits = llm.model(input_ids=batch, use_cache=False, logits_to_keep=targets + 1).logits
    return target_nll(logits, batch, targets)[0]


def new_tokens(output: Tensor, prompt: int) -> Tensor:
    return output[0, prompt:]
