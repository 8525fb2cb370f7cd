"""Samples made by RULER's own scripts: JSON lines with `input`, `outputs` and `answer_prefix`.

They must have been made with its template `base`: a model's chat template is put around them when they are asked.
What is context and what is asked follows from RULER's wording; see `wording`.
"""

from __future__ import annotations

import json
from pathlib import Path

from sharedllm.errors import UsageError
from sharedllm.evaluate.ruler.tasks import TASKS
from sharedllm.evaluate.ruler.wording import Sample

PLACES = ("{length}/data/{task}/validation.jsonl", "{length}/{task}/validation.jsonl", "{length}/{task}.jsonl")
"""Where the samples of a task and length are looked for in a folder; the first is RULER's own."""


def find_file(folder: Path | None, task: str, length: int) -> Path | None:
    """The file with a task's samples of a length; None where there is none."""
    if folder is None:
        return None
    files = (folder / place.format(task=task, length=length) for place in PLACES)
    return next((file for file in files if file.is_file()), None)


def read_samples(file: Path, task: str, samples: int) -> list[Sample]:
    """The first `samples` samples of a file.

    Raises:
        UsageError: the file cannot be read or has fewer, or a line is no sample of the task; the sentence gives its number.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as text in UTF-8 ({error}); give RULER's own file.") from error
    if len(lines) < samples:
        raise UsageError(f"{file} has {len(lines)} samples; lower --samples from {samples}.")
    made = []
    for number, line in enumerate(lines[:samples], 1):
        try:
            row = json.loads(line)
            outputs = [str(output) for output in row["outputs"]]
            if not outputs:
                raise ValueError("outputs is empty")
            made.append(TASKS[task].maker.wording.parted(row["input"], outputs, row.get("answer_prefix", "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{file}, line {number} is no sample of {task} as RULER writes and words it.") from error
    return made
