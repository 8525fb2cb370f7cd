"""Samples made by RULER's own scripts: JSON lines with `input`, `outputs` and `answer_prefix`.

They must have been made with its template `base`: a model's chat template is put around them when they are asked.
What is context and what is asked follows from RULER's wording; see `wording`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sharedllm.errors import UsageError
from sharedllm.evaluate.records import Record, read_records
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
        UsageError: the file cannot be read or has fewer, or a line is no sample of the task; line and field are named.
    """
    records = read_records(file)
    if len(records) < samples:
        raise UsageError(f"{file} has {len(records)} samples; lower --samples from {samples}.")
    return [_sample(record, task) for record in records[:samples]]


def _sample(record: Record, task: str) -> Sample:
    outputs = [str(output) for output in record.checked("outputs", _answers, "a list of right answers, not empty")]
    prefix = record.text("answer_prefix") if "answer_prefix" in record.values else ""
    text = record.filled("input")
    try:
        return TASKS[task].maker.wording.parted(text, outputs, prefix)
    except ValueError as error:
        raise record.wrong("input", f"a prompt with the question of {task} as RULER words it") from error


def _answers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(answer, str | int | float) for answer in value)
