"""How token ids are cut into chunks, and which tokens of a chunk are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from sharedllm.config import SharedConfig
from sharedllm.keep import Span, span_mask
from sharedllm.tree import candidate_tokens, tree_borders


def chunk_rows(ids: Tensor, length: int) -> Iterator[Tensor]:
    """Token ids [n] cut into chunks: all complete ones, [X, C], then the ragged last one, [1, n % C]."""
    full = len(ids) // length
    if full:
        yield ids[: full * length].view(full, length)
    if len(ids) % length:
        yield ids[None, full * length :]


def chunk_runs(ids: Tensor, length: int, keep: Sequence[Span]) -> Iterator[tuple[Tensor, bool]]:
    """The same cut once more, where chunks that hold a kept token meet chunks that do not, and whether they do."""
    kept = [bool(part.any()) for part in span_mask(keep, len(ids)).split(length)]
    for rows in chunk_rows(ids, length):
        here, kept = kept[: len(rows)], kept[len(rows) :]
        runs = [(whole, len(list(run))) for whole, run in groupby(here)]
        for (whole, _), some in zip(runs, rows.split([size for _, size in runs]), strict=True):
            yield some, whole


class Stored(NamedTuple):
    """Which tokens of a chunk are stored."""

    every_token: bool = False
    """Every one, and what represents it: for training, where split points are noisy."""
    whole: bool = False
    """Every one, in the bits of the settings: the chunk holds kept spans, or is taken in whole."""
    compact: bool = False
    """No more than the candidates, and of all what a question is compared with; see `Context.compact`."""


AS_SET = Stored()
"""What the settings say, in a context that is not compact."""


def stored_tokens(config: SharedConfig, n: int, stored: Stored) -> tuple[Tensor, Tensor, Tensor]:
    """Of a chunk of `n` tokens those that are stored, those that have a representation, and those that are compared where
    values are kept apart for it."""
    every = torch.arange(n)
    tokens = compared = candidate_tokens(n, config.tree_depth, config.slots_per_leaf)
    if stored.every_token or stored.whole or (config.fine_chunks and not stored.compact):
        tokens = compared = every
    if stored.compact:
        compared = every
    if config.search_by != "last":
        return tokens, every[:0], compared
    if stored.every_token:
        return tokens, every, compared
    return tokens, (tree_borders(torch.tensor([n]), config.tree_depth)[0, 1:] - 1).clamp(min=0).unique(), compared
