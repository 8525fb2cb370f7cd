"""Long prompts: read into contexts, and known again by a hash of their tokens.

A prompt that begins with whole chunks of another is read on from there. Once read it stands for those as well whose
whole chunks it holds: of a conversation that goes on the last state is kept, in the folder of the one before. What was
read of a prompt that is given up is kept as a prompt of its own, where the next try finds it.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Generator

from torch import Tensor

from sharedllm.context import Context
from sharedllm.serve.chat import surely_longer
from sharedllm.serve.entry import Entry
from sharedllm.serve.failures import ApiError
from sharedllm.serve.folder import opened
from sharedllm.serve.keeping import Keeping
from sharedllm.serve.reading import begun, shared_chunks


def key_of(ids: Tensor) -> str:
    """The name of a prompt of token ids [n], int32."""
    return hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest()[:32]


class LongPrompts:
    """The long prompts of one server; they are read on the engine's thread."""

    def __init__(self, kept: Keeping) -> None:
        self.kept, self.reader = kept, kept.llm.reader
        self._folder = kept.settings.folder / "prompts"
        self._length = self.reader.config.chunk_length

    def open(self) -> None:
        """Take up what an earlier server kept. A folder's name says nothing: its prompt may have grown."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for place in sorted(self._folder.iterdir()):
            if (entry := opened(place, self.kept.llm, self.kept.settings.shared)) is None:
                continue
            entry.id = key_of(entry.ids)
            self.kept.prompts[entry.id] = entry

    def check(self, ids: Tensor) -> None:
        """Raise `ApiError` 413 where a prompt [n] is not known and takes more memory than there is for contexts."""
        try:
            self.kept.budget.check_memory(len(ids), encoded=True)
        except ApiError:
            if key_of(ids) not in self.kept.prompts:
                raise

    def check_text(self, text: str) -> None:
        """Raise `ApiError` 413 as `check` would, and before all of a text is tokenised, where it is far too long."""
        kept = self.kept
        known = max((len(entry.ids) for entry in list(kept.prompts.values())), default=0)
        most = max(kept.budget.most_tokens(), known) + kept.llm.window  # which may hold some of it
        if len(text) > most and surely_longer(kept.llm.tokenizer, text, most):
            kept.budget.check_memory(most, encoded=True, whole=False)

    def context(self, ids: Tensor) -> Generator[None, None, tuple[Context, int]]:
        """A context of a prompt [n], and how many of its tokens need not be read again; in slices."""
        kept, key = self.kept, key_of(ids)
        while (entry := kept.prompts.get(key)) is not None and entry.context is None:
            yield  # another request reads the same
        if entry is not None and entry.context is not None:
            self._hit(len(ids), entry)
            return entry.context, len(ids)
        near = max(list(kept.prompts.values()), key=lambda e: self._shared(ids, e), default=None)
        known = 0 if near is None else self._shared(ids, near) * self._length
        entry = Entry(key, self._folder / secrets.token_hex(16), ids=ids)
        if near is not None and known:
            entry.seconds = self._hit(known, near)
        else:
            kept.metrics.prompt_misses.inc()
        kept.budget.check_memory(len(ids), encoded=True)
        entry.partial = begun(self.reader, ids, near.context if near is not None and known else None)
        kept.prompts[key] = entry
        try:
            yield from kept.read(entry, encoded=True)
        finally:
            if entry.context is None:
                self._give_up(entry)
        assert entry.context is not None
        kept.later(self._keep, entry)
        return entry.context, known

    def _shared(self, ids: Tensor, entry: Entry) -> int:
        return 0 if entry.context is None else shared_chunks(ids, entry.context)

    def _hit(self, tokens: int, entry: Entry) -> float:
        """Count so many tokens of a prompt as not read again; returns the seconds that reading them took."""
        entry.used = time.monotonic()
        seconds = entry.seconds * tokens / max(1, len(entry.ids))
        self.kept.metrics.prompt_hits.inc()
        self.kept.metrics.known_tokens.inc(tokens)
        self.kept.metrics.saved_seconds.inc(seconds)
        return seconds

    def _give_up(self, entry: Entry) -> None:
        """Keep the whole chunks that were read of a prompt that is late, failed, or that nobody waits for any more."""
        prompts, partial = self.kept.prompts, entry.partial
        prompts.pop(entry.id, None)
        assert partial is not None
        chunks = len(partial.ids) // self._length
        ids = partial.ids[: chunks * self._length]
        if not chunks or any(self._shared(ids, other) == chunks for other in list(prompts.values())):
            return  # others have them
        part = Entry(key_of(ids), entry.folder, ids=ids, seconds=entry.seconds)
        part.finish(partial.first(chunks))
        prompts[part.id] = part
        self.kept.later(self._keep, part)

    def _keep(self, entry: Entry) -> None:
        """Write a prompt down, in the place of those that it holds, so that their chunks are not written again.

        An answer that attends to one of those has its slots in its hands, and those of a file that goes stay until it
        ends. By the thread that writes, to which nothing happens between.
        """
        prompts = self.kept.prompts
        held = [other for other in list(prompts.values()) if self._holds(entry, other)]
        for other in sorted(held, key=lambda e: len(e.ids), reverse=True):
            prompts.pop(other.id, None)
            other.deleted = True
            if other.saved and not entry.folder.exists():
                entry.folder, entry.states = other.folder, other.states
            else:
                other.remove()
        self.kept.write(entry)

    def _holds(self, entry: Entry, other: Entry) -> bool:
        """Whether all whole chunks of another prompt, which is no longer than an entry, are the first ones of that."""
        if other is entry or entry.deleted or len(other.ids) > len(entry.ids):
            return False
        return 0 < len(other.ids) // self._length == self._shared(entry.ids, other)
