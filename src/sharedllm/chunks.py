"""How token ids are cut into chunks, and which tokens of a chunk are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from sharedllm.keep import Span, span_mask


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
