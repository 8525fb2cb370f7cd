"""A study folder: passages of a token folder's documents, with questions and answers the model itself wrote about them.

It holds `passages.jsonl`, a line a passage, and `manifest.json`: which model wrote it, from which data, how, and how
much. `study_build` writes it, training reads it (self-study, as in Cartridges, arXiv 2506.06266).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sharedllm.data.folder import MANIFEST, Document, TokenFolder
from sharedllm.data.study_author import Pair
from sharedllm.errors import UsageError, WorkError
from sharedllm.loading import same_model

FORMAT = "sharedllm-study"
VERSION = 1
PASSAGES = "passages.jsonl"
SHOWN = 25  # characters of a fingerprint in a sentence: a model's identity whole, of a hash the beginning


@dataclass(frozen=True)
class Passage:
    """Where a passage starts in its document, in tokens, and the pairs about it that were kept."""

    document: Document
    start: int
    pairs: list[Pair]
    left_out: dict[str, int]
    """How many pairs were left out, by reason."""

    def to_line(self) -> str:
        about = {
            "source": self.document.source,
            "document": self.document.name,
            "shard": self.document.shard,
            "document_start": self.document.start,
            "start": self.start,
            "pairs": [asdict(pair) for pair in self.pairs],
            "left_out": self.left_out,
        }
        return json.dumps(about, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Study:
    """A finished study: passages of `passage_tokens` tokens each, in the order they were written."""

    path: Path
    passage_tokens: int
    passages: list[Passage]
    sha256: str
    """Of its passages, in hexadecimal."""

    @classmethod
    def open(cls, path: str | Path, folder: TokenFolder, model: str) -> Study:
        """Read a study of the documents of `folder`, written by the model with the identity `model` (`Reader.identity`).

        Raises:
            UsageError: no study, not a finished one, or one of another model or other data.
            WorkError: its files are broken.
        """
        path = Path(path)
        about = read_manifest(path)
        check_origin(path, about, folder, model)
        if "counts" not in about:
            raise UsageError(
                f"the study in {path} is not finished; run the `sharedllm data study` that wrote it again."
            )
        data = read_passages(path)
        digest = hashlib.sha256(data).hexdigest()
        if digest != about["counts"]["sha256"]:
            raise WorkError(f"{path / PASSAGES} is not the one this study was finished with; write the study again.")
        return cls(path, int(about["settings"]["passage_tokens"]), parse_passages(path, data, folder), digest)


def origin(folder: TokenFolder, model: str) -> dict[str, str]:
    """What a study depends on and must not change under it: the model, and the data with their tokenizer."""
    return {"model": model, "data": hashlib.sha256((folder.path / MANIFEST).read_bytes()).hexdigest()}


def check_origin(path: Path, about: dict[str, Any], folder: TokenFolder, model: str) -> None:
    """Raise `UsageError` where a study's manifest names another model or other data."""
    wanted = origin(folder, model)
    same = {"model": same_model(about["model"], wanted["model"]), "data": about["data"] == wanted["data"]}
    for name, what in (("model", "by another model"), ("data", f"from other data than {folder.path}")):
        if not same[name]:
            raise UsageError(
                f"the study in {path} was written {what} (fingerprint {about[name][:SHOWN]}, not {wanted[name][:SHOWN]}); "
                "write another with `sharedllm data study`."
            )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a study folder, finished or not."""
    file = path / MANIFEST
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} is not a study: it holds no {MANIFEST}; write one with `sharedllm data study`."
        ) from error
    except (OSError, ValueError) as error:
        raise WorkError(f"{file} cannot be read ({error}); write the study again.") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.get("version") != VERSION:
        raise UsageError(f"{path} is not a study of version {VERSION}; write one with `sharedllm data study`.")
    return about


def read_passages(path: Path) -> bytes:
    try:
        return (path / PASSAGES).read_bytes()
    except OSError as error:
        raise WorkError(f"{path / PASSAGES} cannot be read ({error.strerror}); write the study again.") from error


def parse_passages(path: Path, data: bytes, folder: TokenFolder) -> list[Passage]:
    """Passages from the lines of `passages.jsonl`."""
    documents = {(d.shard, d.start): d for d in folder.documents(split="train")}
    passages = []
    try:
        for line in data.splitlines():  # of bytes: text would split at other line ends too
            row = json.loads(line)
            document = documents[row["shard"], row["document_start"]]
            pairs = [Pair(**pair) for pair in row["pairs"]]
            passages.append(Passage(document, int(row["start"]), pairs, row["left_out"]))
    except (ValueError, KeyError, TypeError) as error:
        raise WorkError(
            f"{path / PASSAGES} is broken in line {len(passages) + 1} ({error!r}); write the study again."
        ) from error
    return passages
