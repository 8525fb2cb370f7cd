"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from sharedllm.errors import UsageError, WorkError

UNFINISHED = ".unfinished"
"""How the name of a file ends that is being written."""
STALE_SECONDS = 3600  # after which nobody writes to a temporary folder any more


def replaceable(folder: Path, files: Collection[str], kind: str) -> None:
    """Raise `UsageError` when replacing `folder` would delete anything but the named `files`."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file, not {kind}; choose another folder.")
    if foreign := sorted(f.name for f in folder.iterdir() if f.name not in files):
        raise UsageError(f"{folder} holds {foreign[0]}, so it is not {kind} alone; choose another folder.")


def take_name(unfinished: Path, file: Path) -> int:
    """Give a file its name once it is on the disk; returns its size in bytes."""
    _to_disk(unfinished)
    size = unfinished.stat().st_size
    unfinished.replace(file)
    _to_disk(file.parent)
    return size


def _to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replaced_file(file: Path) -> Iterator[Path]:
    """A name to write under, no other process's, whose file takes the place of `file`, on the disk, when the block ends well."""
    unfinished = file.with_name(f"{file.name}.{uuid4().hex}{UNFINISHED}")
    try:
        yield unfinished
        take_name(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well.

    What a process left that was killed at it, an hour ago or more, is removed; a folder that it had put aside and not
    replaced is put back.

    Raises:
        WorkError: it cannot be written; the temporary is removed and `folder` is as before.
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _mend(folder)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise WorkError(f"cannot write to {folder.parent}: {error.strerror or error}.") from error
    try:
        yield temporary
        for file in temporary.iterdir():
            file.chmod(0o644)
            _to_disk(file)
        temporary.chmod(0o755)
        _to_disk(temporary)
        _take_place(temporary, folder)
        _to_disk(folder.parent)
    except (OSError, SafetensorError) as error:
        raise WorkError(f"writing {folder} failed ({error}); what was there before is unchanged.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _mend(folder: Path) -> None:
    """Put a folder back that a killed process had put aside, and remove what else it left."""
    ours = re.compile(rf"\.{re.escape(folder.name)}-(old-)?[a-z0-9_]{{8}}")  # as `mkdtemp` names them
    for left, found in [(path, ours.fullmatch(path.name)) for path in folder.parent.iterdir()]:
        if found is None:
            continue
        if found[1] and (left / "was").is_dir() and not folder.exists():
            (left / "was").rename(folder)
        if left.is_dir() and time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _take_place(temporary: Path, folder: Path) -> None:
    if not folder.exists():
        temporary.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    folder.rename(old / "was")
    try:
        temporary.rename(folder)
    except BaseException:  # an interrupt too must not cost the old folder
        if not folder.exists():
            (old / "was").rename(folder)
        raise
    finally:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
