"""What a question reads of a context: every chunk's tree with the slots of its leaves, and the passages read most finely."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from sharedllm.config import SharedConfig
from sharedllm.context import Context
from sharedllm.keep import Span, clipped, shifted
from sharedllm.memory import find
from sharedllm.words import Words

if TYPE_CHECKING:
    from sharedllm.model import SharedLLM


@dataclass(frozen=True)
class Leaf:
    """A leaf of a chunk's tree; start and end in tokens of the context."""

    start: int
    end: int
    slots: int
    level: int
    """From 1, the coarsest, to L."""
    chosen: bool
    """Whether the search ended here: the two leaves of level L."""


@dataclass(frozen=True)
class ChunkRead:
    """How a question reads one chunk."""

    start: int
    """In tokens of the context."""
    tokens: int
    slots: int
    """0: the chunk is left out."""
    score: float | None
    """Mean over the question's tokens of the cosine with the nearest token of the chunk, or of its nearest part under
    `config.search_prior`, and what words add to that; None without a question."""
    leaves: list[Leaf]


@dataclass(frozen=True)
class Passage:
    """A part of a text as a question reads it."""

    chunk: int
    """Number of its chunk, from 1."""
    start: int
    """In tokens of the context, as `end`."""
    end: int
    slots: int
    """Tokens of it that are taken in; `end - start` where it is read whole."""
    score: float | None
    """That of its chunk; see `ChunkRead`. None where the whole text was read, without a search."""
    text: str = ""


def chunks_read(
    context: Context, config: SharedConfig, question_QR: Tensor | None, words: Words | None = None
) -> Iterator[ChunkRead]:
    """The chunks of an encoded context in text order, as a question reads them; None: as without one."""
    at, depth = 0, config.tree_depth
    found = find(context.blocks, config, question_QR, keep=context.keep, words=words)
    for block, here in zip(context.blocks, found, strict=True):
        scores = [None] * len(block.lengths) if here.scores is None else here.scores.tolist()
        trees = zip(block.lengths.tolist(), scores, here.leaves.tolist(), here.taken().cpu(), strict=True)
        for tokens, score, spans, taken in trees:
            leaves = [
                Leaf(at + start, at + end, int(taken[start:end].sum()), level, level == depth)
                for (start, end), level in zip(spans, _levels(spans, depth), strict=True)
            ]
            yield ChunkRead(at, tokens, int(taken.sum()), score, leaves)
            at += tokens


def finest(llm: SharedLLM, context: Context, chunks: Iterable[ChunkRead], most: int) -> list[Passage]:
    """The `most` passages read most finely, the nearest to the question first among those read alike."""
    found = [p for number, chunk in enumerate(chunks, 1) for p in _passages(number, chunk, context.keep)]
    found.sort(key=lambda p: (p.slots / (p.end - p.start), p.score or 0.0), reverse=True)
    return [replace(p, text=llm.tokenizer.decode(context.ids[p.start : p.end])) for p in found[:most]]


def _passages(number: int, chunk: ChunkRead, keep: Sequence[Span]) -> Iterator[Passage]:
    """Where the search of a chunk ended, and its spans that are kept from compression."""
    for start, end in shifted(clipped(keep, chunk.start, chunk.start + chunk.tokens), chunk.start):
        yield Passage(number, start, end, end - start, chunk.score)
    ended = [leaf for leaf in chunk.leaves if leaf.chosen and leaf.start < leaf.end]
    if chunk.slots and ended:
        yield Passage(number, ended[0].start, ended[-1].end, sum(leaf.slots for leaf in ended), chunk.score)


def _levels(leaves: list[list[int]], depth: int) -> list[int]:
    """Level of each of L + 1 leaves in text order, by their lengths: the longest is level 1; the last two share L."""
    order = sorted(range(len(leaves)), key=lambda i: leaves[i][0] - leaves[i][1])
    levels = [0] * len(leaves)
    for rank, i in enumerate(order):
        levels[i] = min(rank + 1, depth)
    return levels
