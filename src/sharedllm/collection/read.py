"""Reading documents into a collection: what is there is left alone, what is missing is read, nothing twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from sharedllm.collection import RECORDS, SKETCHES, STORES
from sharedllm.collection.place import Place
from sharedllm.collection.records import FAILED, KEPT, Record, alike, read_records, write_records
from sharedllm.collection.sources import Source, find_sources
from sharedllm.errors import SharedLLMError, UsageError, WorkError
from sharedllm.files import UNFINISHED, replaceable
from sharedllm.library import Library
from sharedllm.manifest import LOCK

BATCH_BYTES = 2**16
"""Short documents of alike length share a piece of work up to so many bytes."""
SAVED_EVERY = 30.0
"""Seconds between two writings of the manifest."""


class Engine(Protocol):
    """What reads batches of documents; see `engines`."""

    def made_with(self) -> str: ...

    def map(self, batches: Sequence[list[Source]]) -> Iterator[tuple[list[Source], list[Record] | SharedLLMError]]:
        """Each batch with its records, or with the reason why there are none, as they end."""


@dataclass
class Progress:
    """How far a reading is."""

    documents: int
    """That are to be read; those that were there are not counted."""
    bytes: int
    done: int = 0
    failed: int = 0
    done_bytes: int = 0
    tokens: int = 0


def read_collection(
    sources: Sequence[str],
    where: str | Path,
    engine: Engine,
    told: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Record]:
    """Read documents into the collection at `where`; returns all its records by source.

    Stopped in any way, the same call goes on. A document that cannot be read is reported in its record, and tried
    again by the next call.

    Args:
        sources: files, folders, patterns, or addresses of such.
        told: called after each batch.
    Raises:
        UsageError: a source does not exist, another process writes there, or it was made with another model.
        WorkError: the place cannot be written.
    """
    place = Place(where)
    found = [source for source in find_sources(sources) if not _own(place, source)]
    with _alone(place):
        records = read_records(place)
        made_with = engine.made_with()
        if any(r.state == KEPT and not alike(r.made_with, made_with) for r in records.values()):
            raise UsageError(f"{place.where} was made with another model, adapter or --compact; choose another folder.")
        there = _stored(place)
        missing = [s for s in found if not _known(s, records.get(s.name), there)]
        progress, saved = Progress(len(missing), sum(s.bytes for s in missing)), time.monotonic()
        try:
            for record in _read(engine, batches(missing)):
                records[record.source] = record
                _count(progress, record)
                told(progress)
                if time.monotonic() - saved > SAVED_EVERY:
                    write_records(place, records)
                    saved = time.monotonic()
        finally:
            write_records(place, records)
    return records


def batches(sources: Sequence[Source], most_bytes: int = BATCH_BYTES) -> list[list[Source]]:
    """Documents by length, the longest first, so that workers end together; short ones in batches."""
    made: list[list[Source]] = []
    size = most_bytes
    for source in sorted(sources, key=lambda s: (-s.bytes, s.name)):
        if size + source.bytes > most_bytes:
            made.append([])
            size = 0
        made[-1].append(source)
        size += source.bytes
    return made


def _read(engine: Engine, waiting: list[list[Source]]) -> Iterator[Record]:
    """Records as they come; the documents of a batch that failed as a whole are tried once more, one by one."""
    while waiting:
        again: list[list[Source]] = []
        for batch, result in engine.map(waiting):
            if not isinstance(result, SharedLLMError):
                yield from result
            elif len(batch) > 1:
                again += [[source] for source in batch]
            else:
                (source,) = batch
                yield Record(source.name, source.version, source.bytes, FAILED, reason=str(result))
        waiting = again


def _own(place: Place, source: Source) -> bool:
    """Whether a source is a part of the collection at this address, which may lack its manifest yet.

    That of a folder is known by what lies there, see `is_kept`.
    """
    if not place.remote:
        return False
    parts = tuple(place.address(f"{folder}/") for folder in (STORES, SKETCHES))
    return source.name == place.address(RECORDS) or source.name.startswith(parts)


def _stored(place: Place) -> set[str]:
    """Names of the stores that are there, each with its sketch; of those on this machine, whose files are all there."""
    sketches = place.names(SKETCHES)
    return {name for name in place.names(STORES) if f"{name}.safetensors" in sketches and _whole(place, name)}


def _whole(place: Place, store: str) -> bool:
    try:
        return place.remote or Library(place.fetch(f"{STORES}/{store}")).whole
    except SharedLLMError:  # its manifest is broken
        return False


def _known(source: Source, record: Record | None, there: set[str]) -> bool:
    """Whether a document needs not be opened: it is as it was when it was read, and what was read is there."""
    return record is not None and record.state == KEPT and record.version == source.version and record.store in there


def _count(progress: Progress, record: Record) -> None:
    progress.done += 1
    progress.done_bytes += record.bytes
    progress.tokens += record.tokens
    progress.failed += record.state == FAILED


@contextmanager
def _alone(place: Place) -> Iterator[None]:
    """Hold a local collection for this process; nothing is held where the backend has no locks.

    Raises:
        UsageError: another process writes there, or the folder holds something else.
    """
    if place.remote:
        yield
        return
    folder = Path(place.root)
    replaceable(folder, [RECORDS, RECORDS + UNFINISHED, LOCK, STORES, SKETCHES], "a collection")
    lock: Any = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        (folder / STORES).mkdir(exist_ok=True)  # stopped before its first record, it is a collection all the same
        (folder / RECORDS).touch()
    except Timeout as error:
        raise UsageError(f"another process is writing to {folder}; wait until it ends.") from error
    except OSError as error:
        raise WorkError(f"cannot write to {folder}: {error.strerror or error}.") from error
    try:
        yield
    finally:
        lock.release()
