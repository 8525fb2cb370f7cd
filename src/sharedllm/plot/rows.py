"""Results rows that know where they stand, so that a mistake can be found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharedllm.errors import UsageError
from sharedllm.evaluate.results import read_rows


@dataclass(frozen=True)
class Row:
    """A row of a results file and the number of its line, counted from 1.

    The readers raise `UsageError` where the row has no such value; the sentence gives file and line.
    """

    values: dict[str, Any]
    file: Path
    line: int

    @property
    def task(self) -> str:
        """The row's task; "training" for metrics of a training run, "" where there is none."""
        if "task" in self.values:
            return str(self.values["task"])
        return "training" if "step" in self.values and self.values.keys() & {"loss", "held_out_gain"} else ""

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.mistake(name, "a number")
        return float(value)

    def whole(self, name: str, least: int = 1) -> int:
        value = self.number(name)
        if value != int(value) or value < least:
            raise self.mistake(name, f"a whole number of at least {least}")
        return int(value)

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self.mistake(name, "a text")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers; () where there is none."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or not all(isinstance(v, int | float) and math.isfinite(v) for v in value):
            raise self.mistake(name, "a list of numbers")
        return tuple(map(float, value))

    def shares(self, name: str) -> list[float]:
        """A list of numbers from 0 to 1."""
        value = self.values.get(name)
        if not isinstance(value, list) or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in value):
            raise self.mistake(name, "a list of numbers from 0 to 1")
        return [float(v) for v in value]

    def mistake(self, name: str, wanted: str) -> UsageError:
        found = repr(self.values[name]) if name in self.values else "missing"
        found = found if len(found) <= 60 else found[:57] + "..."
        return UsageError(f"{self.file}, line {self.line}: {name} is {found}; it must be {wanted}.")


def read(files: Sequence[Path]) -> list[Row]:
    """All rows of some results files, in order; a file named twice is read once.

    Raises:
        UsageError: a file is missing or empty.
        WorkError: a line is not a JSON object; the sentence gives its number.
    """
    rows: list[Row] = []
    for file in {f.resolve(): f for f in files}.values():
        if not file.is_file():
            what = "is not a file" if file.exists() else "does not exist"
            raise UsageError(f"{file} {what}; give a results file, such as `sharedllm eval` and `train` write.")
        found = read_rows(file)
        if not found:
            raise UsageError(f"{file} is empty; give a results file with one JSON object a line.")
        rows += [Row(values, file, number) for number, values in enumerate(found, 1)]
    return rows
