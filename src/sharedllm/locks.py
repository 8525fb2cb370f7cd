"""A folder that one process at a time writes to."""

from __future__ import annotations

from pathlib import Path

from filelock import BaseFileLock, Timeout

from sharedllm.errors import UsageError, WorkError


def taken(lock: BaseFileLock, busy: str, instead: str = "", mode: int = 0o777) -> BaseFileLock:
    """The lock, acquired at once; the folder it is in is made, with `mode`, where it is not there.

    Args:
        busy: what is said where another process has it.
        instead: what else could be done where the folder cannot be written to, with what goes before it.
    Raises:
        UsageError: another process has it.
        WorkError: the folder cannot be written to.
    """
    folder = Path(lock.lock_file).parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(busy) from error
    except OSError as error:
        raise WorkError(f"cannot write to {folder}: {error.strerror or error}{instead}.") from error
    return lock
