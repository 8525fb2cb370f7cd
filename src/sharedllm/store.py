"""A folder that keeps contexts: segments of encoded chunks that never change, and one manifest.

    context.json                the manifest: model, settings, documents, and which chunks each segment holds
    segment-<hash>.safetensors  chunks of one length: their token ids, and what is kept of them
    part-<hash>.safetensors     the same of a segment's first chunks, while the others are being read
    .lock                       held by the one process that writes

A chunk is named by a hash of all that its slots follow from (token ids, model, settings), so equal chunks are kept
once and what is stored is never read again. The manifest is replaced in one step: whoever reads sees one whole
state, and a writer that is killed loses the chunks that were in the model's layers, one on a CPU. Segments are mapped into
memory, not loaded. This file opens them; `store_write.py` writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sharedllm.encoded import Encoded
from sharedllm.errors import UsageError
from sharedllm.keep import Span
from sharedllm.manifest import Manifest, Segment, broken, find_document, read_manifest

WHOLE = (torch.int32, torch.int64)
READ_ERRORS = (SafetensorError, OSError, KeyError, TypeError, ValueError)
"""What reading a file of chunks ends by that was removed, cut short or is of another content."""


def chunk_kind(kept: Encoded | None, model: str, shape: dict[str, int]) -> str:
    """What of a chunk's slots does not follow from its token ids.

    Args:
        kept: of this chunk or any of its length; None: the ids alone.
    """
    model = model.partition("+")[0]  # a store is one model's; chunks keep the names that they had before there was more
    if kept is None:
        return f"{model} ids"
    layers, _, _, stored, width = kept.keys.shape
    numbers = kept.keys if kept.keys.is_floating_point() else kept.key_low
    if not kept.keys.is_floating_point() and width == kept.key_low.shape[-1]:  # else it looks like 16
        model = f"{model} 8 bits"
    if shape["compact"]:
        model = f"{model} compact, values of {shape['compared_layer']}"
    if shape["skipped_layers"]:
        model = f"{model} from layer {shape['skipped_layers']} and values of {shape['compared_layer']}"
    facts = (layers, shape["tree_depth"], shape["slots_per_leaf"], stored, kept.reps.shape[1], width, numbers.dtype)
    return " ".join(map(str, (model, *facts)))


def chunk_name(kind: str, ids: Tensor) -> str:
    """The name of a chunk with token ids [n], int32."""
    return hashlib.sha256(kind.encode() + b"\0" + ids.contiguous().numpy().tobytes()).hexdigest()[:32]


def read_documents(
    folder: Path, names: Sequence[str] | None = None
) -> tuple[Manifest, list[tuple[Tensor, list[Encoded], list[Span]]]]:
    """Token ids, encoded chunks and kept spans of each document; None: of all, in the order they were added.

    Chunks are mapped into memory.

    Raises:
        UsageError: there is no such document, or none at all.
        WorkError: a segment is missing, cut short or of another content.
    """
    failed: Manifest | None = None
    while True:
        manifest = read_manifest(folder)
        if not manifest.documents and not manifest.segments and not any(part_files(folder)):
            raise UsageError(f"{folder} holds no text; read one with `sharedllm encode`.")
        if not manifest.documents:
            raise UsageError(f"{folder} holds no text that was read to its end; run `sharedllm encode` again to go on.")
        chosen = list(manifest.documents) if names is None else [find_document(folder, manifest, n) for n in names]
        try:
            return manifest, _documents(folder, manifest, chosen)
        except READ_ERRORS as error:
            # Else a writer removed what this state needs: there is a newer one, or the same again, whole by now.
            if manifest == failed:
                raise broken(folder, error) from error
            failed = manifest


def _documents(
    folder: Path, manifest: Manifest, names: Sequence[str]
) -> list[tuple[Tensor, list[Encoded], list[Span]]]:
    places = manifest.places()
    opened: dict[str, tuple[Tensor, Encoded | None]] = {}
    found = []
    for name in names:
        document = manifest.documents[name]
        runs: list[list[Any]] = []  # segment, first, last: chunks that follow each other in the file too
        for chunk in document.chunks:
            if chunk not in places:
                raise ValueError(f"chunk {chunk} of {name} is in no segment")
            segment, at = places[chunk]
            if runs and runs[-1][0] == segment and runs[-1][2] == at:
                runs[-1][2] += 1
            else:
                runs.append([segment, at, at + 1])
        ids, blocks = [torch.empty(0, dtype=torch.int32)], []
        for segment, first, last in runs:
            if segment not in opened:
                opened[segment] = _open_segment(folder / segment, manifest.segments[segment])
            segment_ids, kept = opened[segment]
            ids.append(segment_ids[first:last].flatten())
            if kept is not None:
                blocks.append(kept[first:last])
        whole = torch.cat(ids)
        if len(whole) != document.tokens:
            raise ValueError(f"{name} has {len(whole)} tokens, not {document.tokens}")
        found.append((whole, blocks, document.keep))
    return found


def _open_segment(file: Path, listed: Segment) -> tuple[Tensor, Encoded | None]:
    """Token ids [X, n] of a segment's chunks, and what is kept of them: views of the file, which load when used."""
    if file.stat().st_size != listed.bytes:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes, not {listed.bytes}")
    ids, kept = read_chunks(file)
    if len(ids) != len(listed.chunks):
        raise ValueError(f"{file.name} does not hold {len(listed.chunks)} chunks")
    return ids, kept


def read_chunks(file: Path) -> tuple[Tensor, Encoded | None]:
    """Token ids [X, n] of the chunks in a file, and what is kept of them.

    Raises:
        ValueError: their numbers contradict each other; also whatever else is in `READ_ERRORS`.
    """
    with safe_open(file, framework="pt") as stored:
        tensors = {n: stored.get_tensor(n) for n in stored.keys() if n in Encoded.__dataclass_fields__}
        ids, kept = stored.get_tensor("ids"), Encoded.of(tensors) if tensors else None
    if ids.ndim != 2 or ids.dtype not in WHOLE:
        raise ValueError(f"{file.name} holds no token ids of chunks")
    if kept is not None:
        if kept.lengths.tolist() != [ids.shape[1]] * len(ids):
            raise ValueError(f"{file.name} does not hold {ids.shape[1]} tokens a chunk")
        check_kept(kept)
    return ids, kept


def check_kept(kept: Encoded) -> None:
    """Raise `ValueError` where what is kept of chunks is of tokens that they do not have, or that are out of order."""
    if kept.lengths.ndim != 1 or kept.lengths.dtype not in WHOLE:
        raise ValueError("lengths are not whole numbers, one a chunk")
    for tokens in (kept.tokens, kept.rep_tokens):
        if tokens.ndim != 2 or len(tokens) != len(kept.lengths) or tokens.dtype not in WHOLE:
            raise ValueError("stored tokens are not whole numbers, a row a chunk")
        before, after = tokens[:, :-1], tokens[:, 1:]
        falls = (after <= before) & (after < kept.lengths[:, None])  # behind a chunk's end nothing is said
        if bool((tokens < 0).any()) or bool(falls.any()):
            raise ValueError("stored tokens are out of order")


def part_files(folder: Path) -> Iterator[Path]:
    """The files that hold chunks of segments to come."""
    return folder.glob("part-*.safetensors")
