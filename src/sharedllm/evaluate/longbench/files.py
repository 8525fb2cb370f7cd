"""LongBench's original files: `hotpotqa.jsonl`, `hotpotqa_e.jsonl` (LongBench-E), `data.json` (v2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sharedllm.config import check_choice
from sharedllm.errors import UsageError
from sharedllm.evaluate.examples import Dataset, Example, Task
from sharedllm.evaluate.longbench.metrics import PARAGRAPH, PARAGRAPH_CHINESE, first_line, scorer
from sharedllm.evaluate.metrics import best
from sharedllm.evaluate.records import Record, find_files, read_records

VARIANTS = ("v1", "e", "v2")
V2, V2_FILES = "longbench_v2", ("data.json", "data.jsonl")
LETTERS = "ABCD"
BUCKETS = ((4000, "0-4k"), (8000, "4-8k"))
LONGEST_BUCKET = "8k+"
ANSWERS = {
    "retrieval": (PARAGRAPH, "texts such as 'Paragraph 7'"),
    "retrieval_zh": (PARAGRAPH_CHINESE, "texts such as '段落7'"),
}
"""What right answers must look like where the score takes something out of them."""


def read_datasets(folder: Path, variant: str, wanted: Sequence[str], tasks: dict[str, Task]) -> list[Dataset]:
    """The data sets `wanted` of a variant, or all that the folder has where none is named.

    Raises:
        UsageError: an unknown variant or data set, a missing file, or a file that is not as LongBench's are.
    """
    check_choice("the variant", variant, VARIANTS)
    if variant == "v2":
        return [_version_2(folder, wanted, tasks[V2])]
    found = find_files(folder, list(tasks_of(variant, tasks)), wanted, "_e.jsonl" if variant == "e" else ".jsonl")
    return [
        Dataset(tasks[name], [_example(tasks[name], record, variant) for record in read_records(path)])
        for name, path in found.items()
    ]


def tasks_of(variant: str, tasks: dict[str, Task]) -> dict[str, Task]:
    """Those that a variant has, by name."""
    if variant == "v2":
        return {V2: tasks[V2]}
    return {name: task for name, task in tasks.items() if name != V2 and (task.e or variant == "v1")}


def _example(task: Task, record: Record, variant: str) -> Example:
    values = {"input": record.filled("input") if "{input}" in task.prompt else record.text("input")}
    before, after = task.frame(values)
    answers = tuple(record.texts("answers"))
    pattern, wanted = ANSWERS.get(task.metric, (None, ""))
    if pattern and not all(pattern.search(answer) for answer in answers):
        raise record.wrong("answers", wanted)
    classes = record.texts("all_classes") if task.metric == "classification" else ()
    score = scorer(task.metric, classes)
    return Example(
        id=str(record.values.get("_id", record.where)),
        before=before,
        context=record.filled("context"),
        after=after,
        asks=values["input"] if "{input}" in task.prompt else after,
        score=lambda given: best(score, first_line(given) if task.first_line else given, answers),
        expected=answers,
        traces=answers,
        groups=(bucket(record.whole("length")),) if variant == "e" else (),
    )


def bucket(length: int) -> str:
    """The range of LongBench-E in which a length in words (for Chinese, characters) falls."""
    return next((name for limit, name in BUCKETS if length < limit), LONGEST_BUCKET)


def _version_2(folder: Path, wanted: Sequence[str], task: Task) -> Dataset:
    for name in wanted:
        check_choice("the data set", name, [V2])
    found = [folder / name for name in V2_FILES if (folder / name).is_file()]
    if not found:
        raise UsageError(f"{folder} has no {V2_FILES[0]}; give --data the folder with LongBench v2's original file.")
    return Dataset(task, [_example_2(task, record) for record in read_records(found[0])])


def _example_2(task: Task, record: Record) -> Example:
    choices = {f"choice_{letter}": record.text(f"choice_{letter}").strip() for letter in LETTERS}
    question = record.filled("question").strip()
    before, after = task.frame({"question": question, **choices})
    answer = record.choice("answer", tuple(LETTERS))
    return Example(
        id=str(record.values.get("_id", record.where)),
        before=before,
        context=record.filled("context").strip(),
        after=after,
        asks=question,
        score=lambda given: scorer(task.metric)(given, answer),
        expected=(answer,),
        traces=(choices[f"choice_{answer}"],),
        groups=(
            record.choice("difficulty", ("easy", "hard")),
            record.choice("length", ("short", "medium", "long")),
        ),
    )
