"""A library: documents kept in one folder, read once, added and removed one by one.

    library = Library("manuals.context", llm)
    library.add("grep", text)                      # on disk as it is read; stopped, the same call goes on
    llm.ask(library.context(), "Which option ...?")

Equal chunks are kept once, whichever documents they are in.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sharedllm.chunks import Stored, chunk_runs
from sharedllm.context import Context, Progress
from sharedllm.encoded import Encoded
from sharedllm.errors import UsageError, WorkError
from sharedllm.keep import Keep, Span
from sharedllm.loading import same_model
from sharedllm.manifest import LOCK, MANIFEST, Document, Manifest, find_document, read_manifest, unreadable
from sharedllm.model import SharedLLM
from sharedllm.reader import Reader
from sharedllm.saved import segment_chunks
from sharedllm.store import chunk_kind, chunk_name
from sharedllm.store_write import Writer, whole_segments, writing

Text = str | Sequence[int] | Tensor
Tokenised = tuple[Tensor, list[Span]]


@dataclass(frozen=True)
class Plan:
    """What reading some documents will take."""

    tokens: int
    """Of all of them."""
    new_tokens: int
    """Of the chunks that the library lacks, which alone are read."""
    bytes: int
    """That those will take on the disk."""


class Library:
    """Documents in a folder; made with the first one that is added.

    Raises:
        UsageError: the folder holds something else, or was made with another model or other settings.
    """

    def __init__(self, folder: str | Path, llm: SharedLLM | None = None, compact: bool | None = None) -> None:
        """Without `llm` documents can be listed and removed, not added.

        Args:
            compact: as for `SharedLLM.read`; None: as what is there, and not in a new folder.
        """
        self.folder, self.llm, self.compact = Path(folder), llm, compact
        self._check(self._manifest())

    @property
    def documents(self) -> dict[str, int]:
        """Tokens of each document, in the order they were added."""
        manifest = self._manifest()
        return {} if manifest is None else {name: d.tokens for name, d in manifest.documents.items()}

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        size = 0
        for file in self.folder.iterdir() if self.folder.exists() else ():
            with suppress(FileNotFoundError):  # another process, which writes, may have removed it
                size += file.stat().st_size if file.name != LOCK else 0
        return size

    def context(self, documents: Sequence[str] | None = None) -> Context:
        """Some documents as one context, in that order; None: all. Nothing is read or loaded."""
        return Context.load(self.folder, self.llm, documents)

    def add(self, name: str, text: Text, progress: Progress | None = None, keep: Keep = None) -> None:
        """Read a document and keep it; one of the same name is replaced. See `update`."""
        self.update({name: text}, progress=progress, keep={name: keep})

    def update(
        self,
        documents: Mapping[str, Text],
        only: bool = False,
        progress: Progress | None = None,
        keep: Mapping[str, Keep] | None = None,
    ) -> list[str]:
        """Read documents and keep them; those that ask see all of them at once, when all are read.

        What was read is on the disk before more is: chunk by chunk on a CPU, and as many as a GPU or several processes read at
        once; stopped in any way, the same call goes on from there, also after others have added or removed documents.

        Args:
            only: drop all other documents then, and what calls that were stopped had read of others.
            progress: called with tokens read and tokens to read, those of chunks that were there left out.
            keep: by document, what of it is kept from compression; see `SharedLLM.read`.
        Returns:
            documents whose former text is no longer kept: it was replaced by another, or dropped.
        Raises:
            UsageError: another process is writing, or the library was made with another model.
            WorkError: the disk is full or will be, or cannot be written; what was there stays. Or the manifest of what is to
                be kept besides is broken.
        """
        if not only and unreadable(self.folder):
            read_manifest(self.folder)  # which says so
        texts = self._tokenised(documents, keep)
        self._check(self._manifest())
        with writing(self.folder) as store:
            reader, here = self._llm.reader, self._empty(store.manifest)
            if store.manifest is None:
                store.manifest = Manifest(here.fingerprint, here.shape)
            self._check(store.manifest)
            plan = self._plan(texts, store.stored, here)
            if plan.bytes > (free := shutil.disk_usage(self.folder).free):
                raise WorkError(
                    f"the context takes {plan.bytes / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB free."
                )
            done = 0

            def told(tokens: int) -> None:
                nonlocal done
                done += tokens
                if progress is not None:
                    progress(done, plan.new_tokens)

            for chunks, ids, whole in self._missing(texts, store.stored, here):
                kept = Stored(whole=whole, compact=here.compact)
                _put(store, chunks, ids, _read(reader, store, chunks, ids, told, kept))
            new = {
                name: Document(len(ids), [chunk for chunk, _, _ in self._chunks(ids, spans, here)], spans)
                for name, (ids, spans) in texts.items()
            }
            before = store.manifest.documents
            store.manifest.documents = now = {**({} if only else before), **new}
            store.finish(only)
        return [name for name, old in before.items() if name not in now or now[name].chunks != old.chunks]

    def remove(self, *documents: str) -> None:
        """Forget documents, and what no other document needs of them.

        Raises:
            UsageError: there is no such document, or another process is writing.
        """
        read_manifest(self.folder)
        with writing(self.folder) as store:
            assert store.manifest is not None
            for name in documents:
                del store.manifest.documents[find_document(self.folder, store.manifest, name)]
            store.finish()

    def holds(self, name: str, text: Text) -> bool:
        """Whether exactly this document is there, so that reading it would read nothing."""
        manifest, ids = self._manifest(), self._llm.reader.token_ids(text)
        document = Document(len(ids), [chunk for chunk, _, _ in self._chunks(ids, [], self._empty(manifest))])
        return (
            manifest is not None
            and manifest.documents.get(name) == document
            and manifest.places().keys() >= set(document.chunks)
        )

    @property
    def whole(self) -> bool:
        """Whether all files of the library are there, in their sizes."""
        if (manifest := self._manifest()) is None:
            return not (self.folder / MANIFEST).exists()  # else it is broken
        return len(whole_segments(self.folder, manifest)) == len(manifest.segments)

    def plan(self, documents: Mapping[str, Text], keep: Mapping[str, Keep] | None = None) -> Plan:
        """What `update` would read and write, without doing it."""
        manifest = self._manifest()
        if manifest is not None:
            manifest.segments = whole_segments(self.folder, manifest)
        stored = set() if manifest is None else set(manifest.places())
        return self._plan(self._tokenised(documents, keep), stored, self._empty(manifest))

    @property
    def _llm(self) -> SharedLLM:
        if self.llm is None:
            raise UsageError("this library has no model to read with; open it with Library(folder, llm).")
        return self.llm

    def _manifest(self) -> Manifest | None:
        """None in a new folder, and where it is broken so that all is to be read again."""
        there = (self.folder / MANIFEST).exists() and not unreadable(self.folder)
        return read_manifest(self.folder) if there else None

    def _check(self, manifest: Manifest | None) -> None:
        """Raise `UsageError` where this model's chunks would not fit those that are there."""
        if manifest is None or self.llm is None:
            return
        here = self._empty(manifest)
        if not same_model(manifest.model, here.fingerprint):
            raise UsageError(f"the context in {self.folder} was made with another model; choose another folder.")
        if here.compact != bool(manifest.shape["compact"]):
            kind = "compact" if manifest.shape["compact"] else "not compact"
            raise UsageError(f"the context in {self.folder} is {kind} and stays so; choose another folder.")
        for name, stored in manifest.shape.items():
            same = bool(stored) == bool(here.shape[name]) if name == "fine_chunks" else stored == here.shape[name]
            if not same:
                raise UsageError(
                    f"the context in {self.folder} was made with {name} {stored}, this adapter has "
                    f"{here.shape[name]}; choose another folder."
                )

    def _empty(self, manifest: Manifest | None) -> Context:
        """A context of the kind that is asked for, or else is there."""
        there = manifest is not None and bool(manifest.shape["compact"])
        return self._llm.reader.new_context(there if self.compact is None else self.compact)

    def _tokenised(self, documents: Mapping[str, Text], keep: Mapping[str, Keep] | None) -> dict[str, Tokenised]:
        reader = self._llm.reader
        return {name: reader.tokenised(text, (keep or {}).get(name)) for name, text in documents.items()}

    def _chunks(self, ids: Tensor, spans: Sequence[Span], here: Context) -> Iterator[tuple[str, Tensor, bool]]:
        """Name and token ids [n] of each chunk of a document, and whether it holds a kept token.

        Args:
            here: an empty context of the library's kind.
        """
        reader = self._llm.reader
        for rows, whole in chunk_runs(ids, reader.config.chunk_length, spans):
            kind = chunk_kind(
                reader.layout(rows.shape[1], Stored(whole=whole, compact=here.compact)), here.fingerprint, here.shape
            )
            yield from ((chunk_name(kind, row), row, whole) for row in rows)

    def _missing(
        self, texts: Mapping[str, Tokenised], stored: set[str], here: Context
    ) -> Iterator[tuple[list[str], Tensor, bool]]:
        """Names and token ids [X, n] of chunks that are read at once, and whether they hold kept tokens.

        They are of one document and of one length, and fill whole segments but for the last ones.
        """
        reader, known = self._llm.reader, set(stored)
        for ids, spans in texts.values():
            new: dict[tuple[int, bool], dict[str, Tensor]] = {}
            for chunk, row, whole in self._chunks(ids, spans, here):
                if chunk not in known:
                    new.setdefault((len(row), whole), {})[chunk] = row
                    known.add(chunk)
            for (n, whole), rows in new.items():
                layout, chunks = reader.layout(n, Stored(whole=whole, compact=here.compact)), list(rows)
                most = reader.at_once(n, segment_chunks(layout))
                for some in (chunks[i : i + most] for i in range(0, len(chunks), most)):
                    yield some, torch.stack([rows[chunk] for chunk in some]), whole

    def _plan(self, texts: Mapping[str, Tokenised], stored: set[str], here: Context) -> Plan:
        layout = self._llm.reader.layout
        groups = [
            (ids, Stored(whole=whole, compact=here.compact)) for _, ids, whole in self._missing(texts, stored, here)
        ]
        size = sum(len(ids) * (layout(ids.shape[1], kept).nbytes + 4 * ids.shape[1]) for ids, kept in groups)
        return Plan(sum(len(ids) for ids, _ in texts.values()), sum(ids.numel() for ids, _ in groups), size)


def _read(
    reader: Reader, store: Writer, chunks: Sequence[str], ids: Tensor, told: Callable[[int], None], stored: Stored
) -> Encoded:
    """Chunks with token ids [X, n], read; parts of them go to the disk at once, and what a killed process put there is taken."""
    most = reader.step(ids.shape[1])
    if len(chunks) <= most:
        return reader.encode_rows(ids, told, stored)
    parts = []
    for names, rows in ((chunks[i : i + most], ids[i : i + most]) for i in range(0, len(chunks), most)):
        part = store.part(names, rows)
        if part is None:
            part = reader.encode_rows(rows, told, stored)
            store.put_part(names, rows, part)
        else:
            told(rows.numel())
        parts.append(part)
    return Encoded.cat(parts)


def _put(store: Writer, chunks: Sequence[str], ids: Tensor, kept: Encoded) -> None:
    """Write chunks that were read at once, a segment after the other."""
    most = segment_chunks(kept)
    for some in (slice(i, i + most) for i in range(0, len(chunks), most)):
        store.put(chunks[some], ids[some], kept[some])
        store.commit()
