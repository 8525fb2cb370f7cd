"""Asking a collection: a question finds the documents worth composing, then they are one context.

Coarse to fine: the sketches of all documents name a few, whose stores are opened and searched as they would be for an
answer (`relevance.compare`); the best of those are composed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from sharedllm.collection import RECORDS, SKETCHES, STORES
from sharedllm.collection.place import Place
from sharedllm.collection.records import KEPT, Record, read_records, searchable
from sharedllm.collection.sketch import Sketch, load_sketch, nearness, represented_by
from sharedllm.collection.words import Postings
from sharedllm.context import Context
from sharedllm.errors import UsageError, WorkError
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt
from sharedllm.relevance import node_scores, span_scores
from sharedllm.tree import tree_borders

OPENED = 4
"""Stores that are opened for each document wanted."""


@dataclass(frozen=True)
class Hit:
    """A document that a question found."""

    source: str
    store: str
    tokens: int
    score: float
    """Of its nearest chunk: the mean over the question's tokens of the cosine with the nearest token there, and
    `config.search_words` times its words as a share of the best chunk's."""


class Collection:
    """Documents read by `read_collection`, to be searched and asked with the model that read them.

    Raises:
        UsageError: there is no collection at `where`, it holds no document, or it was made with another model or adapter.
        WorkError: its manifest or a sketch is broken.
    """

    def __init__(self, where: str | Path, llm: SharedLLM) -> None:
        self.place, self.llm = Place(where), llm
        self.records: list[Record] = [r for r in read_records(self.place).values() if r.state == KEPT]
        if not self.records:
            raise UsageError(f"{where} holds no document to ask; read some with `sharedllm encode --separate`.")
        by = represented_by(llm.config)
        if not all(searchable(record.made_with, llm.reader.identity, by) for record in self.records):
            raise self._foreign()

    @cached_property
    def sketches(self) -> list[Sketch]:
        """One a record."""
        names = [f"{SKETCHES}/{record.store}.safetensors" for record in self.records]
        read = self.place.read_all(names)
        if missing := [name for name in names if name not in read]:
            raise WorkError(f"{self.place.where} lacks {missing[0]}; run `sharedllm encode --separate` again.")
        return [load_sketch(name, read[name]) for name in names]

    @cached_property
    def postings(self) -> Postings:
        """Where each token stands."""
        return Postings(self.sketches)

    def search(self, question: str, documents: int = 4, opened: int | None = None) -> list[Hit]:
        """The documents nearest to a question, the nearest first.

        Args:
            opened: stores to look into, those whose sketches are nearest; None: `OPENED` for each document wanted; 0:
                none, the sketches alone decide.
        """
        prompt = Prompt(self.llm.tokenizer, question)
        ids = torch.tensor([prompt.alone()], device=self.llm.device)
        (asked,) = self.llm.query(ids, question_mask=prompt.question_mask().to(self.llm.device))
        if any(len(sketch.mean) != asked.shape[1] for sketch in self.sketches):  # of a record that does not say
            raise self._foreign()
        weight = self.llm.config.search_words
        words = [weight * some for some in self.postings.shares(ids[0][prompt.question_mask()[0]])]
        near = best_chunks(nearness(self.sketches, asked), words)
        opened = OPENED * documents if opened is None else opened
        order = near.argsort(descending=True, stable=True)[: max(documents, opened)].tolist()
        chosen, best = [self.records[i] for i in order], near[order]
        if opened:
            best = best_chunks(self._look_into(chosen, asked), [words[i] for i in order])
        ranked = best.argsort(descending=True, stable=True)[:documents].tolist()
        return [Hit(chosen[i].source, chosen[i].store, chosen[i].tokens, float(best[i])) for i in ranked]

    def context(self, hits: Sequence[Hit]) -> Context:
        """Some documents as one context, in that order; a remote store is downloaded, once."""
        return Context.compose([Context.load(self.folder(hit.store), self.llm) for hit in hits])

    def folder(self, store: str) -> Path:
        """The folder of a store, a saved context, on this machine."""
        return self.place.fetch(f"{STORES}/{store}")

    def ask(self, question: str, documents: int = 4, max_new_tokens: int = 128) -> str:
        """Answer a question from the documents nearest to it."""
        return self.llm.ask(self.context(self.search(question, documents)), question, max_new_tokens)

    def _foreign(self) -> UsageError:
        return UsageError(
            f"{self.place.where} was made with another model or adapter; ask it with the one that read it."
        )

    def _look_into(self, records: Sequence[Record], question_QR: torch.Tensor) -> list[torch.Tensor]:
        """How near each chunk is to a question, from the stores; [chunks] a document, the mean over Q."""
        contexts = [Context.load(self.folder(record.store), self.llm) for record in records]
        whole, config = Context.compose(contexts), self.llm.config
        borders = [tree_borders(block.lengths, config.tree_depth) for block in whole.blocks]
        spans = span_scores(whole.blocks, config, question_QR, borders)
        roots = [node_scores(some, config.search_by)[0][:, 0] for some in spans]
        return list((torch.cat(roots) / len(question_QR)).split([c.chunks for c in contexts]))


def best_chunks(near: Sequence[torch.Tensor], words: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of each document its nearest chunk, by meaning and words together; [documents].

    Where a document was read again since its sketch was made, its chunks are others, and words are left out.
    """
    pairs = [(here.cpu(), there) for here, there in zip(near, words, strict=True)]
    return torch.stack([(here + there if len(here) == len(there) else here).amax() for here, there in pairs])


def is_collection(source: str) -> bool:
    """Whether a source on the command line is a collection.

    Raises:
        UsageError: an address of no kind that is known.
        WorkError: an address that does not answer.
    """
    if source == "-" or source.startswith(("http://", "https://")):
        return False
    place = Place(source)
    try:
        return place.exists(RECORDS) and place.exists(STORES)
    except WorkError:
        if place.remote:
            raise
        return False  # no name that a file can have; reading it says so
