"""A benchmark's original files, read and checked: JSON rows whose fields have the types that are needed.

Everything wrong with a file is one `UsageError` that names the file, the line and the field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharedllm.config import check_choice
from sharedllm.errors import UsageError


@dataclass(frozen=True)
class Record:
    """A row and where it stands, such as `hotpotqa.jsonl, line 3`."""

    where: str
    values: dict[str, Any]

    def text(self, key: str) -> str:
        """A field that must be text; empty text will do."""
        return str(self.checked(key, lambda value: isinstance(value, str), "text"))

    def filled(self, key: str) -> str:
        """A field that must be text with something in it."""
        return str(self.checked(key, lambda value: isinstance(value, str) and bool(value.strip()), "text, not empty"))

    def texts(self, key: str, some: bool = True) -> list[str]:
        """A field that must be a list of text, by default not an empty one."""
        wanted = "a list of text" + (", not empty" if some else "")
        return list(self.checked(key, lambda value: is_texts(value) and (bool(value) or not some), wanted))

    def whole(self, key: str) -> int:
        """A field that must be a whole number."""
        return int(self.checked(key, is_whole, "a whole number"))

    def choice(self, key: str, choices: Sequence[str]) -> str:
        """A field that must be one of a few words."""
        return str(self.checked(key, lambda value: value in choices, f"one of {', '.join(choices)}"))

    def checked(self, key: str, right: Callable[[Any], bool], wanted: str) -> Any:
        """A field for which `right` holds.

        Raises:
            UsageError: it is missing or something else than `wanted`.
        """
        if key not in self.values:
            raise UsageError(f"{self.where}: the field {key!r} is missing; it must be {wanted}.")
        if not right(self.values[key]):
            raise self.wrong(key, wanted)
        return self.values[key]

    def wrong(self, key: str, wanted: str) -> UsageError:
        """The error of a field that is not what is `wanted`."""
        shown = json.dumps(self.values[key], ensure_ascii=False)
        return UsageError(f"{self.where}: {key!r} is {shown[:60]}{'...' * (len(shown) > 60)}; it must be {wanted}.")


def is_whole(value: Any) -> bool:
    """Whether a JSON value is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def read_records(path: Path) -> list[Record]:
    """All rows of a `.jsonl` file (an object a line) or a `.json` file (a list of objects).

    Raises:
        UsageError: the file cannot be read, is not JSON, has no row, or a row is no object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8; give the benchmark's original file.") from error
    rows = _list(path, text) if path.suffix == ".json" else _lines(path, text)
    records = []
    for where, row in rows:
        if not isinstance(row, dict):
            raise UsageError(f"{where} is no JSON object; give the benchmark's original file.")
        records.append(Record(where, row))
    if not records:
        raise UsageError(f"{path} has no rows; give the benchmark's original file.")
    return records


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut inside strings
        if line.strip():
            yield f"{path}, line {number}", _json(f"{path}, line {number}", line)


def _list(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    rows = _json(str(path), text)
    if not isinstance(rows, list):
        raise UsageError(f"{path} is no JSON list of rows; give the benchmark's original file.")
    for number, row in enumerate(rows, 1):
        yield f"{path}, row {number}", row


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON ({error}); give the benchmark's original file.") from error


def find_files(folder: Path, names: Sequence[str], wanted: Sequence[str], suffix: str = ".jsonl") -> dict[str, Path]:
    """The file of every data set `wanted`, or of all that the folder has where none is named.

    Args:
        names: all data sets of the benchmark.
        suffix: what a file's name has after the data set's.
    Raises:
        UsageError: there is no such folder, data set or file; the nearest name is given.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give --data the folder with the benchmark's original files.")
    for name in wanted:
        check_choice("the data set", name, names)
    files = {name: folder / f"{name}{suffix}" for name in wanted or names}
    missing = [path.name for path in files.values() if not path.is_file()]
    if wanted and missing:
        raise UsageError(f"{folder} has no {missing[0]}; give --data the folder with the benchmark's original files.")
    found = {name: path for name, path in files.items() if path.is_file()}
    if not found:
        raise UsageError(
            f"{folder} has none of the benchmark's files, such as {missing[0]}; give --data the folder that has them."
        )
    return found
