"""What reads documents into stores: one process' part, the same for every engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharedllm.chunks import Stored
from sharedllm.collection import SKETCHES, STORES
from sharedllm.collection.place import Place
from sharedllm.collection.records import FAILED, KEPT, SEARCHED_BY, Record, store_name
from sharedllm.collection.sketch import KIND, represented_by, save_sketch, sketch_made_of, sketch_of
from sharedllm.collection.sources import Source, read_bytes
from sharedllm.errors import SharedLLMError
from sharedllm.extract import text_of
from sharedllm.library import Library
from sharedllm.model import SharedLLM
from sharedllm.ray_pool import Setup
from sharedllm.sources import DEFAULT_MAX_BYTES, document_of, is_pdf
from sharedllm.store import chunk_kind, chunk_name

PDF_SECONDS, PDF_MEMORY = 600.0, 4 * 2**30
"""That taking the text out of a PDF may take, and the bytes of memory that it may have."""


class Worker:
    """Reads documents with one model into the stores of one place.

    Args:
        most_bytes: of a document; a larger one is not read.
        compact: as for `SharedLLM.read`.
    """

    def __init__(
        self, llm: SharedLLM, where: str | Path, most_bytes: int = DEFAULT_MAX_BYTES, compact: bool = False
    ) -> None:
        self.llm, self.place, self.most_bytes, self.compact = llm, Place(where), most_bytes, compact

    def made_with(self) -> str:
        """What chunks and sketches depend on besides their tokens; it begins with the model's whole identity."""
        reader, empty = self.llm.reader, self.llm.reader.new_context(self.compact)
        length = reader.config.chunk_length
        kind = chunk_kind(reader.layout(length, Stored(compact=empty.compact)), empty.fingerprint, empty.shape)
        _, _, facts = kind.partition(" ")
        return f"{empty.fingerprint} {facts} of {length}{SEARCHED_BY}{represented_by(reader.config)}"

    def read(self, sources: Sequence[Source]) -> list[Record]:
        """Read documents, each into its store; whatever is wrong with one is said in its record."""
        return [self._record(source) for source in sources]

    def _record(self, source: Source) -> Record:
        made = ""
        try:
            raw = read_bytes(source, self.most_bytes)
            made = hashlib.sha256(raw).hexdigest()
            name = store_name(source.name)
            tokens = self._keep(source.name, name, _text(source.name, raw))
        except SharedLLMError as error:
            reason = str(error)
        except Exception as error:  # a document that breaks its parser must not stop the others
            reason = f"reading '{source.name}' failed: {type(error).__name__}, {' '.join(str(error).split())[:200]}."
        else:
            return Record(
                source.name, source.version, source.bytes, KEPT, made, tokens, name, made_with=self.made_with()
            )
        return Record(source.name, source.version, source.bytes, FAILED, made, reason=reason)

    def _keep(self, source: str, name: str, text: str) -> int:
        """Read a text into the store `name`, unless it is there; returns its tokens."""
        ids = self.llm.reader.token_ids(text)
        sketch, made_of = f"{SKETCHES}/{name}.safetensors", chunk_name(f"{self.made_with()} {KIND}", ids)
        with self.place.store(f"{STORES}/{name}") as folder:
            library = Library(folder, self.llm, self.compact)
            there = library.holds(source, ids) and (self.place.remote or library.whole)
            if not (there and sketch_made_of(self.place.read(sketch) or b"") == made_of):
                library.update({source: ids}, only=True)
                self.place.write(sketch, save_sketch(sketch_of(library.context(), self.llm.config), made_of))
        return len(ids)


def _text(name: str, raw: bytes) -> str:
    """The text of a document; of a PDF, which can be made to take for ever, in a process of its own with limits.

    Raises:
        UsageError: there is none, it cannot be read, or not within these limits.
    """
    if is_pdf(name, raw):
        return text_of(name, raw, PDF_SECONDS, PDF_MEMORY)
    return document_of(name, raw).text


class LoadingWorker(Worker):
    """A worker in a process of its own, which loads its model itself.

    Args:
        loading: arguments of `SharedLLM.from_pretrained`.
        setup: folder and threads to work with.
        keeping: the other arguments of `Worker`.
    """

    def __init__(self, loading: dict[str, Any], setup: Setup, where: str, **keeping: Any) -> None:
        setup.apply()
        super().__init__(SharedLLM.from_pretrained(**loading), where, **keeping)
