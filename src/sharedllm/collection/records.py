"""The manifest of a collection, `documents.jsonl`: one JSON object a document, sorted by source."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from sharedllm.collection import RECORDS
from sharedllm.collection.place import Place
from sharedllm.errors import WorkError
from sharedllm.loading import same_model

SEARCHED_BY = ", searched by "  # in `Record.made_with`, before what sketches and questions are compared by
KEPT, FAILED = "kept", "failed"


@dataclass(frozen=True)
class Record:
    """What became of a document."""

    source: str
    version: str
    """As `Source.version` when it was read."""
    bytes: int
    state: str
    """`kept` or `failed`."""
    hash: str = ""
    """SHA-256 of its bytes; empty where they could not be read."""
    tokens: int = 0
    store: str = ""
    """Name of its store and its sketch."""
    made_with: str = ""
    """What its chunks and its sketch depend on besides its tokens: model and settings; see `Worker.made_with`."""
    reason: str = ""
    """Why it failed, in a sentence."""


def alike(made_with: str, other: str) -> bool:
    """Whether two documents were made with the same, as far as they say.

    Records of earlier releases do not say what they are searched by, and of the model its fingerprint alone.
    """
    (kind, _, searched), (other_kind, _, other_searched) = (m.partition(SEARCHED_BY) for m in (made_with, other))
    (model, _, facts), (other_model, _, other_facts) = (k.partition(" ") for k in (kind, other_kind))
    same = same_model(model, other_model) and facts == other_facts
    return same and (searched == other_searched or not searched or not other_searched)


def searchable(made_with: str, model: str, searched_by: str) -> bool:
    """Whether a model, by its identity, that represents tokens so can search a document that was made with that."""
    kind, _, searched = made_with.partition(SEARCHED_BY)
    made_by = kind.split(" ")[0]
    return (not made_by or same_model(made_by, model)) and searched in (searched_by, "")


def store_name(source: str) -> str:
    """The name of the store of a source: readable, and no other source's."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", PurePosixPath(source).name)[:40].strip("-.")
    return f"{readable or 'document'}-{hashlib.sha256(source.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def read_records(place: Place) -> dict[str, Record]:
    """All records of a collection by source; {} where there is none.

    Raises:
        WorkError: a line is not a record.
    """
    raw, records = place.read(RECORDS) or b"", {}
    for number, line in enumerate(raw.decode("utf-8", "replace").removesuffix("\n").split("\n") if raw else [], 1):
        try:
            record = Record(**json.loads(line))
            if PurePosixPath(record.store).name != record.store:
                raise ValueError(f"{record.store} lies outside the collection")
        except (ValueError, TypeError) as error:
            raise WorkError(f"{place.where}/{RECORDS}, line {number} is not a record; remove that line.") from error
        records[record.source] = record
    return records


def write_records(place: Place, records: Mapping[str, Record]) -> None:
    """Replace the manifest in one step."""
    lines = "".join(_lines(records[source] for source in sorted(records)))
    # Bytes of a file's name that are no UTF-8 are written as JSON escapes them.
    place.write(RECORDS, lines.encode("utf-8", "backslashreplace"))


def _lines(records: Iterable[Record]) -> Iterable[str]:
    for record in records:
        told = {name: value for name, value in dataclasses.asdict(record).items() if value != ""}
        yield json.dumps(told, ensure_ascii=False) + "\n"
