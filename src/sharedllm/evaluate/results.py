"""Results files: one JSON object a line, appended as soon as it is known; a run that was stopped goes on from them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from sharedllm.errors import UsageError, WorkError

PLAIN = frozenset({"truncate", "full", "streaming", "yarn", "dynamic-ntk", "passage"})
"""Methods that never read the adapter, nor any setting of it: their rows are those of the model alone."""


def append_row(file: Path, row: dict[str, Any]) -> None:
    """Append one row.

    Raises:
        WorkError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        start = "" if _ends_a_line(file) else "\n"
        with file.open("a", encoding="utf-8") as handle:
            handle.write(start + json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise WorkError(f"cannot write to {file}: {error.strerror or error}.") from error


def _ends_a_line(file: Path) -> bool:
    """Whether what is appended to a file begins a line: some editors leave the last one without its end."""
    if not file.is_file() or file.stat().st_size == 0:
        return True
    with file.open("rb") as handle:
        handle.seek(-1, os.SEEK_END)
        return handle.read() == b"\n"


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a results file, [] where there is none.

    Raises:
        WorkError: it cannot be read, is not UTF-8, or a line is not a JSON object; the sentence gives its number.
    """
    if not file.is_file():
        return []
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WorkError(f"{file} is not a results file: it is not text in UTF-8.") from error
    except OSError as error:
        raise WorkError(f"{file} cannot be read: {error.strerror or error}.") from error
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


class Results:
    """The rows of a run, kept in a file so that the same run started again computes only what is missing.

    A row is known again by its field `run`, a hash of everything that it depends on. That has the adapter in it for every method;
    where none is read, a row is known by the hash with any adapter that a row of the file says it was made with (`adapter`,
    `adapter_weights`).

    Args:
        file: where rows are appended; None: they are kept nowhere.
        about: what all rows of this run depend on, as JSON can say it.
        fresh: compute everything, whatever the file has.
        say: takes a line for each row that is not computed again.
        besides: what each new row with a value says besides what is computed, asked when it is.
        same: fields that a row must have with these values, or not at all, to be known: those of timings, which are of one
            machine.
        versions: of the libraries that run, by name; a known row that was made with others is said so, once for all such.
        plain: methods whose rows are known whatever adapter they were made with.
    Raises:
        UsageError: the file is a folder.
        WorkError: the file is not a results file.
    """

    def __init__(
        self,
        file: Path | None = None,
        about: Mapping[str, Any] | None = None,
        fresh: bool = False,
        say: Callable[[str], None] = lambda line: None,
        besides: Callable[[], Mapping[str, Any]] = dict,
        same: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        plain: Collection[str] = (),
    ) -> None:
        if file and file.is_dir():
            raise UsageError(f"{file} is a folder; give a file name for the results.")
        self.file, self.about, self.say, self.besides = file, dict(about or {}), say, besides
        rows = read_rows(file) if file and not fresh else []
        here = (same or {}).items()
        self._known = {
            row["run"]: row for row in rows if "run" in row and all(row.get(name, own) == own for name, own in here)
        }
        self._plain = plain
        made_with = ((row.get("adapter"), row["adapter_weights"]) for row in reversed(rows) if "adapter_weights" in row)
        self._adapters = list(dict.fromkeys(made_with))
        self._told = {(row["refused"], row["reason"]) for row in rows if "refused" in row}
        self.versions, self._made_with = dict(versions or {}), list[dict[str, str]]()

    def find(self, unit: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of a unit of work; None where it is not known."""
        runs = (self._run(unit, about) for about in self._abouts(unit))
        return next((self._known[run] for run in runs if run in self._known), None)

    def _abouts(self, unit: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What a known row may depend on beside its unit: what the rows of this run do; of a plain method, with any adapter."""
        yield self.about
        if unit.get("method") in self._plain:
            yield from ({**self.about, "adapter": list(adapter)} for adapter in self._adapters)

    def keep(
        self, unit: Mapping[str, Any], compute: Callable[[], dict[str, Any]], of_others: bool = False
    ) -> dict[str, Any]:
        """The row of a unit of work, computed and appended unless it is known.

        A row with a `reason` why there is no value is appended, once, but never known: with more memory there may be one.

        Args:
            unit: what the row depends on besides what all rows do, as JSON can say it.
            of_others: whether it is made of other rows, which say themselves what `besides` gives.
        Raises:
            WorkError: the file cannot be written.
        """
        found = self.find(unit)
        if found is not None:
            what = f"{found.get('method')} at {found.get('length')}, {found.get('metric')}"
            self.say(f"{what}: found in {self.file}, not computed again (--fresh does)")
            self._say_versions(found)
            return found
        row, run = compute(), self._run(unit, self.about)
        told = (run, row.get("reason")) in self._told
        if "reason" in row:
            row = {**row, "refused": run}
            self._told.add((run, row["reason"]))
        else:
            row = {**row, **({} if of_others else self.besides()), "run": run}
            self._known[run] = row
        if self.file and not told:
            append_row(self.file, row)
        return row

    def _say_versions(self, row: Mapping[str, Any]) -> None:
        """Say it once where known rows, as far as they tell, were made with other versions than those that run."""
        others = {name: of for name, of in row.get("versions", {}).items() if self.versions.get(name, of) != of}
        if others and others not in self._made_with:
            self._made_with.append(others)
            said, here = (", ".join(f"{name} {of[name]}" for name in others) for of in (others, self.versions))
            self.say(f"known rows were made with {said}, and here is {here}; --fresh computes all rows again")

    def _run(self, unit: Mapping[str, Any], about: Mapping[str, Any]) -> str:
        depends = json.dumps([about, unit], sort_keys=True)
        return hashlib.sha256(depends.encode()).hexdigest()[:16]
