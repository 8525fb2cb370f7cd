"""The teacher of context distillation: the model without what is trained, reading token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sharedllm.model import SharedLLM
from sharedllm.train.learner import Learner
from sharedllm.train.newest import Newest
from sharedllm.train.samples import Sample, Window


class Teacher:
    """What the model itself makes of the targets of windows.

    All windows that go on in one text are read in one pass, whose hidden states before the head are kept for the steps that
    read the text again: they are many times smaller than log-probabilities. The text is the same in all those steps, so that
    a run that goes on between two of them reads what an unbroken one had read.

    Args:
        most: of how many texts states are kept.
    """

    def __init__(self, llm: SharedLLM, learner: Learner, most: int) -> None:
        self.llm, self.learner = llm, learner
        self._read = Newest(most, self._states)

    def logprobs(self, sample: Sample, window: Window) -> Tensor:
        """Of the tokens at the places of a window's targets, [targets, V] in fp32."""
        if window.shown is not None:
            logits = self._plain(window.shown, logits_to_keep=window.targets + 1)[:-1]
        else:
            assert sample.text is not None, "a window that is shown nothing goes on in the sample's text"
            end = window.chunks * self.llm.config.chunk_length + len(window.ids) - 1  # predicted by the state before it
            logits = self._headed(self._read.of(sample.text)[end - window.targets : end])
        return logits.float().log_softmax(-1)

    def _states(self, ids: np.ndarray) -> Tensor:
        """What the head is given at each of `ids`, [T, E]."""
        states: list[Tensor] = []

        def keep(given: Tensor) -> Tensor:
            states.append(given[0])
            return given[:, -1:]  # the head has little to do

        self._plain(ids, keep)
        return states[0]

    def _headed(self, states: Tensor) -> Tensor:
        """The logits [n, V] of states [n, E], as the model's own code has its head make them, scaled or capped."""
        return self._plain(np.zeros(1, dtype=np.int64), lambda given: states[None])

    @torch.no_grad()
    def _plain(self, ids: np.ndarray, before_head: Callable[[Tensor], Tensor] | None = None, **kwargs: Any) -> Tensor:
        """Logits of a pass over `ids` [T] without what is trained.

        Args:
            before_head: what the head takes in the place of what it is given, [1, T, E].
        """

        def swap(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            return None if before_head is None else (before_head(args[0]), *args[1:])

        hook = self.llm.model.get_output_embeddings().register_forward_pre_hook(swap)
        try:
            with self.learner.reading(None):
                read = torch.from_numpy(ids).to(self.llm.device)[None]
                logits: Tensor = self.llm.model(input_ids=read, use_cache=False, **kwargs).logits
        finally:
            hook.remove()
        return logits[0]
