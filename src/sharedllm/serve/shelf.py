"""The contexts that a server keeps: uploaded ones by id, long prompts by a hash of their tokens.

Those used least recently leave memory for the disk, where they are asked as well, only slower. Everything that is
read is on the disk; what a restart finds half read is read on.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from sharedllm.context import Context
from sharedllm.errors import SharedLLMError
from sharedllm.model import SharedLLM
from sharedllm.serve.budget import Budget, held_bytes
from sharedllm.serve.engine import Engine, as_api_error
from sharedllm.serve.entry import ABOUT, ID, Entry, new_id, state_of
from sharedllm.serve.failures import ApiError
from sharedllm.serve.metrics import Metrics
from sharedllm.serve.reading import begun, read_on, shared_chunks
from sharedllm.serve.settings import Settings

log = logging.getLogger(__name__)


class Shelf:
    """All contexts of one server; its methods may be called from any thread."""

    def __init__(self, llm: SharedLLM, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self.llm, self.engine, self.settings, self.metrics = llm, engine, settings, metrics
        self.contexts: dict[str, Entry] = {}
        self.prompts: dict[str, Entry] = {}
        self.budget = Budget(llm, settings)
        self._encoding: set[str] = set()
        self._adding = threading.Lock()
        self._lock = threading.RLock()
        self._disk = ThreadPoolExecutor(1, "disk")

    def open(self) -> None:
        """Take up what an earlier server kept."""
        for kind, entries in (("contexts", self.contexts), ("prompts", self.prompts)):
            folder = self.settings.folder / kind
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for place in sorted(folder.iterdir()):
                try:
                    entry = Entry.open(place, self.llm)
                except (SharedLLMError, OSError, ValueError, KeyError, TypeError) as error:
                    log.warning("a kept context cannot be used", extra={"context": place.name, "reason": str(error)})
                    continue
                entries[entry.id] = entry
                if entry.status == "reading" and not self.settings.shared:  # else another server may be at it
                    self._start(entry)
        self._fit()

    def close(self) -> None:
        """Write down what was read so far; the engine must have ended."""
        for entry in self._entries():
            if entry.status == "reading" and entry.partial is not None and entry.partial.chunks:
                self._disk.submit(self._save, entry, entry.partial)
        self._disk.shutdown(wait=True)

    def get(self, name: str) -> Entry:
        """The entry of an id.

        Raises:
            ApiError: 404, there is none.
        """
        entry = self.contexts.get(name) if ID.fullmatch(name) else None
        if self.settings.shared and ID.fullmatch(name):
            entry = self._shared_entry(name, entry)
        if entry is None:
            raise ApiError(404, f"there is no context {name[:60]!r}; GET /v1/contexts lists them.", "context_not_found")
        return entry

    def all(self) -> list[Entry]:
        """The contexts that are kept, those of other servers in the same folder among them."""
        if self.settings.shared:
            for about in sorted((self.settings.folder / "contexts").glob(f"*/{ABOUT}")):
                with suppress(ApiError):
                    self.get(about.parent.name)
        return list(self.contexts.values())

    def _shared_entry(self, name: str, ours: Entry | None) -> Entry | None:
        """An entry as the servers that share the folder left it: opened again where another wrote it last.

        What another is reading, or was when it ended, is read here too.
        """
        place = self.settings.folder / "contexts" / name
        with self._lock:
            state = state_of(place)
            if state is None:
                if ours is not None:
                    ours.deleted = True
                    del self.contexts[name]
                return None
            if ours is not None and state in ours.states:
                return ours
            try:
                self.contexts[name] = entry = Entry.open(place, self.llm)
            except (SharedLLMError, OSError, ValueError, KeyError, TypeError) as error:
                log.warning("a kept context cannot be used", extra={"context": name, "reason": str(error)})
                return ours
        if entry.status == "reading":
            self._start(entry)
        return entry

    def ready(self, name: str) -> Context:
        """The context of an id, to be asked now.

        Raises:
            ApiError: 404, there is none; 409, it is not read yet, or cannot be.
        """
        entry = self.get(name)
        if entry.context is None:
            if entry.error is not None:
                raise ApiError(409, entry.error, "context_failed", "context")
            read = 100 * entry.describe()["read_tokens"] // max(1, len(entry.ids))
            raise ApiError(409, f"the context is still being read ({read} %); ask when it is ready.", "context_not_ready", "context", 2)  # fmt: skip
        entry.used = time.monotonic()
        return entry.context

    def add(self, name: str, text: Tensor) -> Entry:
        """Keep a new context of a text [n]; it is read from now on.

        Raises:
            ApiError: 413, it takes more memory than there is for contexts; 507, the disk has no room for it.
        """
        key = new_id()
        entry = Entry(key, self.settings.folder / "contexts" / key, [name], ids=text)
        with self._adding:
            self._keep_text(entry)
            with self._lock:
                self.contexts[key] = entry
        self._start(entry)
        self._count()
        return entry

    def append(self, key: str, name: str, text: Tensor) -> Entry:
        """Read a text [n] on to a context.

        Raises:
            ApiError: 404, there is none; 409, it is being read, cannot be, or another server changed it meanwhile;
                413 and 507 as for `add`.
        """
        with self._adding:
            entry = self._appended(key, name, text)
        self._start(entry)
        return entry

    def _appended(self, key: str, name: str, text: Tensor) -> Entry:
        with self._lock:
            entry = self.get(key)
            if entry.error is not None:
                raise ApiError(409, entry.error, "context_failed")
            if entry.status != "ready":
                raise ApiError(
                    409, "the context is still being read; append to it when it is ready.", "context_not_ready"
                )
            before = entry.ids, entry.documents
            entry.ids, entry.documents = torch.cat([entry.ids, text]), [*entry.documents, name]
        try:
            self._keep_text(entry)
        except ApiError:
            entry.ids, entry.documents = before
            raise
        return entry

    def delete(self, key: str) -> None:
        """Forget a context; reading it ends."""
        with self._lock:
            entry = self.get(key)
            entry.deleted = True
            del self.contexts[key]
        self._disk.submit(entry.remove)
        self._count()

    def prompt(self, ids: Tensor) -> Generator[None, None, tuple[Context, int]]:
        """A context of a long prompt [n], and how many of its tokens need not be read again; in slices."""
        key = hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest()[:32]
        while (entry := self.prompts.get(key)) is not None and entry.context is None:
            yield  # another request reads the same
        if entry is not None and entry.context is not None:
            entry.used = time.monotonic()
            self._hit(len(ids), entry)
            return entry.context, len(ids)
        near = max(list(self.prompts.values()), key=lambda e: self._shared(ids, e), default=None)
        known = 0 if near is None else self._shared(ids, near) * self.llm.config.chunk_length
        if near is not None and known:
            self._hit(known, near)
        else:
            self.metrics.prompt_misses.inc()
        self.budget.check_memory(len(ids), encoded=True)
        entry = Entry(key, self.settings.folder / "prompts" / key, ids=ids)
        entry.partial = begun(self.llm.reader, ids, None if near is None or not known else near.context)
        with self._lock:
            self.prompts[key] = entry
        try:
            yield from self._read(entry)
        finally:
            if entry.context is None:  # given up
                self.prompts.pop(key, None)
        assert entry.context is not None
        return entry.context, known

    def encoded(self, entry: Entry, context: Context) -> Generator[None, None, Context]:
        """A context of an entry with its chunks; one that fitted the window is encoded now, once; in slices."""
        while entry.id in self._encoding:
            yield  # another request encodes the same
        if entry.context is not None and torch.equal(entry.context.ids, context.ids):
            context = entry.context
        if context.chunks or not context.tokens:
            return context
        self._encoding.add(entry.id)
        try:
            told = self.metrics.read_tokens.inc
            whole = yield from read_on(self.llm.reader.new_context(), context.ids, self.settings.slice_chunks, told)
        finally:
            self._encoding.discard(entry.id)
        if entry.context is not None and torch.equal(entry.context.ids, whole.ids):
            entry.finish(whole)
            self._disk.submit(self._save, entry, whole)
        return whole

    def _shared(self, ids: Tensor, entry: Entry) -> int:
        return 0 if entry.context is None else shared_chunks(ids, entry.context)

    def _hit(self, tokens: int, entry: Entry) -> None:
        self.metrics.prompt_hits.inc()
        self.metrics.known_tokens.inc(tokens)
        self.metrics.saved_seconds.inc(entry.seconds * tokens / max(1, len(entry.ids)))

    def _keep_text(self, entry: Entry) -> None:
        """Have a text on the disk before it is read, or refuse it."""
        self.budget.check_memory(len(entry.ids))
        self.budget.check_disk(len(entry.ids), [e for e in list(self.contexts.values()) if e is not entry])

        def save_text() -> None:
            if self.settings.shared and entry.id in self.contexts and entry.overtaken:
                raise ApiError(409, "another server has changed this context meanwhile; try again.", "context_changed")
            entry.save_text()

        try:
            self._disk.submit(save_text).result()
        except OSError as error:
            if entry.id not in self.contexts:
                entry.remove()
            raise as_api_error(error) from error

    def _start(self, entry: Entry) -> None:
        try:
            self.budget.check_memory(len(entry.ids))
        except ApiError as error:  # it was kept by a server that had more memory
            entry.error, entry.partial = str(error), None
            return
        entry.partial = begun(self.llm.reader, entry.ids, entry.partial or entry.context)
        entry.began, entry.began_seconds = entry.partial.tokens, entry.seconds
        done = self.engine.do(self._read(entry), lambda: self._overtaken(entry))

        def ended(future: Any) -> None:
            if not future.cancelled() and (error := future.exception()) is not None:
                entry.error, entry.partial, entry.reserved = str(error), None, 0

        done.add_done_callback(ended)

    def _read(self, entry: Entry) -> Generator[None, None, None]:
        """Read what an entry lacks, then let questions see it; a text that fits the window is not encoded."""
        assert entry.partial is not None
        while not self.budget.reserve(entry, self._entries(), encoded=entry.id not in self.contexts):
            yield  # until others are read
        self._disk.submit(self._fit)
        last = time.perf_counter()

        def told(tokens: int) -> None:
            entry.seconds += time.perf_counter() - last
            self.metrics.reading_seconds.inc(time.perf_counter() - last)
            self.metrics.read_tokens.inc(tokens)

        if entry.id in self.contexts and len(entry.ids) <= self.llm.window and not entry.partial.chunks:
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
        if entry.id in self.contexts or self.settings.prompt_disk_bytes:
            self._disk.submit(self._save, entry, context)
        else:
            self._disk.submit(self._fit)

    def _save(self, entry: Entry, context: Context) -> None:
        try:
            if not self._overtaken(entry):
                entry.save(context, self.settings.shared)
        except (SharedLLMError, OSError) as error:
            self.metrics.disk_errors.inc()
            log.error("a context cannot be written", extra={"context": entry.id, "reason": str(error)})
        finally:
            entry.unwritten = False
        self._fit()

    def _overtaken(self, entry: Entry) -> bool:
        """Whether an entry was deleted, or written by another server since: it is neither read on nor written then.

        What another server wrote or deleted is let go here; who names it next has it opened as it is then.
        """
        if entry.deleted or not self.settings.shared or not entry.overtaken:
            return entry.deleted
        with self._lock:
            if self.contexts.get(entry.id) is entry:
                del self.contexts[entry.id]
        return True

    def _fit(self) -> None:
        self.budget.fit(self._entries(), self.prompts)
        self._count()

    def _count(self) -> None:
        entries = self._entries()
        self.metrics.contexts.set(len(entries))
        self.metrics.memory_bytes.set(held_bytes(entries))

    def _entries(self) -> list[Entry]:
        return [*self.contexts.values(), *self.prompts.values()]
