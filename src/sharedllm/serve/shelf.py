"""The contexts that a server keeps by id: uploaded, read, asked, appended to, deleted.

Those used least recently leave memory for the disk, where they are asked as well, only slower. Everything that is
read is on the disk; what a restart finds half read is read on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from sharedllm.context import Context
from sharedllm.model import SharedLLM
from sharedllm.serve.engine import Engine
from sharedllm.serve.entry import ABOUT, ID, Entry, new_id, state_of
from sharedllm.serve.failures import ApiError, as_api_error
from sharedllm.serve.folder import left_over, opened
from sharedllm.serve.keeping import Keeping
from sharedllm.serve.long_prompts import LongPrompts
from sharedllm.serve.metrics import Metrics
from sharedllm.serve.reading import begun, read_on
from sharedllm.serve.settings import Settings


class Shelf:
    """All contexts of one server; its methods may be called from any thread."""

    def __init__(self, llm: SharedLLM, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self.llm, self.engine, self.settings, self.metrics = llm, engine, settings, metrics
        self.kept = Keeping(llm, settings, metrics)
        self.contexts = self.kept.contexts
        self.prompts = LongPrompts(self.kept)
        self._folder = settings.folder / "contexts"
        self._encoding: set[str] = set()
        self._going: set[str] = set()  # deleted here, and not yet on the disk
        self._adding = threading.Lock()

    def open(self) -> None:
        """Take up what an earlier server kept, and remove what it had not come to."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for place in sorted(self._folder.iterdir()):
            if left_over(place, self.settings.shared):
                Entry(place.name, place).remove()
                continue
            if (entry := opened(place, self.llm, self.settings.shared)) is None:
                continue
            if entry.status == "reading" and self.settings.shared:
                continue  # another server may be at it; who names it first has it read here
            self.contexts[entry.id] = entry
            if entry.status == "reading":
                self._start(entry)
        self.prompts.open()
        self.kept.later(self.kept.fit).result()

    def close(self) -> None:
        """Write down what was read so far; the engine must have ended."""
        for entry in list(self.contexts.values()):
            if entry.status == "reading" and entry.partial is not None and entry.partial.chunks:
                self.kept.later(self.kept.write, entry, entry.partial)
        self.kept.close()

    def get(self, name: str) -> Entry:
        """The entry of an id.

        Raises:
            ApiError: 404, there is none.
        """
        entry = None
        if ID.fullmatch(name):
            entry = self._shared_entry(name) if self.settings.shared else self.contexts.get(name)
        if entry is None:
            raise _missing(name)
        return entry

    def all(self, begin: bool = True) -> list[Entry]:
        """The contexts that are kept, those of other servers in the same folder among them.

        What cannot be looked at now is as this server last knew it.

        Args:
            begin: whether what others are reading is read here too.
        """
        others = []
        if self.settings.shared:
            on_disk = {about.parent.name for about in self._folder.glob(f"*/{ABOUT}")}
            for name in sorted({*self.contexts, *filter(ID.fullmatch, on_disk)}):
                with suppress(ApiError):
                    if (entry := self._shared_entry(name, begin)) is not None and name not in self.contexts:
                        others.append(entry)
        return [*self.contexts.values(), *others]

    def _shared_entry(self, name: str, begin: bool = True) -> Entry | None:
        """An entry as the servers that share the folder left it: opened again where another wrote it last.

        What another is reading, or was when it ended, is read here too.

        Args:
            begin: whether it is; else such an entry is given and not kept.
        """
        with self.kept.lock:
            ours, state = self.contexts.get(name), state_of(self._folder / name)
            if state is None or name in self._going:
                if ours is not None:
                    ours.deleted = True
                    self.contexts.pop(name, None)
                return None
            if ours is not None and state in ours.states:
                return ours
            if (entry := opened(self._folder / name, self.llm, self.settings.shared)) is None:
                return ours
            if entry.status == "reading" and not begin:
                self.contexts.pop(name, None)
                return entry
            self.contexts[name] = entry
        if entry.status == "reading":
            self._start(entry)
        return entry

    def ready(self, name: str) -> Context:
        """The context of an id, to be asked now: all that it was given, so none while a text is read on to it.

        Raises:
            ApiError: 404, there is none; 409, it is not read yet, or cannot be.
        """
        entry = self.get(name)
        context = entry.context
        if context is None or not entry.whole:
            if entry.error is not None:
                raise ApiError(409, entry.error, "context_failed", "context")
            read = 100 * entry.describe()["read_tokens"] // max(1, len(entry.ids))
            raise ApiError(409, f"the context is still being read ({read} %); ask when it is ready.", "context_not_ready", "context", 2)  # fmt: skip
        entry.used = time.monotonic()
        return context

    def add(self, name: str, text: Tensor) -> Entry:
        """Keep a new context of a text [n]; it is read from now on.

        Raises:
            ApiError: 413, it takes more memory than there is for contexts; 507, the disk has no room for it.
        """
        key = new_id()
        entry = Entry(key, self._folder / key, [name], ids=text, model=self.kept.llm.fingerprint)
        with self._adding:
            try:
                self._keep_text(entry)
            except ApiError:
                entry.remove()
                raise
            with self.kept.lock:
                self.contexts[key] = entry
        self._start(entry)
        self.kept.count()
        return entry

    def append(self, key: str, name: str, text: Tensor) -> Entry:
        """Read a text [n] on to a context.

        Raises:
            ApiError: 404, there is none, or no more; 409, it is being read, cannot be, or another server changed it
                meanwhile; 413 and 507 as for `add`.
        """
        with self._adding:
            entry = self._appended(key, name, text)
        self._start(entry)
        return entry

    def _appended(self, key: str, name: str, text: Tensor) -> Entry:
        with self.kept.lock:
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
            self._keep_text(entry, known=True)
        except ApiError:
            entry.ids, entry.documents = before
            raise
        return entry

    def delete(self, key: str) -> None:
        """Forget a context; reading it ends. Once this returns no server finds it again, nor does one that starts.

        Raises:
            ApiError: 404, there is none; 5xx, its folder cannot be changed.
        """
        with self.kept.lock:
            entry = self.get(key)
            try:
                entry.forget()
            except OSError as error:
                raise as_api_error(error) from error
            entry.deleted = True
            self.contexts.pop(key, None)
            self._going.add(key)
        self.kept.later(self._remove, entry)
        self.kept.count()

    def _remove(self, entry: Entry) -> None:
        """Take a context that was deleted off the disk; by the thread that writes."""
        entry.remove()
        self._going.discard(entry.id)

    def encoded(self, entry: Entry, context: Context) -> Generator[None, None, Context]:
        """A context of an entry with its chunks; one that fitted the window is encoded now, once if they may be kept; in slices."""
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
        if entry.context is not None and torch.equal(entry.context.ids, whole.ids) and self._fits(entry):
            entry.finish(whole)
            self.kept.later(self.kept.write, entry)
        return whole

    def _fits(self, entry: Entry) -> bool:
        """Whether the disk has room for the chunks of a text that fitted the window; else they serve one answer."""
        try:
            self.kept.budget.check_disk(len(entry.ids), self._others(entry), encoded=True)
        except ApiError:
            return False
        return True

    def _others(self, entry: Entry) -> list[Entry]:
        return [other for other in self.all(begin=False) if other.id != entry.id]

    def _keep_text(self, entry: Entry, known: bool = False) -> None:
        """Have a text on the disk before it is read, or refuse it.

        Args:
            known: whether the entry has a folder, which another server may have changed.
        """
        self.kept.budget.check_memory(len(entry.ids))
        self.kept.budget.check_disk(len(entry.ids), self._others(entry))

        def save_text() -> None:
            if entry.deleted:
                raise _missing(entry.id)
            if self.settings.shared and known and entry.overtaken:
                raise ApiError(409, "another server has changed this context meanwhile; try again.", "context_changed")
            entry.save_text()

        try:
            self.kept.later(save_text).result()
        except OSError as error:
            raise as_api_error(error) from error

    def _start(self, entry: Entry, again: bool = True) -> None:
        """Have an entry read.

        Args:
            again: whether that is tried once more where memory runs out.
        """
        try:
            self.kept.budget.check_memory(len(entry.ids))
        except ApiError as error:  # it was kept by a server that had more memory
            entry.fail(str(error))
            return
        entry.partial = begun(self.llm.reader, entry.ids, entry.partial or entry.context)
        entry.marks = []
        done = self.engine.do(self.kept.read_and_write(entry), lambda: self._unwanted(entry))

        def ended(future: Any) -> None:
            if not future.cancelled() and (error := future.exception()) is not None:
                self._failed(entry, error, again)

        done.add_done_callback(ended)

    def _unwanted(self, entry: Entry) -> bool:
        """Whether an entry is not to be read on, as far as it can be told now."""
        try:
            return self.kept.overtaken(entry)
        except ApiError:
            return False

    def _failed(self, entry: Entry, error: BaseException, again: bool) -> None:
        """Keep the whole chunks of a reading that failed: on the disk, and in memory for the next try, if there is one."""
        part = self.kept.part(entry)
        if part is not None:
            self.kept.later(self.kept.write_part, entry, part)
        if again and isinstance(error, ApiError) and error.code == "out_of_memory":
            entry.partial, entry.reserved = part, 0
            with suppress(ApiError):  # the server is shutting down, and writes what was read
                self._start(entry, again=False)
            return
        entry.fail(str(error))


def _missing(name: str) -> ApiError:
    return ApiError(404, f"there is no context {name[:60]!r}; GET /v1/contexts lists them.", "context_not_found")
