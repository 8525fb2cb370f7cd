"""What a server keeps of the texts it read: in memory while that holds it, and on the disk, written by one thread."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from sharedllm.context import Context
from sharedllm.encoded import MERGED_CHUNKS
from sharedllm.errors import SharedLLMError
from sharedllm.model import SharedLLM
from sharedllm.serve.budget import Budget, held_bytes
from sharedllm.serve.entry import Entry
from sharedllm.serve.failures import ApiError
from sharedllm.serve.metrics import Metrics
from sharedllm.serve.reading import read_on
from sharedllm.serve.settings import Settings

log = logging.getLogger(__name__)
WRITE_SECONDS = 30.0  # of a reading, after which what was read so far is written: a server that is killed loses little
RETRY_SECONDS = 60.0  # after which what could not be written is written again, if anything happens at all


class Keeping:
    """All entries of one server; its methods may be called from any thread, unless they say otherwise.

    Attributes:
        contexts: uploaded texts, by id.
        prompts: long prompts that were read, by a hash of their tokens.
        lock: held while `contexts` changes, with what is decided from it.
    """

    def __init__(self, llm: SharedLLM, settings: Settings, metrics: Metrics) -> None:
        self.llm, self.settings, self.metrics = llm, settings, metrics
        self.contexts: dict[str, Entry] = {}
        self.prompts: dict[str, Entry] = {}
        self.lock = threading.RLock()
        self.budget = Budget(llm, settings)
        self._disk = ThreadPoolExecutor(1, "disk")
        self._retry = math.inf  # when, in monotonic time

    def entries(self) -> list[Entry]:
        return [*self.contexts.values(), *self.prompts.values()]

    def later(self, job: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have something done by the thread that writes, after what it was given before."""
        return self._disk.submit(job, *arguments)

    def close(self) -> None:
        """Write what is not written yet, and end."""
        self.later(self._write_left)
        self._disk.shutdown(wait=True)

    def read(self, entry: Entry, encoded: bool = False) -> Generator[None, None, None]:
        """Read what an entry lacks, then let questions see it; in slices, on the engine's thread.

        Args:
            encoded: whether it is encoded although it fits the window.
        """
        assert entry.partial is not None
        while not self.budget.reserve(entry, self.entries(), encoded):
            yield  # until others are read
        self.later(self.fit)
        last = time.perf_counter()

        def told(tokens: int) -> None:
            spent = time.perf_counter() - last
            entry.advance(spent)
            self.metrics.reading_seconds.inc(spent)
            self.metrics.read_tokens.inc(tokens)

        if not encoded and len(entry.ids) <= self.llm.window and not entry.partial.chunks:
            entry.partial.ids = entry.ids
        slices = read_on(entry.partial, entry.ids, self.settings.slice_chunks, told)
        while len(entry.partial.ids) < len(entry.ids):
            last = time.perf_counter()
            next(slices)
            yield
        context, entry.reserved = entry.partial, 0
        entry.unwritten = self.settings.shared and entry.id in self.contexts
        entry.finish(context)
        entry.partial = None
        entry.used = time.monotonic()

    def read_and_write(self, entry: Entry) -> Generator[None, None, None]:
        """Read an entry as `read` does, and write it down; from time to time, once that is done, what was read so far."""
        writing: Future[Any] | None = None
        began = time.monotonic()
        for _ in self.read(entry):
            if time.monotonic() - began >= WRITE_SECONDS and (writing is None or writing.done()):
                began, part = time.monotonic(), self.part(entry, MERGED_CHUNKS)
                writing = None if part is None else self.later(self.write_part, entry, part)
            yield
        self.later(self.write, entry)

    def part(self, entry: Entry, together: int = 1) -> Context | None:
        """The whole chunks that were read so far of an entry, in groups of so many; None where there are none."""
        partial = entry.partial
        read = 0 if partial is None else len(partial.ids) // self.llm.config.chunk_length
        chunks = read // together * together
        return partial.first(chunks) if partial is not None and chunks else None

    def write(self, entry: Entry, context: Context | None = None) -> None:
        """Write down what was read of an entry, if it is kept on the disk, and make room; by the thread that writes.

        Args:
            context: what was read so far; None: what questions see.
        """
        context = entry.context if context is None else context
        if context is not None and self._on_disk(entry):
            self._written(entry, context)
        self.fit()

    def write_part(self, entry: Entry, part: Context) -> None:
        """Write down what was read so far of an entry, unless questions see as much by now; by the thread that writes.

        Not where servers share the folder: whoever comes last would put it in the place of what another read to its end.
        """
        seen = entry.context
        if not self.settings.shared and (seen is None or seen.tokens < part.tokens):
            self.write(entry, part)

    def fit(self) -> None:
        """Hold everything to the memory and the disk that it may take; by the thread that writes.

        What another server wrote or deleted goes first: it is counted no more.
        """
        if time.monotonic() >= self._retry:
            self._write_left()
        for entry in list(self.contexts.values()) if self.settings.shared else ():
            with suppress(ApiError):  # it cannot be looked at now
                self.overtaken(entry)
        self.budget.fit(self.entries(), self.prompts)
        self.count()

    def count(self) -> None:
        entries = self.entries()
        self.metrics.contexts.set(len(entries))
        self.metrics.memory_bytes.set(held_bytes(entries))

    def overtaken(self, entry: Entry) -> bool:
        """Whether an entry was deleted, or written by another server since: it is neither read on nor written then.

        What another server wrote or deleted is let go here; who names it next has it opened as it is then.

        Raises:
            ApiError: 503, its folder cannot be looked at now.
        """
        if entry.deleted or not self.settings.shared or not entry.overtaken:
            return entry.deleted
        with self.lock:
            if self.contexts.get(entry.id) is entry:
                del self.contexts[entry.id]
        return True

    def _on_disk(self, entry: Entry) -> bool:
        return entry.id in self.contexts or self.settings.prompt_disk_bytes > 0

    def _write_left(self) -> None:
        """Write what was read and is not on the disk, such as while that was full; ends where it is full still."""
        self._retry = math.inf
        for entry in self.entries():
            context = entry.context
            if context is None or entry.saved or not entry.whole or not self._on_disk(entry):
                continue  # what is being read on is written then, all of it
            if not self._written(entry, context):
                return

    def _written(self, entry: Entry, context: Context) -> bool:
        """Write an entry unless it was overtaken; whether the disk took it."""
        try:
            if not self.overtaken(entry):
                entry.save(context, self.settings.shared)
        except (SharedLLMError, OSError) as error:
            self.metrics.disk_errors.inc()
            log.error("a context cannot be written", extra={"context": entry.id, "reason": str(error)})
            self._retry = min(self._retry, time.monotonic() + RETRY_SECONDS)
            return False
        finally:
            entry.unwritten = False
        return True
