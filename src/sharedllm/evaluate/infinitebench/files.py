"""InfiniteBench's original files, `passkey.jsonl` and so on, and the right answer in the form each score takes.

Numbers must be numbers in the file: turned into text on the way, as some loaders do, they would never be matched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sharedllm.evaluate.examples import Dataset, Example, Task
from sharedllm.evaluate.infinitebench.metrics import SCORES
from sharedllm.evaluate.records import Record, find_files, is_texts, is_whole, read_records

LETTERS = "ABCD"
CALL = re.compile(r"(func_[0-9]+)\(-?[0-9]+\)")
WHICH_NUMBER = re.compile(r"The .+ of")
COMPUTED = ("last_word", "correct_prefix")  # scores of tasks whose answers do not stand in the text
NUMBERS_SHOWN = 20  # of a long answer, in a results row


def read_datasets(folder: Path, wanted: Sequence[str], tasks: dict[str, Task]) -> list[Dataset]:
    """The tasks `wanted`, or all that the folder has where none is named.

    Raises:
        UsageError: an unknown task, a missing file, or a file that is not as InfiniteBench's are.
    """
    found = find_files(folder, list(tasks), wanted)
    return [
        Dataset(tasks[name], [_example(tasks[name], record) for record in read_records(path)])
        for name, path in found.items()
    ]


def _example(task: Task, record: Record) -> Example:
    values = _values(task, record)
    before, after = task.frame(values)
    answer = ANSWERS[task.metric](record)
    return Example(
        id=str(record.values.get("id", record.where)),
        before=before,
        context=record.filled("context"),
        after=after,
        asks=values["input"] if any(name in task.prompt for name in ("{input}", "{question}")) else after,
        score=lambda given: SCORES[task.metric](given, answer),
        expected=_shown(answer),
        traces=() if task.metric in COMPUTED else _shown(answer)[:1] if isinstance(answer, tuple) else _shown(answer),
    )


def _shown(answer: Any) -> tuple[str, ...]:
    """A right answer as text; of a long list of numbers the beginning."""
    if isinstance(answer, list) and not is_texts(answer):
        return (", ".join(map(str, answer[:NUMBERS_SHOWN])),)
    return tuple(map(str, answer)) if isinstance(answer, list | tuple) else (str(answer),)


def _values(task: Task, record: Record) -> dict[str, str]:
    """What the prompt's names in braces stand for."""
    needed = any(name in task.prompt for name in ("{input}", "{question}"))
    asked = record.filled("input") if needed else record.text("input")
    values = {"input": asked, "question": asked}
    if "{OPTION_A}" in task.prompt:
        values |= {f"OPTION_{letter}": text for letter, text in zip(LETTERS, _options(record), strict=True)}
    if "{func_call}" in task.prompt:
        call = _found(record, CALL, "text with a call such as func_1(2)")
        values |= {"func": call[1], "func_call": call[0]}
    if "{prefix}" in task.prompt:
        which = _found(record, WHICH_NUMBER, "text such as 'The largest number of the list is: '")
        values["prefix"] = f"What is {which[0].lower().removesuffix(' of')} in the following list?"
    return values


def _found(record: Record, pattern: re.Pattern[str], wanted: str) -> re.Match[str]:
    """Where the field `input` has what the prompt needs of it."""
    found = pattern.search(record.text("input"))
    if found is None:
        raise record.wrong("input", wanted)
    return found


def _options(record: Record) -> list[str]:
    """The four options of a choice."""
    wanted = "a list of four texts"
    return list(record.checked("options", lambda value: is_texts(value) and len(value) == len(LETTERS), wanted))


def _one(right: Callable[[Any], bool], wanted: str) -> Callable[[Record], Any]:
    """Reads a right answer that is one value, or the first of a list."""

    def read(record: Record) -> Any:
        def first(value: Any) -> Any:
            return value[0] if isinstance(value, list) and value else value

        return first(
            record.checked("answer", lambda value: right(first(value)), f"{wanted}, or a list that begins with it")
        )

    return read


def _texts(record: Record) -> list[str]:
    """Several right answers, or one that stands alone."""
    answer = record.checked(
        "answer", lambda v: isinstance(v, str) or (is_texts(v) and bool(v)), "text or a list of text"
    )
    return [answer] if isinstance(answer, str) else list(answer)


def _numbers(record: Record) -> list[int]:
    """A list of whole numbers, which may stand in a list of its own."""

    def inner(value: Any) -> Any:
        return value[0] if isinstance(value, list) and value and isinstance(value[0], list) else value

    def right(value: Any) -> bool:
        return isinstance(inner(value), list) and bool(inner(value)) and all(map(is_whole, inner(value)))

    return list(inner(record.checked("answer", right, "a list of whole numbers")))


def _option(record: Record) -> tuple[str, str]:
    """The right option as (text, letter); the letter may be missing in the file."""
    answer, options = _texts(record), _options(record)
    if len(answer) == 2 and answer[1] in tuple(LETTERS):
        return answer[0], answer[1]
    if len(answer) != 1 or answer[0] not in options:
        raise record.wrong("answer", "one of the options, or a list of its text and its letter")
    return answer[0], LETTERS[options.index(answer[0])]


_text = _one(lambda value: isinstance(value, str), "text")
ANSWERS: dict[str, Callable[[Record], Any]] = {
    "first_integer": _one(lambda value: isinstance(value, str) and value.isdigit(), "text of digits"),
    "word": _text,
    "name": _text,
    "last_word": _one(is_whole, "a whole number"),
    "first_number": _one(lambda value: is_whole(value) or isinstance(value, float), "a number"),
    "correct_prefix": _numbers,
    "choice": _option,
    "option": _option,
    "f1": _texts,
    "f1_zh": _texts,
    "rouge_lsum": _texts,
}
"""How the right answer is read for each score."""
