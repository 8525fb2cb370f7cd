"""A folder that keeps contexts: segments of encoded chunks that never change, and one manifest.

    context.json                the manifest: model, settings, documents, and which chunks each segment holds
    segment-<hash>.safetensors  chunks of one length: their token ids, and what is kept of them
    part-<hash>.safetensors     the same of a segment's first chunks, while the others are being read
    .lock                       held by the one process that writes

A chunk is named by a hash of all that its slots follow from (token ids, model, settings), so equal chunks are kept
once and what is stored is never read again. The manifest is replaced in one step: whoever reads sees one whole
state, and a writer that is killed loses the chunks that were in the model's layers, one on a CPU. Segments are mapped into
memory, not loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sharedllm.encoded import SEARCHED, Encoded
from sharedllm.errors import UsageError, WorkError
from sharedllm.files import UNFINISHED, take_name
from sharedllm.keep import Span
from sharedllm.manifest import (
    LOCK,
    MANIFEST,
    PART,
    READ,
    VERSION_2_SLOTS,
    Manifest,
    Segment,
    broken,
    check_target,
    find_document,
    is_ours,
    read_manifest,
    unreadable,
)

READ_ERRORS = (SafetensorError, OSError, KeyError, TypeError, ValueError)
"""What reading a file of chunks ends by that was removed, cut short or is of another content."""


def chunk_kind(kept: Encoded | None, model: str, shape: dict[str, int]) -> str:
    """What of a chunk's slots does not follow from its token ids; None where the ids alone are kept."""
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
        if not manifest.documents and not manifest.segments and not any(_parts(folder)):
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
    ids, kept = _read(file)
    if len(ids) != len(listed.chunks) or (kept is not None and kept.lengths.shape != ids.shape[:1]):
        raise ValueError(f"{file.name} does not hold {len(listed.chunks)} chunks")
    return ids, kept


def _read(file: Path) -> tuple[Tensor, Encoded | None]:
    """Token ids [X, n] of the chunks in a file, and what is kept of them."""
    with safe_open(file, framework="pt") as stored:
        tensors = {n: stored.get_tensor(n) for n in stored.keys() if n in Encoded.__dataclass_fields__}
        return stored.get_tensor("ids"), Encoded.of(tensors) if tensors else None


def _write(file: Path, ids: Tensor, kept: Encoded | None) -> int:
    """Write chunks with token ids [X, n] to a file; returns its size in bytes."""
    tensors = {"ids": ids, **({} if kept is None else vars(kept))}
    unfinished = file.with_name(file.name + UNFINISHED)
    # What is searched may be a view of what is stored: the file needs both.
    apart = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items() if n in SEARCHED}
    save_file({**{n: t.contiguous() for n, t in tensors.items()}, **apart}, unfinished)
    return take_name(unfinished, file)


def whole_segments(folder: Path, manifest: Manifest) -> dict[str, Segment]:
    """Those whose files are there, in their sizes."""
    return {name: listed for name, listed in manifest.segments.items() if _size(folder / name) == listed.bytes}


class Writer:
    """A store that this process alone may write to; `writing` gives it.

    Attributes:
        manifest: the state to come; None in a new folder.
        stored: names of the chunks that are there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest | None = None
        self.stored: set[str] = set()
        self._parts: dict[Path, Sequence[str]] = {}  # of the segments to come, with the chunks in them
        self._unfinished: set[str] = (
            set()
        )  # segments that no document uses: a command that was killed goes on from them
        if _current(folder):
            self.manifest = read_manifest(folder)
            self.manifest.segments = whole_segments(folder, self.manifest)
            self.stored, used = set(self.manifest.places()), self._used()
            self._unfinished = {n for n, s in self.manifest.segments.items() if used.isdisjoint(s.chunks)}

    def put(self, chunks: Sequence[str], ids: Tensor, kept: Encoded | None) -> None:
        """Write one segment: chunks named so, with token ids [X, n]. It counts from the next `commit` on."""
        assert self.manifest is not None
        file = self._file("segment", chunks)
        self.manifest.segments[file.name] = Segment(_write(file, ids, kept), list(chunks))
        self.stored.update(chunks)

    def put_part(self, chunks: Sequence[str], ids: Tensor, kept: Encoded) -> None:
        """Write chunks that will be in the next segment, so that whoever goes on after this process was killed finds them: in a
        new folder too, which gets its manifest now."""
        if not (self.folder / MANIFEST).exists():
            self.commit()
        file = self._file("part", chunks)
        _write(file, ids, kept)
        self._parts[file] = chunks

    def part(self, chunks: Sequence[str], ids: Tensor) -> Encoded | None:
        """What a process that was killed had put as this part; None where there is none, or not whole."""
        file = self._file("part", chunks)
        try:
            found, kept = _read(file)
        except READ_ERRORS:
            return None
        self._parts[file] = chunks
        return kept if torch.equal(found, ids) else None

    def _file(self, kind: str, chunks: Sequence[str]) -> Path:
        """The file that has some chunks. Models may share the names of their chunks, not files: what is committed must outlive
        saving another's over it."""
        assert self.manifest is not None
        made_of = " ".join(filter(None, [*chunks, self.manifest.model.partition("+")[2]]))
        return self.folder / f"{kind}-{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.safetensors"

    def commit(self) -> None:
        """Make the state of `manifest` the one that readers see."""
        assert self.manifest is not None
        unfinished = self.folder / (MANIFEST + UNFINISHED)
        unfinished.write_text(self.manifest.to_json(), encoding="utf-8")
        take_name(unfinished, self.folder / MANIFEST)
        for file in [file for file, chunks in self._parts.items() if self.stored.issuperset(chunks)]:
            file.unlink(missing_ok=True)
            del self._parts[file]

    def finish(self, only: bool = False) -> None:
        """Commit without the segments that no document uses any more.

        Args:
            only: also without those that none used before, which a command that was killed had read.
        """
        assert self.manifest is not None
        used, left = self._used(), set() if only else self._unfinished
        segments = self.manifest.segments.items()
        self.manifest.segments = {n: s for n, s in segments if n in left or not used.isdisjoint(s.chunks)}
        self.commit()
        if only:
            _drop_parts(self.folder)
        else:
            self._drop_stored_parts()

    def _drop_stored_parts(self) -> None:
        """Remove parts whose chunks are in segments by now, or that are not whole: whoever went on may have read them in other
        portions, on another machine, and so have asked for none of them."""
        assert self.manifest is not None
        stored = set(self.manifest.places())
        for file in _parts(self.folder):
            try:
                ids, kept = _read(file)
                kind = chunk_kind(kept, self.manifest.model, self.manifest.shape)
            except READ_ERRORS:
                stale = True
            else:
                stale = stored.issuperset(chunk_name(kind, row) for row in ids)
            if stale:
                file.unlink(missing_ok=True)

    def _used(self) -> set[str]:
        """Chunks that documents are made of."""
        assert self.manifest is not None
        return {chunk for document in self.manifest.documents.values() for chunk in document.chunks}

    def sweep(self) -> None:
        """Remove what the committed state does not name: segments out of use, and what a killed writer left."""
        if unreadable(self.folder):  # what it names is not known
            return
        keep = {MANIFEST, LOCK, *(read_manifest(self.folder).segments if _current(self.folder) else [VERSION_2_SLOTS])}
        for file in self.folder.iterdir():
            part = PART.fullmatch(file.name) and not file.name.endswith(UNFINISHED)
            if file.name not in keep and is_ours(file.name) and not part:
                file.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """Open a store to write, alone; a folder that is not there is made.

    Raises:
        UsageError: the folder holds something else, or another process is writing to it.
        WorkError: it cannot be written; what was committed stays, and so do whole parts of what was being read.
    """
    check_target(folder)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"another process is writing to {folder}; wait until it ends, or choose another folder."
        ) from error
    except OSError as error:
        raise WorkError(f"cannot write to {folder}: {error.strerror or error}.") from error
    try:
        store = Writer(folder)
        store.sweep()
        try:
            yield store
        finally:
            store.sweep()
    except (OSError, SafetensorError) as error:
        raise WorkError(f"writing {folder} failed ({error}); it is as it last was, whole.") from error
    finally:
        if not (folder / MANIFEST).exists():
            _drop_parts(folder)
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        lock.release()


def _drop_parts(folder: Path) -> None:
    """Remove what was read for segments that are not to come."""
    for file in _parts(folder):
        file.unlink(missing_ok=True)


def _parts(folder: Path) -> Iterator[Path]:
    """The files that hold chunks of segments to come."""
    return folder.glob("part-*.safetensors")


def _current(folder: Path) -> bool:
    """Whether a folder holds documents and segments, rather than nothing, a context of version 2 or what is left of one."""
    file = folder / MANIFEST
    if not file.exists() or unreadable(folder):
        return False
    return json.loads(file.read_text(encoding="utf-8")).get("version") in READ[1:]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1
