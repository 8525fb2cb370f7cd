"""LongBench (arXiv 2308.14508), LongBench-E and LongBench v2 (arXiv 2412.15204) from their original files.

https://github.com/THUDM/LongBench; prompts and limits are in `prompts.yaml`, what is read in `files`, scores in `metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sharedllm.evaluate.examples import Dataset, Task, read_tasks
from sharedllm.evaluate.longbench.files import VARIANTS, read_datasets, tasks_of

LANGUAGES = ("en", "zh")


def datasets(folder: Path, wanted: Sequence[str] = (), variant: str = "v1") -> list[Dataset]:
    """The data sets `wanted` of a variant (v1, e or v2), or all that the folder has where none is named.

    Raises:
        UsageError: an unknown variant or data set, a missing file, or a file that is not as LongBench's are.
    """
    return read_datasets(folder, variant, wanted, read_tasks(__name__))


def names() -> list[str]:
    """All its data sets."""
    return list(read_tasks(__name__))


def tasks(variant: str) -> list[Task]:
    """All tasks of a variant."""
    return list(tasks_of(variant, read_tasks(__name__)).values())


def averages(tasks: Sequence[Task]) -> dict[str, dict[str, list[str]]]:
    """What its leaderboard averages: for each language the names of the data sets, by category.

    The average is the mean over categories of each one's mean; code counts in both languages. A language without a data set
    of its own has none, and neither has version 2.
    """
    made: dict[str, dict[str, list[str]]] = {}
    own = {task.languages for task in tasks}
    for language in LANGUAGES:
        for task in tasks if (language,) in own else ():
            if language in task.languages:
                made.setdefault(f"average-{language}", {}).setdefault(task.category, []).append(task.name)
    return made


__all__ = ["VARIANTS", "averages", "datasets", "names", "tasks"]
