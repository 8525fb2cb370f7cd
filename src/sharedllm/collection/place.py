"""Where a collection lies: a folder, or an address that fsspec knows (s3://, gs://, hf://, memory://, ...)."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from sharedllm.errors import SharedLLMError, UsageError, WorkError
from sharedllm.files import STALE_SECONDS, UNFINISHED, replaced_file, take_name
from sharedllm.manifest import LOCK, MANIFEST, SEGMENT

CACHE = Path("~/.cache/sharedllm/stores")
"""Expanded where it is used: not every user of this module has a home."""
HUB = "hf://"
HUB_KINDS = ("models", "datasets", "spaces", "kernels", "buckets")
"""What a path of the Hugging Face Hub may begin with, before `user/name`."""
MISSING = (FileNotFoundError, NotADirectoryError)


def is_address(where: str) -> bool:
    """Whether `where` is for fsspec, and not a path of this machine."""
    return "://" in where


def filesystem(address: str) -> tuple[Any, str]:
    """The fsspec filesystem of an address, and the path in it.

    Raises:
        UsageError: there is no such kind of address, a package for it is missing, or it says more than a path: such as a
            host, which the names of its files would not say again.
    """
    from fsspec.core import get_filesystem_class, split_protocol, url_to_fs

    try:
        kind = get_filesystem_class(split_protocol(address)[0] or "file")
        if "::" not in address and (more := kind._get_kwargs_from_urls(address)):
            raise UsageError(
                f"{address} says more than a path ({', '.join(sorted(more))}), which its files' own addresses would not; "
                "mount it, or copy it to where a path is all."
            )
        fs, path = url_to_fs(address)
    except ImportError as error:
        raise UsageError(f"{address} needs a package that is not installed ({error}).") from error
    except ValueError as error:
        raise UsageError(f"{address} is no address that can be opened: {error}.") from error
    return fs, str(path).rstrip("/")


class Place:
    """Files and stores below one folder or address; a name is a path in it, such as `stores/book`."""

    def __init__(self, where: str | Path) -> None:
        self.where = str(where).removeprefix("file://")
        self.remote = is_address(self.where)
        self.fs: Any = None
        if self.remote:
            self.fs, self.root = filesystem(self.where)
        else:
            self.where = self.root = str(Path(self.where))

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        with self._told("read"):
            try:
                return self.fs.cat_file(self._path(name)) if self.remote else Path(self._path(name)).read_bytes()
            except MISSING:
                return None

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        """The bytes of several files by name, at once where the backend can; those that are not there are left out."""
        if not self.remote:
            return {name: data for name in names if (data := self.read(name)) is not None}
        paths = {self._path(name): name for name in names}
        with self._told("read"):
            found = self.fs.cat(list(paths), on_error="return") if paths else {}
            for error in found.values():
                if isinstance(error, BaseException) and not isinstance(error, MISSING):
                    raise error
        there = {path: data for path, data in found.items() if not isinstance(data, MISSING)}
        return {name: there[path] for path, name in paths.items() if path in there}

    def names(self, folder: str) -> set[str]:
        """The names of what lies in a folder; none where there is no such folder."""
        with self._told("read"):
            try:
                if not self.remote:
                    return set(os.listdir(self._path(folder)))
                self.fs.invalidate_cache(self._path(folder))
                return {PurePosixPath(path).name for path in self.fs.ls(self._path(folder), detail=False)}
            except MISSING:
                return set()

    def address(self, name: str) -> str:
        """The name by which any process finds a file of a remote place."""
        return str(self.fs.unstrip_protocol(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a file in one step: whoever reads sees the one before or this one."""
        with self._told("write to"):
            if self.remote:
                path = self._path(name)
                self._make(path.rpartition("/")[0])
                self.fs.pipe_file(path, data)
                return
            file = Path(self._path(name))
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_name(file.name + UNFINISHED)
            unfinished.write_bytes(data)
            take_name(unfinished, file)

    def exists(self, name: str) -> bool:
        with self._told("read"):
            return bool(self.fs.exists(self._path(name))) if self.remote else Path(self._path(name)).exists()

    @contextmanager
    def store(self, name: str) -> Iterator[Path]:
        """A folder to look at the store `name` and to write it in; what is written is the place's when the block ends.

        Of a remote store the folder holds the manifest alone. It is uploaded segments first and its manifest last, so
        that whoever reads sees one whole state, and an upload that is cut off leaves the one before.
        """
        if not self.remote:
            yield Path(self._path(name))
            return
        with tempfile.TemporaryDirectory(prefix="sharedllm-") as temporary:
            folder = Path(temporary) / "store"
            before = self.read(f"{name}/{MANIFEST}")
            if before is not None:
                folder.mkdir()
                (folder / MANIFEST).write_bytes(before)
            yield folder
            if not (folder / MANIFEST).exists():
                return
            read = any(SEGMENT.fullmatch(file.name) for file in folder.iterdir())  # again, where one was lost
            if read or (folder / MANIFEST).read_bytes() != before:
                self._upload(folder, name)

    def fetch(self, name: str) -> Path:
        """The folder of a store on this machine; of a remote one what is not there yet is downloaded.

        Raises:
            UsageError: there is no such store.
        """
        if not self.remote:
            return Path(self._path(name))
        manifest = self.read(f"{name}/{MANIFEST}")
        with self._told("read"):
            folder = cache = CACHE.expanduser()
        before: bytes | None = None
        while manifest is not None and manifest != before:  # else a writer removed what this state needs
            before = manifest
            folder = cache / hashlib.sha256((self.address(name) + _model_of(manifest)).encode()).hexdigest()[:32]
            self._download(name, folder, _segments(manifest))
            manifest = self.read(f"{name}/{MANIFEST}")
        if manifest is None:
            raise UsageError(f"{self.where} holds no {name}.")
        with self._told("read"):
            with replaced_file(folder / MANIFEST) as unfinished:
                unfinished.write_bytes(manifest)
            _tidy(folder, {MANIFEST, LOCK, *_segments(manifest)})
        return folder

    def _download(self, name: str, folder: Path, segments: set[str]) -> None:
        """Bring those segments of a remote store that are not in a folder yet; one that is gone by then is left out."""
        with self._told("read"), suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            self.fs.invalidate_cache(self._path(name))
            for info in self.fs.ls(self._path(name), detail=True):
                file = folder / Path(info["name"]).name
                if file.name not in segments or (file.exists() and file.stat().st_size == info["size"]):
                    continue  # a segment of this name and this model has this content
                with suppress(FileNotFoundError), replaced_file(file) as unfinished:
                    self.fs.get_file(info["name"], str(unfinished))

    def _upload(self, folder: Path, name: str) -> None:
        segments = [f for f in folder.iterdir() if SEGMENT.fullmatch(f.name) and not f.name.endswith(UNFINISHED)]
        files = [*sorted(segments), folder / MANIFEST]
        with self._told("write to"):
            self._make(self._path(name))
            for file in files:
                self.fs.put_file(str(file), f"{self._path(name)}/{file.name}")
            kept = {file.name for file in files}
            for path in self.fs.ls(self._path(name), detail=False):
                if Path(path).name not in kept:
                    self.fs.rm_file(path)

    def _make(self, folder: str) -> None:
        """Make a folder where the backend has folders, but no bucket or repository where it has those."""
        top = self._top()
        if top and not self.fs.exists(top):
            raise OSError(f"there is no {top}")
        self.fs.makedirs(folder, exist_ok=True)

    def _top(self) -> str:
        """The bucket, or the repository of the Hugging Face Hub without its revision, that the place lies in."""
        parts = self.root.split("/")
        if not self.where.startswith(HUB):
            return parts[0]
        return "/".join(parts[: 3 if parts[0] in HUB_KINDS else 2]).partition("@")[0]

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Errors of a backend, which can be of any class, as one sentence."""
        try:
            yield
        except SharedLLMError:
            raise
        except Exception as error:
            raise WorkError(f"cannot {what} {self.where}: {str(error) or type(error).__name__}.") from error


def _tidy(folder: Path, keep: set[str]) -> None:
    """Remove the segments that a newer state of a store has no use for, and what a killed process left of a download."""
    for file in folder.iterdir():
        with suppress(OSError):  # another process did, or reads it where what is read cannot be removed
            old = not file.name.endswith(UNFINISHED) or time.time() - file.stat().st_mtime > STALE_SECONDS
            if old and file.name not in keep:
                file.unlink()


def _segments(manifest: bytes) -> set[str]:
    """The files that a manifest names; none of one that is broken."""
    try:
        return set(json.loads(manifest)["segments"])
    except (ValueError, KeyError, TypeError):
        return set()


def _model_of(manifest: bytes) -> str:
    """The identity of the model that a store was made with; empty where its manifest does not say.

    Segments of two models that agree in what fingerprints look at have the same names, and other slots.
    """
    try:
        return str(json.loads(manifest).get("model", ""))
    except (ValueError, AttributeError):
        return ""
