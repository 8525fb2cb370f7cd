"""Writing to a folder of contexts: segments and parts put beside what is there, and a manifest that takes the old one's place.

One process writes at a time. Source of the layout on the disk: `store.py`, which reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sharedllm.encoded import SEARCHED, Encoded
from sharedllm.errors import WorkError
from sharedllm.files import UNFINISHED, take_name
from sharedllm.locks import taken
from sharedllm.manifest import (
    LOCK,
    MANIFEST,
    PART,
    READ,
    VERSION_2_SLOTS,
    Manifest,
    Segment,
    check_target,
    is_ours,
    read_manifest,
    unreadable,
)
from sharedllm.store import READ_ERRORS, chunk_kind, chunk_name, part_files, read_chunks


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
        self._unfinished: set[str] = set()
        """Segments that no document uses: a command that was killed goes on from them."""
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
            found, kept = read_chunks(file)
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
        for file in part_files(self.folder):
            try:
                ids, kept = read_chunks(file)
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
    busy = f"another process is writing to {folder}; wait until it ends, or choose another folder."
    lock = taken(FileLock(folder / LOCK), busy)
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
    for file in part_files(folder):
        file.unlink(missing_ok=True)


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
