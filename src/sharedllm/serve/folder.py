"""The folder of a server: had by one at a time unless it is shared, and what is found in it at the start."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from sharedllm.errors import SharedLLMError, UsageError
from sharedllm.files import STALE_SECONDS
from sharedllm.locks import taken
from sharedllm.model import SharedLLM
from sharedllm.serve.entry import ABOUT, ID, Entry, state_of
from sharedllm.serve.failures import ApiError

log = logging.getLogger(__name__)
LOCK = "server.lock"
PROMPT = re.compile(r"[0-9a-f]{32}")
OTHER_MODEL = "it was read with another model, adapter or version; start the server with that, or delete it and upload the text again."
BROKEN = "its files cannot be read or are not all there; delete it and upload the text again."


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Have a folder alone for as long as the block runs; one that is not there is made.

    Raises:
        UsageError: another server has it.
        WorkError: it cannot be written to.
    """
    busy = f"another server keeps its contexts in {folder}; give this one a folder of its own with --store."
    lock = taken(FileLock(folder / LOCK), busy, "; choose another folder with --store", mode=0o700)
    try:
        yield
    finally:
        lock.release()


def opened(place: Path, llm: SharedLLM, shared: bool) -> Entry | None:
    """What was kept in a folder.

    A context that cannot be used is there all the same and says why, so that it counts and may be deleted: it may be
    all that is left of a text, and another model may be able to use it. A prompt that cannot be used is removed.

    Args:
        shared: whether other servers write there too: what is not all there may be on its way then, and is left alone.
    """
    try:
        return Entry.open(place, llm)
    except (SharedLLMError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("a kept context cannot be used", extra={"context": place.name, "reason": str(error)})
        foreign = isinstance(error, UsageError)
        if ID.fullmatch(place.name) and (foreign or not shared):
            return _unusable(place, OTHER_MODEL if foreign else BROKEN)
        passing = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if PROMPT.fullmatch(place.name) and not shared and not passing:
            Entry(place.name, place).remove()
    return None


def left_over(place: Path, shared: bool) -> bool:
    """Whether a folder is what is left of a context that was deleted, or of an upload that nobody was told of: `about.json`,
    which is there before that and goes first, is missing.

    Args:
        shared: whether other servers write there too: one may be about to write it then, for an hour at most.
    """
    with suppress(ApiError, OSError):  # it cannot be looked at now
        if ID.fullmatch(place.name) and place.is_dir() and state_of(place) is None:
            return not shared or time.time() - place.stat().st_mtime > STALE_SECONDS
    return False


def _unusable(place: Path, error: str) -> Entry:
    entry = Entry(place.name, place, [place.name], error=error)
    with suppress(OSError, ValueError, KeyError, TypeError):
        about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
        entry.documents, entry.created = [str(d) for d in about["documents"]], int(about["created"])
        entry.states = "", str(about.get("state", ""))
    return entry
