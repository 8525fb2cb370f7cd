"""A context in its folder: written chunk by chunk as one document, and opened again where it lies.

Source of the layout on the disk: `store.py` and `manifest.py`; `store_write.py` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sharedllm.encoded import MERGED_CHUNKS, SEARCHED, Encoded
from sharedllm.errors import UsageError
from sharedllm.keep import Span
from sharedllm.loading import same_model
from sharedllm.manifest import VERSION_2_SLOTS, Document, Manifest, broken, read_about, shape_of
from sharedllm.store import check_kept, chunk_kind, chunk_name, read_documents
from sharedllm.store_write import Writer, writing

if TYPE_CHECKING:
    from sharedllm.context import Context

SEGMENT_BYTES = 64 * 2**20  # of a file in a saved context: what a reader that is stopped reads again
Opened = tuple[Tensor, list[Encoded], list[Span]]
"""Of a document its token ids, its chunks, which stay on the disk, and its spans to keep."""


def write(folder: Path, context: Context) -> None:
    """See `Context.save`."""
    with writing(folder) as store:
        before = store.manifest
        names = list(before.documents) if before is not None else []
        if len(names) > 1:
            raise UsageError(f"{folder} holds {len(names)} documents; choose another folder, or use Library.add.")
        if before is not None and not same_model(before.model, context.fingerprint):
            before.segments = {}
            store.stored = set()  # chunks of another model, which may have the same names
        segments = {} if before is None else before.segments
        store.manifest = Manifest(context.fingerprint, context.shape, segments=segments)
        chunks = [chunk for ids, kept in _segments(context) for chunk in _put(store, context, ids, kept)]
        store.manifest.documents[names[0] if names else "text"] = Document(context.tokens, chunks, context.keep)
        store.finish(only=True)


def segment_chunks(kept: Encoded) -> int:
    """How many chunks such as these a segment holds, so that few large files result."""
    chunks = kept.lengths.shape[0]
    return max(1, min(MERGED_CHUNKS, SEGMENT_BYTES * chunks // max(1, kept.nbytes)))


def open_documents(folder: Path, names: Sequence[str] | None) -> tuple[str, dict[str, int], list[Opened]]:
    """The fingerprint of the model that read them, the settings they were read under, and the documents of a folder.

    Args:
        names: of those to open, in that order; None: all, in the order they were added.
    Raises:
        UsageError, WorkError: as `Context.load`.
    """
    if read_about(folder)["version"] == 2:
        if names is not None:
            raise UsageError(
                f"the context in {folder} is of an older version, without named documents; open all of it."
            )
        return _version_2(folder)
    manifest, documents = read_documents(folder, names)
    return manifest.model, manifest.shape, documents


def _segments(context: Context) -> Iterator[tuple[Tensor, Encoded | None]]:
    """What makes one segment each: token ids [X, n] of chunks of one length, and what is kept of them."""
    if not context.blocks and context.tokens:
        yield context.ids[None], None
    at = 0
    for block in context.blocks:
        X, n, most = len(block.lengths), int(block.lengths[0]), segment_chunks(block)
        ids = context.ids[at : at + X * n].view(X, n)
        at += X * n
        for first in range(0, X, most):
            yield ids[first : first + most], block[first : first + most]


def _put(store: Writer, context: Context, ids: Tensor, kept: Encoded | None) -> list[str]:
    """Write those of some chunks that `store` lacks; returns the names of all."""
    kind = chunk_kind(kept, context.fingerprint, context.shape)
    chunks = [chunk_name(kind, row) for row in ids]
    new = {chunk: i for i, chunk in enumerate(chunks) if chunk not in store.stored}
    if len(new) == len(chunks):
        store.put(chunks, ids, kept)
    elif new:
        at = list(new.values())
        store.put(list(new), ids[at], None if kept is None else Encoded.cat([kept[i : i + 1] for i in at]))
    return chunks


def _version_2(folder: Path) -> tuple[str, dict[str, int], list[Opened]]:
    """The one text of a folder of format version 2, all of it in one file."""
    about = read_about(folder)
    try:
        shape, blocks = shape_of(about), []
        with safe_open(folder / VERSION_2_SLOTS, framework="pt") as stored:
            ids: Tensor = stored.get_tensor("ids")
            for i in range(int(about["blocks"])):
                names = [n for n in Encoded.__dataclass_fields__ if n not in SEARCHED]
                blocks.append(Encoded.of({n: stored.get_tensor(f"{i:06d}.{n}") for n in names}))
                check_kept(blocks[-1])
        if len(ids) != about["tokens"]:
            raise ValueError(f"it holds {len(ids)} tokens, not {about['tokens']}")
        return str(about["model"]), shape, [(ids, blocks, [])]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise broken(folder, error) from error
