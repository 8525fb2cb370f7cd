"""The manifest of a folder of contexts: which documents there are, and where their chunks lie.

One small JSON file, `context.json`. What it says is one whole state; `store.py` reads the rest, `store_write.py` writes it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharedllm.errors import UsageError, WorkError
from sharedllm.files import UNFINISHED, replaceable
from sharedllm.keep import Span, merged

FORMAT = "sharedllm-context"
VERSION = 6
READ = (
    2,
    3,
    4,
    5,
    VERSION,
)  # 5 was never compact, 4 skipped no layers, 3 kept no spans, 2 had one text and no manifest
MANIFEST, LOCK = "context.json", ".lock"
VERSION_2_SLOTS = "slots.safetensors"
SEGMENT = re.compile(rf"segment-[0-9a-f]{{32}}\.safetensors({re.escape(UNFINISHED)})?")
PART = re.compile(rf"part-[0-9a-f]{{32}}\.safetensors({re.escape(UNFINISHED)})?")
STORED_UNDER = (
    "injected_layers",
    "skipped_layers",
    "compared_layer",
    "chunk_length",
    "tree_depth",
    "slots_per_leaf",
    "fine_chunks",
    "compact",
)
OLDER = {"skipped_layers": 0, "compared_layer": -1, "compact": 0}  # what earlier versions do not say


@dataclass
class Document:
    """A text in the store."""

    tokens: int
    chunks: list[str]
    """Names of its chunks, in order."""
    keep: list[Span] = field(default_factory=list)
    """Spans of its tokens kept from compression."""


@dataclass
class Segment:
    """A file of chunks of one length."""

    bytes: int
    chunks: list[str]


@dataclass
class Manifest:
    """One whole state of a store."""

    model: str
    """Fingerprint of the model that read."""
    shape: dict[str, int]
    """Settings that say which slots are stored, by the names in `STORED_UNDER`."""
    documents: dict[str, Document] = field(default_factory=dict)
    segments: dict[str, Segment] = field(default_factory=dict)

    def places(self) -> dict[str, tuple[str, int]]:
        """Where each chunk is: its segment, and its number there."""
        return {chunk: (name, i) for name, segment in self.segments.items() for i, chunk in enumerate(segment.chunks)}

    def to_json(self) -> str:
        about = {"format": FORMAT, "version": VERSION, "model": self.model, **self.shape}
        documents = {name: vars(document) for name, document in self.documents.items()}
        segments = {
            name: vars(self.segments[name]) for name in sorted(self.segments)
        }  # in whichever order they were written
        # Without an indent, which json writes by slow code: this is written again with each segment.
        return json.dumps({**about, "documents": documents, "segments": segments}) + "\n"

    @classmethod
    def from_dict(cls, about: dict[str, Any]) -> Manifest:
        return cls(
            str(about["model"]),
            shape_of(about),
            {
                n: Document(int(d["tokens"]), list(d["chunks"]), merged(d.get("keep", ())))
                for n, d in about["documents"].items()
            },
            {_segment(n): Segment(int(s["bytes"]), list(s["chunks"])) for n, s in about["segments"].items()},
        )


def _segment(name: str) -> str:
    """The same name; `ValueError` for one that no segment has, which may lead out of the folder."""
    if not SEGMENT.fullmatch(name):
        raise ValueError(f"{name!r} is no segment")
    return name


def shape_of(about: dict[str, Any]) -> dict[str, int]:
    """The settings by the names in `STORED_UNDER` that a manifest of any version says."""
    return {name: int({**OLDER, **about}[name]) for name in STORED_UNDER}


def read_about(folder: Path) -> dict[str, Any]:
    """What `context.json` says, of any version that can be read.

    Raises:
        UsageError: not a saved context, or of another version.
        WorkError: the file is broken.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise UsageError(f"{folder} is not a saved context: it has no {MANIFEST}.")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkError(f"{file} cannot be read ({error}); encode the text again.") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UsageError(f"{folder} is not a saved context: its {MANIFEST} is of another kind.")
    if about.get("version") not in READ:
        raise UsageError(
            f"the context in {folder} has format version {about.get('version')}, this release reads 2 to {VERSION}; "
            "encode the text again."
        )
    return about


def read_manifest(folder: Path) -> Manifest:
    """The state of a store.

    Raises:
        UsageError: not a store of this version.
        WorkError: the manifest is broken.
    """
    about = read_about(folder)
    if about["version"] == 2:
        raise UsageError(
            f"the context in {folder} was saved by an earlier release as one text; "
            "load it and save it to another folder, or encode the text again."
        )
    try:
        return Manifest.from_dict(about)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise broken(folder, error) from error


def find_document(folder: Path, manifest: Manifest, name: str) -> str:
    """The same name; `UsageError` with the known ones where there is no such document."""
    if name in manifest.documents:
        return name
    known = ", ".join(list(manifest.documents)[:5]) or "none"
    raise UsageError(f"{folder} holds no document {name!r}; it has: {known}.")


def broken(folder: Path, error: Exception) -> WorkError:
    return WorkError(f"the context in {folder} is broken ({error}); encode the text again.")


def is_ours(name: str) -> bool:
    """Whether a file of this name in a folder of contexts was written by this library."""
    if name in (MANIFEST, MANIFEST + UNFINISHED, LOCK, VERSION_2_SLOTS):
        return True
    return any(kind.fullmatch(name) for kind in (SEGMENT, PART))


def unreadable(folder: Path) -> bool:
    """Whether a folder has segments and a `context.json` that is no JSON, so that nobody knows any more what is in them."""
    try:
        json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return any(SEGMENT.fullmatch(file.name) for file in folder.iterdir())
    return False


def check_target(folder: Path) -> None:
    """Raise `UsageError` when writing to `folder` would overwrite something that is not a context this release reads."""
    file = folder / MANIFEST
    present = [f.name for f in folder.iterdir()] if folder.is_dir() else []
    ours = [n for n in present if is_ours(n) and (n != VERSION_2_SLOTS or MANIFEST in present)]
    replaceable(folder, ours, "a saved context")
    if not file.exists() or unreadable(folder):
        return
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        known = about["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UsageError(f"{folder} holds another program's {MANIFEST}; choose another folder.")
    if about.get("version") not in READ:
        raise UsageError(
            f"{folder} holds a context of format version {about.get('version')}, which this release cannot add to or "
            "replace; choose another folder."
        )
