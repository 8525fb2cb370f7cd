"""What a run trains: the weights, how they take a context in, how they are saved; one class a method that can be trained.

The loop asks for no more than this, so that another method is trained on the same samples, for the same number of tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sharedllm.context import Context
from sharedllm.methods.encoder_decoder import CrossConfig, EncoderDecoder, Projected
from sharedllm.model import SharedLLM
from sharedllm.quote import inserted
from sharedllm.recall import nearest
from sharedllm.train.batch import Batch
from sharedllm.train.recipe import TRAINABLE, Recipe
from sharedllm.train.samples import Window

SAVED = torch.bfloat16
"""What weights are saved in."""


class Learner(ABC):
    """The trained part of a method on a frozen model; `module` has its weights, in fp32."""

    module: nn.Module

    @abstractmethod
    def encode(self, ids: Tensor) -> Any:
        """What is read once of a sample's context, token ids [P], without gradients."""

    def shown(self, encoded: Any, window: Window) -> Window:
        """A window as the model is to see it, with what it quotes of its context."""
        return window

    @abstractmethod
    def memory(
        self, encoded: Any, chunks: Sequence[int], batch: Batch, search: str, generator: torch.Generator | None
    ) -> Any:
        """What the rows of a batch attend to: row b the first `chunks[b]` chunks of the context.

        Args:
            search: how a context is searched by the batch's windows.
            generator: of the split noise; None for no noise.
        """

    @abstractmethod
    def reading(self, memory: Any) -> AbstractContextManager[None]:
        """Within this block the model takes `memory` in; None: nothing, also inside such a block."""

    @abstractmethod
    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write what was trained."""


class SharedLearner(Learner):
    """The injection adapter."""

    def __init__(self, llm: SharedLLM, recipe: Recipe) -> None:
        self.llm, self.config, self.module = llm, recipe.config, llm.injection.float()

    def encode(self, ids: Tensor) -> Context:
        context = self.llm.reader.new_context()
        context.ids = ids.to(torch.int32)
        self.llm.reader.encode(context, every_token=self.config.split_noise > 0)
        return context

    def shown(self, encoded: Context, window: Window) -> Window:
        if not window.quoted or window.question is None:
            return window
        context, asking = encoded.first(window.chunks), torch.from_numpy(window.question)[None]
        spans = nearest(self.llm, context, torch.from_numpy(window.ids)[None], asking)
        ids = inserted(self.llm, context, window.ids.tolist(), asking, 0, spans)
        at, more = int(window.question.argmax()), len(ids) - len(window.ids)
        question = np.insert(window.question, [at] * more, False)
        return replace(window, ids=np.array(ids, dtype=np.int64), question=question)

    def memory(
        self, encoded: Context, chunks: Sequence[int], batch: Batch, search: str, generator: torch.Generator | None
    ) -> Any:
        noise = self.config.split_noise if generator is not None else 0.0
        contexts = [encoded.first(n) for n in chunks]
        return self.llm.recall(contexts, batch.ids, batch.prompt, search, noise, generator, batch.question)

    def reading(self, memory: Any) -> AbstractContextManager[None]:
        return self.llm.injection.reading(memory)

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        self.llm.save_adapter(folder, about, dtype=SAVED)


class CrossLearner(Learner):
    """The cross-attention of `encoder-decoder`; its encoder reads chunks as long as the recipe's."""

    def __init__(self, llm: SharedLLM, recipe: Recipe) -> None:
        self.chunk_length = recipe.config.chunk_length
        self.method = EncoderDecoder(llm, 1, config=CrossConfig(self.chunk_length))
        self.module = self.method.cross.float()

    def encode(self, ids: Tensor) -> Tensor:
        return self.method.encode(ids)

    def memory(
        self, encoded: Tensor, chunks: Sequence[int], batch: Batch, search: str, generator: torch.Generator | None
    ) -> Projected:
        """All tokens of the chunks, whatever is asked."""
        lengths = torch.tensor(chunks, device=encoded.device)[:, None] * self.chunk_length
        mask = torch.arange(encoded.shape[1], device=encoded.device) < lengths
        return self.method.cross.project(encoded, mask)

    def reading(self, memory: Projected | None) -> AbstractContextManager[None]:
        return self.method.cross.reading(self.method.llm.parts, memory)

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        self.method.save(folder, about, SAVED)


def learner(llm: SharedLLM, recipe: Recipe) -> Learner:
    """What trains the recipe's method."""
    kinds: dict[str, type[SharedLearner | CrossLearner]] = dict(
        zip(TRAINABLE, (SharedLearner, CrossLearner), strict=True)
    )
    return kinds[recipe.method](llm, recipe)
