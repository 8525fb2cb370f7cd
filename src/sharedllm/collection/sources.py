"""Which documents there are to read: files, folders, patterns such as `notes/*.md`, and the same of any address."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path, PurePosixPath

from sharedllm.collection import RECORDS, STORES
from sharedllm.collection.place import filesystem, is_address
from sharedllm.errors import UsageError
from sharedllm.manifest import MANIFEST, PART, SEGMENT
from sharedllm.sources import STDIN, folder_files, is_kept, read_file


@dataclass(frozen=True)
class Source:
    """A document that is to be read."""

    name: str
    """Its path or address."""
    bytes: int
    version: str
    """Changes with the file: its time and size, or what a remote backend says of it."""


def find_sources(names: Sequence[str]) -> list[Source]:
    """All documents that `names` mean, each once, in the order given; what a folder or pattern gives is sorted.

    Hidden files and folders inside a folder are skipped, and so are saved contexts and collections, and parts of such that a
    killed process left.

    Raises:
        UsageError: one of the names is nothing that can be read, or means no file at all.
    """
    found: dict[str, Source] = {}
    for name in names:
        meant = list(_remote(name) if is_address(name) else _local(name))
        if not meant:
            raise UsageError(f"'{name}' has no file to read; check the path or the pattern.")
        for source in meant:
            found.setdefault(_same(source.name), source)
    return list(found.values())


def read_bytes(source: Source, most: int) -> bytes:
    """A document's bytes.

    Raises:
        UsageError: it is gone, larger than `most` bytes, binary, or cannot be read.
    """
    too_large = f"'{source.name}' is larger than the limit of {most:,} bytes: split it or raise the limit."
    if source.bytes > most:
        raise UsageError(too_large)
    if not is_address(source.name):
        return read_file(source.name, most)
    fs, path = filesystem(source.name)
    try:
        raw = bytes(fs.cat_file(path))
    except FileNotFoundError as error:
        raise UsageError(f"'{source.name}' does not exist: check the address.") from error
    if len(raw) > most:  # the backend did not say how large it is, or it has grown
        raise UsageError(too_large)
    return raw


def _same(name: str) -> str:
    """A name that a document has however it was named: from the working folder or the root, with `./` or without."""
    name = name.removeprefix("file://")
    return name if is_address(name) else str(Path(name).absolute())


def _local(name: str) -> Iterator[Source]:
    if name == STDIN:
        raise UsageError("'-' is no document that can be found again; with --separate name files or folders.")
    if not os.path.exists(name) and not has_magic(name):
        raise UsageError(f"'{name}' does not exist: check the path.")
    for path in [name] if os.path.exists(name) else _matches(name):
        for file in folder_files(path) if os.path.isdir(path) else [path]:
            if PART.fullmatch(os.path.basename(file)):
                continue
            try:
                about = os.stat(file)
            except FileNotFoundError:  # removed since it was listed
                continue
            yield Source(file, about.st_size, f"{about.st_size}-{about.st_mtime_ns}")


def _matches(pattern: str) -> list[str]:
    """The files and folders that a pattern means, sorted, without what this library keeps below its fixed part.

    As a folder does, `**` leaves out linked folders, which may lead back to where they are.
    """
    fixed = len(list(takewhile(lambda part: not has_magic(part), Path(pattern).parts)))
    left_out: dict[Path, bool] = {}

    def within(path: Path) -> bool:
        if len(path.parts) <= fixed:
            return False
        if path not in left_out:
            linked = "**" in pattern and path.is_symlink() and path.is_dir()
            left_out[path] = linked or is_kept(path) or within(path.parent)
        return left_out[path]

    found = (path for path in sorted(glob(pattern, recursive=True)) if not within(Path(path)))
    return [path for path in found if os.path.isdir(path) or os.path.isfile(path)]  # no pipes or dangling links


def _kept(files: Iterable[str]) -> set[str]:
    """The folders among those of remote files that are saved contexts or collections, by what lies in them."""
    files, found = set(files), set()
    for file in files:
        folder, _, name = file.rpartition("/")
        if (SEGMENT.fullmatch(name) or PART.fullmatch(name)) and f"{folder}/{MANIFEST}" in files:
            found.add(folder)
            outer, _, stores = folder.rpartition("/")[0].rpartition("/")
            if stores == STORES and f"{outer}/{RECORDS}" in files:
                found.add(outer)
    return found


def _remote(address: str) -> Iterator[Source]:
    fs, path = filesystem(address)
    fixed = "/".join(takewhile(lambda part: not has_magic(part), path.split("/")))
    try:
        fs.invalidate_cache()  # else a backend tells what it listed for an earlier call
        if has_magic(path):
            listed = fs.glob(path, detail=True)
        else:
            listed = fs.find(path, detail=True) if fs.isdir(path) else {path: fs.info(path)}
    except FileNotFoundError as error:
        raise UsageError(f"'{address}' does not exist: check the address.") from error
    except Exception as error:  # a backend's own, of any class
        raise UsageError(f"'{address}' cannot be read: {error or type(error).__name__}.") from error
    kept = _kept(listed)
    for file, about in sorted(listed.items()):
        parts = file.removeprefix(fixed).split("/")
        hidden = any(part.startswith(".") for part in parts) or PART.fullmatch(parts[-1])
        if about["type"] == "file" and not hidden and kept.isdisjoint(map(str, PurePosixPath(file).parents)):
            version = hashlib.sha256(repr(sorted(about.items(), key=str)).encode()).hexdigest()[:16]
            yield Source(fs.unstrip_protocol(file), int(about["size"] or 0), version)
