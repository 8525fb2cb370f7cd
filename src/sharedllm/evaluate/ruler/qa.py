"""RULER's questions on documents: those that answer a question, among as many others as fit."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from sharedllm.errors import UsageError
from sharedllm.evaluate.ruler.corpus import Corpus, Library
from sharedllm.evaluate.ruler.wording import DOCUMENTS, Sample, Wording


@dataclass(frozen=True)
class Documents:
    """Makes samples of the questions of `source` (`squad` or `hotpotqa`) in their order.

    A sample's size is the number of documents: those of the question, then those near it, then any.
    """

    source: str
    least: int = 1
    wording: ClassVar[Wording] = DOCUMENTS

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.source,)

    def make(self, size: int, length: int, index: int, random: Random, corpus: Corpus) -> Sample:
        library: Library = getattr(corpus, self.source)
        if index >= len(library.asked):
            raise UsageError(f"{self.source} has {len(library.asked):,} questions; lower --samples.")
        asked = library.asked[index]
        near, own = list(asked.near), list(asked.documents)
        known = {*own, *near}
        others = [i for i in range(len(library.documents)) if i not in known]
        random.shuffle(near)
        random.shuffle(others)
        more = near + others
        again = more * (size // len(more) + 1) if more else []  # where there are too few, all again
        chosen = own + again[: max(0, size - len(own))]
        random.shuffle(chosen)
        listed = [f"Document {i}:\n{library.documents[number]}" for i, number in enumerate(chosen, 1)]
        return self.wording.worded("\n\n".join(listed), asked.answers, query=asked.question)
