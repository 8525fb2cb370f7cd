"""What a step trains on: a stretch of one document, cut into chunks of context and windows after them.

Samples are a function of (seed, step) alone, so that a run which goes on sees what it would have seen.
The chunks are encoded once and shared by all windows of the sample: window r sees the chunks before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sharedllm.data.folder import Document, TokenFolder
from sharedllm.errors import UsageError
from sharedllm.train.recipe import Recipe


@dataclass(frozen=True)
class Window:
    """Tokens the upper model sees and predicts, after `chunks` chunks of context."""

    chunks: int
    ids: np.ndarray
    """[T]; every token but the first is a target."""


@dataclass(frozen=True)
class Sample:
    """A context and the windows that read it."""

    kind: str
    context: np.ndarray
    windows: list[Window]


class Sampler:
    """Draws samples from a token folder.

    Sources are drawn by their weight, a source's documents by their length, places evenly.

    Raises:
        UsageError: no document of the split is long enough.
    """

    def __init__(self, folder: TokenFolder, recipe: Recipe, split: str = "train") -> None:
        self.folder, self.recipe = folder, recipe
        least = (recipe.context_chunks[0] + 1) * recipe.config.chunk_length
        self.documents: Sequence[Document] = [d for d in folder.documents(split=split) if d.tokens >= least]
        if not self.documents:
            raise UsageError(
                f"the data in {recipe.data} has no {split} document of {least} tokens; lower context_chunks."
            )
        total: dict[str, int] = {}
        for d in self.documents:
            total[d.source] = total.get(d.source, 0) + d.tokens
        weights = np.array([folder.sources[d.source]["weight"] * d.tokens / total[d.source] for d in self.documents])
        self.shares = weights / weights.sum()

    def draw(self, step: int, part: int = 0) -> Sample:
        """The sample of a step (and of a part of it, under accumulation)."""
        random = np.random.default_rng([self.recipe.seed, step, part])
        document = self.documents[int(random.choice(len(self.documents), p=self.shares))]
        return self.cut(document, random)

    def cut(self, document: Document, random: np.random.Generator) -> Sample:
        recipe, C = self.recipe, self.recipe.config.chunk_length
        low, high = recipe.context_chunks
        chunks = int(random.integers(low, min(high, document.tokens // C - 1) + 1))
        need = (chunks + 1) * C
        start = int(random.integers(0, document.tokens - need + 1))
        ids = np.asarray(self.folder.tokens(document)[start : start + need], dtype=np.int64)
        # One window after the whole context, the others after random parts of it.
        seen = [chunks, *random.integers(1, chunks + 1, size=recipe.windows - 1).tolist()]
        windows = [Window(n, ids[n * C : n * C + recipe.window_tokens]) for n in seen]
        return Sample(document.kind, ids[: chunks * C], windows)
