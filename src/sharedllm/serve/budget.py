"""What contexts take: told before a text is read, and kept within the memory and the disk that they may take."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from sharedllm.context import Context
from sharedllm.errors import SharedLLMError
from sharedllm.model import SharedLLM
from sharedllm.serve.entry import SLOTS, Entry
from sharedllm.serve.failures import ApiError
from sharedllm.serve.settings import Settings

log = logging.getLogger(__name__)
ID_BYTES = 4  # of a token's id, which stays beside its slots


class Budget:
    """The memory and disk that one server's contexts may take."""

    def __init__(self, llm: SharedLLM, settings: Settings) -> None:
        self.llm, self.settings = llm, settings
        self._chunk_bytes = llm.reader.layout(llm.config.chunk_length).nbytes

    def bytes_of(self, tokens: int, encoded: bool = False) -> int:
        """Bytes kept of a text of so many tokens, in whole chunks.

        Args:
            encoded: whether it is encoded although it fits the window.
        """
        chunks = -(-tokens // self.llm.config.chunk_length) if encoded or tokens > self.llm.window else 0
        return chunks * self._chunk_bytes + tokens * ID_BYTES

    def most_tokens(self) -> int:
        """Tokens of a text that is encoded, above which it surely takes more memory than all contexts may."""
        return int(self.settings.memory_bytes / (self._chunk_bytes / self.llm.config.chunk_length + ID_BYTES))

    def check_memory(self, tokens: int, encoded: bool = False, whole: bool = True) -> None:
        """Raise `ApiError` 413 where a text takes more memory than all contexts may.

        Args:
            tokens: of all of it, what was read before included.
            whole: whether these are all; else it has more.
        """
        need, most = self.bytes_of(tokens, encoded), self.settings.memory_bytes
        if need > most:
            raise ApiError(
                413,
                f"a text of {'' if whole else 'more than '}{tokens:,} tokens takes {_megabytes(need)} of memory and this server has {_megabytes(most)} "
                "for contexts (--memory-gb); split it.",
                "context_too_large",
            )

    def check_disk(self, tokens: int, others: Iterable[Entry], encoded: bool = False) -> None:
        """Raise `ApiError` 507 where a text takes more disk than the other contexts leave, read to their ends."""
        taken = sum(max(e.disk_bytes, 0 if e.error else self.bytes_of(len(e.ids))) for e in others)
        need, most = self.bytes_of(tokens, encoded), self.settings.context_disk_bytes
        if taken + need > most:
            raise ApiError(
                507,
                f"a text of {tokens:,} tokens takes {_megabytes(need)} of disk, and {_megabytes(max(0, most - taken))} are "
                "left for contexts; delete some.",
                "disk_full",
            )

    def reserve(self, entry: Entry, entries: Collection[Entry], encoded: bool = False) -> bool:
        """Set memory apart for what is still to be read of an entry, if those being read leave enough; whether it did."""
        assert entry.partial is not None
        need = max(1, self.bytes_of(len(entry.ids), encoded) - entry.partial.nbytes)
        taken = sum(e.reserved for e in entries if e is not entry)
        if taken and taken + need > self.settings.memory_bytes:
            return False
        entry.reserved = need
        return True

    def fit(self, entries: Iterable[Entry], prompts: dict[str, Entry]) -> None:
        """Let entries leave memory, and prompts the disk, until both hold no more than they may; least used first.

        What is read on stays: its slots are in the hands of what is being read, and would be counted no more.
        """
        entries = sorted(entries, key=lambda e: e.used)
        over = held_bytes(entries) - self.settings.memory_bytes
        for entry in entries:
            if over > 0 and entry.loaded and entry.partial is None and (context := entry.context) is not None:
                if entry.saved:
                    over -= self._freed(entry, context)
                elif prompts.get(entry.id) is entry:
                    over -= context.nbytes
                    _forget(entry, prompts)
        over = sum(e.disk_bytes for e in list(prompts.values()) if e.saved) - self.settings.prompt_disk_bytes
        for entry in entries:
            if over > 0 and entry.saved and prompts.get(entry.id) is entry:
                over -= entry.disk_bytes
                _forget(entry, prompts)

    def _freed(self, entry: Entry, context: Context) -> int:
        """Let an entry's context leave memory, unless another has taken its place meanwhile; bytes that this frees."""
        try:
            stored = Context.load(entry.folder / SLOTS, self.llm)
        except (SharedLLMError, OSError) as error:  # another server may have deleted it
            log.warning("a context stays in memory", extra={"context": entry.id, "reason": str(error)})
            return 0
        return context.nbytes if entry.leave_memory(context, stored) else 0


def _forget(entry: Entry, prompts: dict[str, Entry]) -> None:
    entry.deleted = True
    prompts.pop(entry.id, None)
    entry.remove()  # its folder may hold what it grew from though it was not written itself


def held_bytes(entries: Iterable[Entry]) -> int:
    """Memory that entries take, or will once they are read."""
    return sum(e.reserved + (e.context.nbytes if e.loaded and e.context is not None else 0) for e in entries)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
