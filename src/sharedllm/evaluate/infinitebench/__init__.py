"""InfiniteBench (arXiv 2402.13718) from its original files: twelve tasks on texts of 100,000 tokens and more.

https://github.com/OpenBMB/InfiniteBench; prompts and limits are in `prompts.yaml`, what is read in `files`, scores in
`metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sharedllm.evaluate.examples import Dataset, Task, read_tasks
from sharedllm.evaluate.infinitebench.files import read_datasets


def datasets(folder: Path, wanted: Sequence[str] = ()) -> list[Dataset]:
    """The tasks `wanted`, or all that the folder has where none is named.

    Raises:
        UsageError: an unknown task, a missing file, or a file that is not as InfiniteBench's are.
    """
    return read_datasets(folder, wanted, read_tasks(__name__))


def names() -> list[str]:
    """All its data sets."""
    return list(read_tasks(__name__))


def tasks() -> list[Task]:
    """All its tasks."""
    return list(read_tasks(__name__).values())


def averages(tasks: Sequence[Task]) -> dict[str, dict[str, list[str]]]:
    """The mean over all tasks, each counting alike."""
    return {"average": {task.name: [task.name] for task in tasks}}


__all__ = ["averages", "datasets", "names", "tasks"]
