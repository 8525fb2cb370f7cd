"""Reading a text into a context, a few chunks at a time, on from what of it was read before."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from sharedllm.chunks import Stored, chunk_rows
from sharedllm.context import Context
from sharedllm.encoded import add
from sharedllm.reader import Reader


def begun(reader: Reader, ids: Tensor, before: Context | None) -> Context:
    """A new context of the whole chunks of `before` that `ids` [n] begin with, sharing their storage; else empty."""
    if before is None or before.chunks == 0:
        return reader.new_context()
    return reader.bind(before).first(shared_chunks(ids, before))


def shared_chunks(ids: Tensor, context: Context) -> int:
    """How many whole encoded chunks of a context `ids` begin with."""
    n = min(len(ids), context.encoded_tokens)
    differ = (ids[:n] != context.ids[:n]).nonzero()
    return (int(differ[0]) if len(differ) else n) // context.shape["chunk_length"]


def read_on(context: Context, ids: Tensor, chunks: int, told: Callable[[int], None]) -> Generator[None, None, Context]:
    """Read the rest of `ids` [n], which begin as `context`, `chunks` chunks between two yields.

    Args:
        told: hears how many tokens were read just now.
    """
    reader = context.reader
    assert reader is not None
    at, C = context.encoded_tokens, reader.config.chunk_length
    while at < len(ids):
        piece = ids[at : at + chunks * C]
        for rows in chunk_rows(piece, C):
            add(context.blocks, reader.encode_rows(rows, stored=Stored(compact=context.compact)))
        context.ids = torch.cat([context.ids, piece])
        at += len(piece)
        told(len(piece))
        yield
    return context
