"""Folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sharedllm.errors import UsageError, WorkError


def replaceable(folder: Path, files: Collection[str], kind: str) -> None:
    """Raise `UsageError` when replacing `folder` would delete anything but the named `files`."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file, not {kind}; choose another folder.")
    if foreign := sorted(f.name for f in folder.iterdir() if f.name not in files):
        raise UsageError(f"{folder} holds {foreign[0]}, so it is not {kind} alone; choose another folder.")


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when the block ends well.

    Raises:
        WorkError: it cannot be written; the temporary is removed and `folder` is as before.
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise WorkError(f"cannot write to {folder.parent}: {error.strerror or error}.") from error
    try:
        yield temporary
        for file in temporary.iterdir():
            file.chmod(0o644)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        temporary.chmod(0o755)
        _take_place(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise WorkError(f"writing {folder} failed ({error}); what was there before is unchanged.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
