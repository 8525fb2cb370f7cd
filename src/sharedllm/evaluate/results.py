"""Results files: one JSON object a line, appended as soon as it is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sharedllm.errors import WorkError


def append_row(file: Path, row: dict[str, Any]) -> None:
    """Append one row.

    Raises:
        WorkError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise WorkError(f"cannot write to {file}: {error.strerror or error}.") from error


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a results file, [] where there is none.

    Raises:
        WorkError: not UTF-8, or a line is not a JSON object; the sentence gives its number.
    """
    if not file.is_file():
        return []
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WorkError(f"{file} is not a results file: it is not text in UTF-8.") from error
    rows = []
    lines = text.removesuffix("\n").split("\n") if text else []  # splitlines would also cut inside strings
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise WorkError(f"{file}, line {number} is not a results row; remove that line and run again.") from error
        if not isinstance(row, dict):
            raise WorkError(f"{file}, line {number} is not a results row; remove that line and run again.")
        rows.append(row)
    return rows
