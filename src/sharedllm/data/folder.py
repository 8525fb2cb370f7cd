"""Reading a token folder: which documents it holds, and their tokens without copying.

folder = TokenFolder.open("data/text", tokenizer)
for document in folder.documents(split="train", kind="code"):
    tokens = folder.tokens(document)  # a read-only view of the shard, shape (document.tokens,)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sharedllm.data.encode import fingerprint
from sharedllm.errors import UsageError, WorkError

FORMAT = 1
MANIFEST, DOCUMENTS = "manifest.json", "documents.jsonl"


@dataclass(frozen=True)
class Document:
    """Where a document lies: its shard's file name, `start` and length there in `tokens`."""

    source: str
    kind: str
    split: str
    shard: str
    start: int
    tokens: int
    name: str


class TokenFolder:
    """An opened token folder; `manifest` is its manifest.json. Open one with `TokenFolder.open`."""

    def __init__(self, path: Path, manifest: dict[str, Any], documents: list[Document]) -> None:
        self.path, self.manifest, self._documents = path, manifest, documents
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        self._shards = {
            shard["file"]: np.memmap(path / shard["file"], dtype=dtype, mode="r") for shard in manifest["shards"]
        }

    @classmethod
    def open(cls, path: str | Path, tokenizer: Any = None, verify_hashes: bool = False) -> TokenFolder:
        """Opens a folder that `build` made and checks every file's size.

        `tokenizer` (a fast tokenizer, or a fingerprint) must be the one it was built with; None skips that check.
        `verify_hashes` also reads every byte. Raises UsageError for a folder of another kind, format or tokenizer,
        WorkError for a file that is missing, cut short or changed.
        """
        path = Path(path)
        manifest = _manifest(path)
        _check_tokenizer(path, manifest, tokenizer)
        width = np.dtype(manifest["dtype"]).itemsize
        for shard in manifest["shards"]:
            _check_file(path / shard["file"], shard["tokens"] * width, shard["sha256"] if verify_hashes else None)
        return cls(path, manifest, _documents(path, manifest))

    @property
    def sources(self) -> Mapping[str, Mapping[str, Any]]:
        """{source name: its manifest entry, with `kind`, `weight`, `split`, `licence`, `tokens`}."""
        sources: dict[str, dict[str, Any]] = self.manifest["sources"]
        return sources

    def documents(self, split: str | None = None, kind: str | None = None, source: str | None = None) -> list[Document]:
        """The documents of a split, kind and source (None: of any), in the order they were written."""
        for name, value, known in (("source", source, self.sources), ("split", split, ("train", "heldout"))):
            if value is not None and value not in known:
                raise UsageError(f"{self.path} has no {name} '{value}'; it has {', '.join(known)}.")
        return [
            doc
            for doc in self._documents
            if split in (None, doc.split) and kind in (None, doc.kind) and source in (None, doc.source)
        ]

    def tokens(self, document: Document) -> np.ndarray:
        """The document's tokens as a read-only view of its shard, shape (document.tokens,); nothing is copied."""
        return self._shards[document.shard][document.start : document.start + document.tokens]

    def shares(self, documents: Sequence[Document]) -> np.ndarray:
        """How often each document is drawn, shape (documents,), summing to 1: sources by weight, theirs by length.

        Raises UsageError where the weights of all their sources are 0.
        """
        total: dict[str, int] = {}
        for d in documents:
            total[d.source] = total.get(d.source, 0) + d.tokens
        weights = np.array([self.sources[d.source]["weight"] * d.tokens / total[d.source] for d in documents])
        if not weights.sum() > 0:
            raise UsageError(
                f"in {self.path} all sources with documents long enough ({', '.join(total)}) have weight 0; give one of "
                "them a weight above 0 in the data recipe and build again."
            )
        return weights / weights.sum()


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} is not a data folder: it holds no {MANIFEST}; build one first.") from error
    except (OSError, ValueError) as error:
        raise WorkError(f"{path / MANIFEST} cannot be read ({error}); build the data folder again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise UsageError(f"{path} has data format {found}; expected {FORMAT}. Build it again with this version.")
    return manifest


def _check_tokenizer(path: Path, manifest: dict[str, Any], tokenizer: Any) -> None:
    if tokenizer is None:
        return
    wanted = tokenizer if isinstance(tokenizer, str) else fingerprint(tokenizer)
    built = manifest["tokenizer"]["fingerprint"]
    if wanted != built:
        raise UsageError(
            f"{path} was built with another tokenizer (fingerprint {built[:12]}; this one has {wanted[:12]}); "
            "build the data again with this model's tokenizer."
        )


def _check_file(path: Path, size: int, sha256: str | None) -> None:
    try:
        found = path.stat().st_size
        if found != size:
            raise WorkError(f"{path} holds {found:,} bytes; expected {size:,}. Build the data folder again.")
        if sha256 is not None:
            with path.open("rb") as handle:
                if hashlib.file_digest(handle, "sha256").hexdigest() != sha256:
                    raise WorkError(f"{path} has changed since it was built (its sha256 differs); build it again.")
    except OSError as error:
        raise WorkError(f"{path} cannot be read ({error.strerror}); build the data folder again.") from error


def _documents(path: Path, manifest: dict[str, Any]) -> list[Document]:
    """The listing, checked against its hash; it is small, so it is read whole in any case."""
    listing = path / DOCUMENTS
    try:
        data = listing.read_bytes()
    except OSError as error:
        raise WorkError(f"{listing} cannot be read ({error.strerror}); build the data folder again.") from error
    if hashlib.sha256(data).hexdigest() != manifest["documents"]["sha256"]:
        raise WorkError(f"{listing} is not the one this folder was built with; build the data folder again.")
    keys = [field.name for field in fields(Document)]
    rows = [json.loads(line) for line in data.splitlines()]  # of bytes: text would split at other line ends too
    return [Document(**{key: row[key] for key in keys}) for row in rows]
