"""Asking RULER's samples: a row a task, method and length, the mean over tasks, and the effective length."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sharedllm.errors import UsageError
from sharedllm.evaluate.asking import (
    CEILING,
    Asked,
    Examination,
    Question,
    Text,
    ask_methods,
    asked_with,
    lacks_room,
)
from sharedllm.evaluate.results import Results
from sharedllm.evaluate.row import refused, together
from sharedllm.evaluate.ruler.corpus import Corpus
from sharedllm.evaluate.ruler.files import find_file, read_samples
from sharedllm.evaluate.ruler.making import check_length, make_samples, smallest
from sharedllm.evaluate.ruler.tasks import TASKS
from sharedllm.evaluate.ruler.wording import ONE_NEEDLE, Sample
from sharedllm.evaluate.statistics import bounds_of_mean
from sharedllm.methods import Method
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt

THRESHOLD = 85.6
"""The mean over tasks that a length must beat to count as effective: Llama-2-7B's at 4,096 tokens (arXiv 2404.06654)."""
Plan = dict[int, dict[str, Path | None]]
"""By length the tasks to ask, with the file their samples are read from, None where they are made."""


def run(
    llm: SharedLLM,
    methods: Sequence[Method],
    planned: Plan,
    samples: int,
    corpus: Corpus,
    seed: int,
    progress: Callable[[str], None],
    ceiling: bool = False,
    results: Results | None = None,
    free: float = math.inf,
) -> Iterator[dict[str, Any]]:
    """Ask the samples of all tasks and lengths by all methods; yields rows.

    A row says what `asking.row` says; its `value` is RULER's score, 0 to 100. `subtask` is the task of RULER,
    `samples_from` its file or `made`, `prose_from` where the prose of a made one is from; `expected` and `tokens` (prompt
    and room for the answer) have an entry a sample. After the tasks of a length comes the mean over them of each method,
    at last each method's effective length.

    Args:
        planned: what is asked, see `plan`.
        corpus: what samples are made of.
        ceiling: also ask the plain model shown only the tokens around the answer, in tasks with one needle.
        free: memory that can be taken, in bytes; a method that needs more gives rows without a value.
    Raises:
        UsageError: no method's limit can hold a question and its answer of any task; nothing was asked then.
    """
    _check_room(llm, methods, planned, seed, corpus)
    results = results or Results()
    means: dict[str, dict[int, dict[str, Any]]] = {method.name: {} for method in methods}
    for length, made_of in planned.items():
        rows: dict[str, list[dict[str, Any]]] = {method.name: [] for method in methods}
        for name, file in made_of.items():
            examination = _examination(llm, name, length, samples, seed, corpus, file, progress)
            placed = TASKS[name].maker.wording is ONE_NEEDLE
            for row in ask_methods(llm, methods, examination, seed, progress, results, ceiling and placed, free):
                yield row
                if row["method"] != CEILING:
                    rows[row["method"]].append(row)
        for method in methods:
            means[method.name][length] = _keep_mean(llm, method, length, rows[method.name], seed, results)
            yield means[method.name][length]
    for method in methods:
        yield _keep_effective_length(llm, method, means[method.name], seed, results)


def _check_room(llm: SharedLLM, methods: Sequence[Method], planned: Plan, seed: int, corpus: Corpus) -> None:
    """Raise `UsageError` where no method can be asked any of the tasks, as far as one sample of each tells."""
    lacking = ""
    for length, made_of in planned.items():
        for name, file in made_of.items():
            sample = read_samples(file, name, 1)[0] if file else smallest(name, length, seed, corpus)
            reasons = [lacks_room(method, [as_text(llm, name, sample)]) for method in methods]
            if not all(reasons):
                return
            lacking = lacking or str(reasons[0])
    raise UsageError(f"{lacking}.")


def as_text(llm: SharedLLM, name: str, sample: Sample) -> Text:
    """A sample's context with its question, which says where its answer stands where it has one needle."""
    task, start = TASKS[name], None
    if task.maker.wording is ONE_NEEDLE:
        start = len(llm.reader.token_ids(sample.context.partition(sample.outputs[0])[0]))

    def score(answer: str) -> float:
        return task.score(answer, sample.outputs)

    question = Question(_prompt(llm, sample), score, task.max_new_tokens, sample.outputs, start)
    return Text(f"ruler {name}", llm.reader.token_ids(sample.context).to(torch.int64), [question])


def count_tokens(llm: SharedLLM, name: str, sample: Sample) -> int:
    """Tokens of a sample's whole prompt, templates included, and of the longest answer."""
    return len(_prompt(llm, sample).with_text(llm.reader.token_ids(sample.context))) + TASKS[name].max_new_tokens


def _prompt(llm: SharedLLM, sample: Sample) -> Prompt:
    return Prompt(
        llm.tokenizer,
        sample.question,
        between=sample.between,
        answer_prefix=sample.answer_prefix,
        asks=sample.asks,
    )


def effective_length(means: Mapping[int, float]) -> int:
    """The longest length whose mean over tasks beats `THRESHOLD`; 0 where none does.

    Args:
        means: by length in tokens, 0 to 100.
    """
    return max((length for length, mean in means.items() if mean > THRESHOLD), default=0)


def plan(
    llm: SharedLLM,
    names: Sequence[str],
    lengths: Sequence[int],
    samples: int,
    seed: int,
    corpus: Corpus,
    progress: Callable[[str], None],
) -> Plan:
    """What there is to ask. A task is passed over, with a line of progress, where what it is made of is lacking.

    Args:
        corpus: what samples are made of; samples of RULER's own files in its folder come first, see `files`.
    Raises:
        UsageError: nothing is left to ask, a length is too short for a task, or a file has not `samples` samples of it.
    """
    made: Plan = {length: {} for length in lengths}
    lacking = ""
    for name in names:
        lacks = corpus.lacks(TASKS[name].maker.needs)
        for length in lengths:
            file = find_file(corpus.data, name, length)
            if file is None and lacks:
                lacking = f"{name} is left out at {length:,} tokens: {lacks}"
                progress(lacking)
                continue
            if file is None:
                check_length(name, length, seed, corpus, partial(count_tokens, llm, name))
            else:
                read_samples(file, name, samples)  # to refuse it now; all of them at once may be more than memory holds
            made[length][name] = file
    if not any(made.values()):
        raise UsageError(lacking)
    prose = [name for name in names if "prose" in TASKS[name].maker.needs]
    if not corpus.texts and any(
        file is None for tasks in made.values() for name, file in tasks.items() if name in prose
    ):
        progress(f"no --text is named: needles in prose are hidden in {corpus.prose_from}")
    return {length: tasks for length, tasks in made.items() if tasks}


def _examination(
    llm: SharedLLM,
    name: str,
    length: int,
    samples: int,
    seed: int,
    corpus: Corpus,
    file: Path | None,
    progress: Callable[[str], None],
) -> Examination:
    if file:
        drawn = read_samples(file, name, samples)
    else:
        progress(f"making {samples} samples of {name} of {length:,} tokens")
        drawn = make_samples(name, length, samples, seed, corpus, partial(count_tokens, llm, name))
    texts = [as_text(llm, name, sample) for sample in drawn]

    def more(asked: Asked) -> dict[str, Any]:
        return {
            "subtask": name,
            "samples_from": str(file) if file else "made",
            **({"prose_from": corpus.prose_from} if not file and "prose" in TASKS[name].maker.needs else {}),
            "tokens": [count_tokens(llm, name, sample) for sample in drawn],
            "expected": [list(sample.outputs) for sample in drawn],
        }

    return Examination("ruler", f"ruler_{name}", length, texts, more, most=100.0, alone=False)


def _keep_mean(
    llm: SharedLLM, method: Method, length: int, rows: Sequence[dict[str, Any]], seed: int, results: Results
) -> dict[str, Any]:
    """A row with the mean over tasks, each counting alike; `subtasks` names them.

    A mean without some of the tasks compares with no other, so there is none where a task has no value.
    """
    lacking = next((row for row in rows if "reason" in row), None)

    def compute() -> dict[str, Any]:
        if lacking:
            reason = f"{lacking['metric']}: {lacking['reason']}"
            return {**asked_with(method), **refused(llm, "ruler", "ruler_mean", method.name, length, reason, seed)}
        low, high = bounds_of_mean([(row["value"], row["low"], row["high"]) for row in rows], 0.0, 100.0)
        return {
            **asked_with(method),
            "task": "ruler",
            "value": sum(row["value"] for row in rows) / len(rows),
            "low": low,
            "high": high,
            **together(llm, rows, seed),
            "threads": torch.get_num_threads(),
            "method": method.name,
            "length": length,
            "metric": "ruler_mean",
            "window": max(row["window"] for row in rows),
            "beyond_window": any(row["beyond_window"] for row in rows),
            "subtasks": {row["subtask"]: row["value"] for row in rows},
            **_texts_of(rows),
        }

    unit = {"metric": "ruler_mean", "method": method.name, "length": length, "of": [row.get("run") for row in rows]}
    return results.keep(unit, compute, of_others=True)


def _texts_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A hash of the texts of all rows, if each says its own."""
    if not all("texts" in row for row in rows):
        return {}
    return {"texts": hashlib.sha256("".join(row["texts"] for row in rows).encode()).hexdigest()}


def _keep_effective_length(
    llm: SharedLLM, method: Method, means: Mapping[int, dict[str, Any]], seed: int, results: Results
) -> dict[str, Any]:
    """A row with the effective length of a method; `means` has the row with the mean over tasks by length.

    Lengths whose mean has no value cannot count as effective; they are null in the row's `means`. `THRESHOLD` is a mean over
    all of RULER's tasks, so there is no effective length from some of them.
    """
    measured_at = {length: row for length, row in means.items() if "reason" not in row}
    some = next((row["subtasks"] for row in measured_at.values() if len(row["subtasks"]) < len(TASKS)), None)

    def compute() -> dict[str, Any]:
        if not measured_at or some:
            length = max(means)
            asked = f"{THRESHOLD} is a mean over RULER's {len(TASKS)} tasks, and these are {len(some or ())} of them"
            reason = asked if some else means[length]["reason"]
            metric = "ruler_effective_length"
            return {**asked_with(method), **refused(llm, "ruler", metric, method.name, length, reason, seed)}
        last = measured_at[max(measured_at)]
        return {
            **{key: value for key, value in last.items() if key not in ("low", "high", "subtasks", "texts", "run")},
            "metric": "ruler_effective_length",
            "value": effective_length({length: row["value"] for length, row in measured_at.items()}),
            "samples": sum(row["samples"] for row in measured_at.values()),
            "seconds": round(sum(row["seconds"] for row in measured_at.values()), 3),
            "threshold": THRESHOLD,
            "means": {length: row["value"] for length, row in means.items()},
            "subtasks": list(last["subtasks"]),
        }

    of = [row.get("run") for row in means.values()]
    unit = {"metric": "ruler_effective_length", "method": method.name, "of": of}
    return results.keep(unit, compute, of_others=True)
