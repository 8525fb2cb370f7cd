"""What a step trains on: chunks of one document as context, and windows that read them.

Samples are a function of (seed, step, part) alone, so that a run which goes on sees what it would have
seen. The chunks are encoded once and shared by all windows of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sharedllm.data.folder import Document, TokenFolder
from sharedllm.data.needles import draw_needles
from sharedllm.errors import UsageError
from sharedllm.prompts import Prompt
from sharedllm.train.recipe import Recipe


@dataclass(frozen=True)
class Window:
    """Tokens [T] the upper model sees after `chunks` chunks of context; the last `targets` are predicted."""

    chunks: int
    ids: np.ndarray
    targets: int


@dataclass(frozen=True)
class Sample:
    """A context and the windows that read it, searched as `search` says."""

    kind: str
    context: np.ndarray
    windows: list[Window]
    search: str


class Sampler:
    """Draws samples from a token folder.

    Sources are drawn by their weight, a source's documents by their length, places evenly.

    Args:
        tokenizer: needed where the recipe asks for needles.
    Raises:
        UsageError: no document of the split is long enough.
    """

    def __init__(self, folder: TokenFolder, recipe: Recipe, split: str = "train", tokenizer: Any = None) -> None:
        self.folder, self.recipe, self.tokenizer = folder, recipe, tokenizer
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
        if self.recipe.needles and random.random() < self.recipe.needles:
            return self.retrieval(document, random)
        return self.continuation(document, random)

    def continuation(self, document: Document, random: np.random.Generator) -> Sample:
        """Windows that go on where the chunks they see end: one after the whole context, others after parts."""
        chunks, ids = self._cut(document, random)
        C, T = self.recipe.config.chunk_length, self.recipe.window_tokens
        seen = [chunks, *random.integers(1, chunks + 1, size=self.recipe.windows - 1).tolist()]
        windows = [Window(n, ids[n * C : n * C + T], T - 1) for n in seen]
        return Sample(document.kind, ids[: chunks * C], windows, "later")

    def retrieval(self, document: Document, random: np.random.Generator) -> Sample:
        """Needles hidden in the text, and a question window for each; only the value is predicted."""
        chunks, ids = self._cut(document, random)
        needles = draw_needles(random, self.recipe.needle_windows)
        hidden = [self._ids(f"\n{needle.statement}\n") for needle in needles]
        room = chunks * self.recipe.config.chunk_length - sum(map(len, hidden))
        if room < 0:
            raise UsageError(
                f"{len(hidden)} needles do not fit {chunks} chunks of {self.recipe.config.chunk_length} tokens; "
                "lower needle_windows or raise context_chunks."
            )
        cuts = np.sort(random.integers(0, room + 1, size=len(hidden)))
        pieces, at = [], 0
        for cut, statement in zip(cuts.tolist(), hidden, strict=True):
            pieces += [ids[at:cut], statement]
            at = cut
        context = np.concatenate([*pieces, ids[at:room]])
        windows = []
        for needle in needles:
            prompt = [*Prompt(self.tokenizer, needle.question).alone(), *self._ids(needle.opening)]
            value = self._ids(f" {needle.value}.")
            windows.append(Window(chunks, np.concatenate([np.asarray(prompt), value]), len(value)))
        return Sample("needles", context, windows, "query")

    def _cut(self, document: Document, random: np.random.Generator) -> tuple[int, np.ndarray]:
        """How many chunks of context, and that many chunks of the document's tokens and one more."""
        C, (low, high) = self.recipe.config.chunk_length, self.recipe.context_chunks
        chunks = int(random.integers(low, min(high, document.tokens // C - 1) + 1))
        start = int(random.integers(0, document.tokens - (chunks + 1) * C + 1))
        tokens = self.folder.tokens(document)[start : start + (chunks + 1) * C]
        return chunks, np.asarray(tokens, dtype=np.int64)

    def _ids(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
