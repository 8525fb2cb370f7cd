"""Benchmarks of given files: every data set put to every method, a results row each, and a leaderboard's averages.

A method that reads a text of any length gets the whole of it. For one with a limit the prompt is cut in its middle, as
these benchmarks do, a long question with it; the rows say how many were cut, and of how many that took the answer away.
Values are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from sharedllm.errors import UsageError, to_install
from sharedllm.evaluate.asking import (
    Asked,
    Examination,
    Question,
    Text,
    ask_methods,
    asked_with,
    hash_of,
    mean_score,
    tokens_beside,
)
from sharedllm.evaluate.examples import Dataset, Example, Task
from sharedllm.evaluate.forecast import Job
from sharedllm.evaluate.metrics import required
from sharedllm.evaluate.middle import answer_lost, cut_middle, cut_whole
from sharedllm.evaluate.results import Results
from sharedllm.evaluate.row import refused, together, too_small
from sharedllm.evaluate.statistics import bounds_of_mean
from sharedllm.methods import Method
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt

Averages = Mapping[str, Mapping[str, Sequence[str]]]
"""Data sets by category, by the average in which they count: the mean over categories of each one's mean."""


@dataclass(frozen=True)
class Put:
    """An example as it is put to a model whose tokenizer is known."""

    example: Example
    question: Question
    ids: Tensor
    """[P] of the whole context."""


@dataclass(frozen=True)
class Shown:
    """What a method is given of a data set: texts, the examples in the order in which they are asked, what was cut."""

    texts: list[Text]
    order: list[Put]
    cut: int
    lost: int
    """How many of the cut ones had their answer in the text before, and no longer."""


def run(
    llm: SharedLLM,
    methods: Sequence[Method],
    benchmark: str,
    datasets: Sequence[Dataset],
    averages: Averages,
    seed: int,
    progress: Callable[[str], None],
    results: Results,
    max_new_tokens: int | None = None,
    said: Mapping[str, Any] | None = None,
    free: float = math.inf,
    whole: Averages | None = None,
) -> Iterator[dict[str, Any]]:
    """Put all data sets to all methods, unless `results` has the row already; then average for every method.

    A row has besides what `asking.row` says: `dataset`; `ids`, `expected` and `tokens` (of the whole context), an entry a
    question; `samples_of`, how many examples the data set has; `cut`, how many prompts were cut to `cut_to` tokens, and
    `answer_lost`, how many of them so lost their answer; `groups`, value and samples of parts of the data set. `length` is
    the mean of `tokens`, `texts` a hash of what was there before anything was cut. An average's `datasets` are those that it
    is over, of `datasets_of`.

    Args:
        averages: what is averaged; those with fewer than two data sets at hand are left out.
        max_new_tokens: a lower limit for answers than the benchmark's.
        said: what every row says besides.
        free: memory that can be taken, in bytes; a method that needs more gives rows without a value.
        whole: the averages of all data sets of the benchmark; None: these are all.
    Raises:
        UsageError: no method's limit can hold the answer of any data set, or a package that a score needs is missing;
            nothing was run then.
    """
    check_packages(datasets)
    questions = [[_question(llm, d.task, example, max_new_tokens) for example in d.examples] for d in datasets]
    lacking = [
        {method.name: too_small(method, dataset.task.name, _longest_answer(asking)) for method in methods}
        for dataset, asking in zip(datasets, questions, strict=True)
    ]
    if all(all(reasons.values()) for reasons in lacking):
        raise UsageError(f"{next(reason for reason in lacking[0].values() if reason)}.")
    rows: dict[str, list[dict[str, Any]]] = {method.name: [] for method in methods}
    for dataset, asking, reasons in zip(datasets, questions, lacking, strict=True):
        puts = _puts(llm, dataset, asking)
        for method in methods:
            examination = _examination(method, benchmark, dataset, puts, said or {}, reasons[method.name])
            for row in ask_methods(llm, [method], examination, seed, progress, results, free=free):
                rows[method.name].append(row)
                yield row
    for method in methods:
        for name, categories in averages.items():
            chosen = [r for r in rows[method.name] if any(r["dataset"] in sets for sets in categories.values())]
            if len(chosen) > 1:
                about = {**asked_with(method), **(said or {}), "dataset": name}
                counted = sum(map(len, (whole or averages)[name].values()))
                average = partial(_average, method, benchmark, about, categories, chosen, counted, seed)
                unit = {"average": name, "method": method.name, "of": [r.get("run") for r in chosen]}
                yield results.keep(unit, average, of_others=True)


def jobs(llm: SharedLLM, datasets: Sequence[Dataset], max_new_tokens: int | None = None) -> list[Job]:
    """What is to be done, a job a context with all its questions; arguments as of `run`.

    Raises:
        UsageError: a package that a score needs is missing.
    """
    check_packages(datasets)
    made = []
    for dataset in datasets:
        by_context: dict[str, list[Question]] = {}
        for example in dataset.examples:
            question = _question(llm, dataset.task, example, max_new_tokens)
            by_context.setdefault(example.context, []).append(question)
        for context, questions in by_context.items():
            beside = max(tokens_beside(question.prompt, question.max_new_tokens) for question in questions)
            new, tokens = questions[0].max_new_tokens, len(llm.reader.token_ids(context))
            made.append(Job(tokens, 1, len(questions), new, beside=beside, dataset=dataset.task.name))
    return made


def check_packages(datasets: Sequence[Dataset]) -> None:
    """Raise `UsageError` where a package is missing that only the scores of some data sets need.

    Each is imported: one that is there and broken would stop the run after its first answer.
    """
    lacking: dict[str, list[str]] = {}
    for dataset in datasets:
        for package in dataset.task.needs:
            try:
                required(package)
            except UsageError:
                lacking.setdefault(package, []).append(dataset.task.name)
    if lacking:
        names = dict.fromkeys(name for of in lacking.values() for name in of)
        raise UsageError(
            f"the scores of {', '.join(names)} need {', '.join(lacking)}; {to_install('eval')}, or name other --tasks."
        )


def _question(llm: SharedLLM, task: Task, example: Example, max_new_tokens: int | None) -> Question:
    """An example's question in the benchmark's wording, white space included."""
    after = example.after
    between, ending = after[: len(after) - len(after.lstrip())], after[len(after.rstrip()) :]
    prompt = Prompt(
        llm.tokenizer, after, before=example.before, between=between, ending=ending,
        chat=task.chat, answer_prefix="", asks=example.asks,
    )  # fmt: skip
    new = min(task.max_new_tokens, max_new_tokens or task.max_new_tokens)
    return Question(prompt, lambda answer: 100 * example.score(answer), new, example.expected, stop=task.stop)


def _longest_answer(questions: Sequence[Question]) -> int:
    return max(question.max_new_tokens for question in questions)


def _puts(llm: SharedLLM, dataset: Dataset, questions: Sequence[Question]) -> list[Put]:
    """All examples with the token ids of their contexts; those with the same context share them."""
    ids: dict[str, Tensor] = {}
    for example in dataset.examples:
        if example.context not in ids:
            ids[example.context] = llm.reader.token_ids(example.context).long()
    return [Put(e, question, ids[e.context]) for e, question in zip(dataset.examples, questions, strict=True)]


def _shown(method: Method, source: str, puts: Sequence[Put]) -> Shown:
    """What a method gets: each context once with all its questions, or each prompt cut to the method's limit."""
    if method.limit is None:
        by_context: dict[str, list[Put]] = {}
        for put in puts:
            by_context.setdefault(put.example.context, []).append(put)
        texts = [Text(source, same[0].ids, [put.question for put in same]) for same in by_context.values()]
        return Shown(texts, [put for same in by_context.values() for put in same], 0, 0)
    texts, cut, lost = [], 0, 0
    for put in puts:
        text, left = _cut(source, put, method.limit - put.question.max_new_tokens)
        if left is not put.ids:
            cut += 1
            shown = method.llm.tokenizer.decode(left, skip_special_tokens=True)
            lost += answer_lost(put.example.traces, put.example.context, shown)
        texts.append(text)
    return Shown(texts, list(puts), cut, lost)


def _cut(source: str, put: Put, room: int) -> tuple[Text, Tensor]:
    """An example whose prompt has at most `room` tokens, and what is left of its context; all of it, where it fits."""
    before, after = map(len, put.question.prompt.around_text())
    if before + after > room:
        prompt, left = cut_whole(put.question.prompt, put.ids, room)
        return Text(source, put.ids[:0], [replace(put.question, prompt=prompt)]), left
    ids = cut_middle(put.ids, before, after, room)
    return Text(source, ids, [put.question]), ids


def _examination(
    method: Method, benchmark: str, dataset: Dataset, puts: Sequence[Put], said: Mapping[str, Any], reason: str | None
) -> Examination:
    """A data set as it is put to one method, or with the reason why it is not."""
    task = dataset.task
    shown = Shown([], list(puts), 0, 0) if reason else _shown(method, task.name, puts)
    tokens = [len(put.ids) for put in shown.order]

    def more(asked: Asked) -> dict[str, Any]:
        groups: dict[str, list[float]] = {}
        for put, score in zip(shown.order, asked.scores, strict=True):
            for group in put.example.groups:
                groups.setdefault(group, []).append(score)
        return {
            "sources": [task.name],
            "samples_of": dataset.of or len(dataset.examples),
            "texts": hash_of([Text(task.name, put.ids, [put.question]) for put in puts]),
            "cut": shown.cut,
            "cut_to": None if method.limit is None else method.limit - shown.order[0].question.max_new_tokens,
            "answer_lost": shown.lost,
            "groups": {name: {"value": _mean(scores), "samples": len(scores)} for name, scores in groups.items()},
            "ids": [put.example.id for put in shown.order],
            "tokens": tokens,
            "expected": [list(put.example.expected) for put in shown.order],
        }

    return Examination(
        benchmark, task.metric, round(_mean(tokens)), shown.texts, more,
        summary=lambda scores: f"{task.name}, {mean_score(scores)}", about={**said, "dataset": task.name},
        most=100.0, reason=reason, longest=max(tokens),
    )  # fmt: skip


def _average(
    method: Method,
    benchmark: str,
    about: Mapping[str, Any],
    categories: Mapping[str, Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
    counted: int,
    seed: int,
) -> dict[str, Any]:
    """The mean over categories of their data sets' mean, of all samples and of each group; none where one has none.

    Args:
        counted: how many data sets count in it where all are at hand.
    """
    metric, length = "mean of categories", round(_mean([r["length"] for r in rows]))
    if lacking := next((r for r in rows if "reason" in r), None):
        reason = f"{lacking['dataset']}: {lacking['reason']}"
        return {**about, **refused(method.llm, benchmark, metric, method.name, length, reason, seed)}
    parts = {c: [r for r in rows if r["dataset"] in sets] for c, sets in categories.items()}
    parts = {category: inside for category, inside in parts.items() if inside}
    means = {category: _mean([r["value"] for r in inside]) for category, inside in parts.items()}
    bounded = [[(r["value"], r["low"], r["high"]) for r in inside] for inside in parts.values()]
    low, high = bounds_of_mean(
        [(mean, *bounds_of_mean(inside)) for mean, inside in zip(means.values(), bounded, strict=True)], 0.0, 100.0
    )
    return {
        **about,
        "task": benchmark,
        "method": method.name,
        "length": length,
        "metric": metric,
        "value": _mean(list(means.values())),
        "low": low,
        "high": high,
        **together(method.llm, rows, seed),
        "cut": sum(r["cut"] for r in rows),
        "answer_lost": sum(r["answer_lost"] for r in rows),
        "categories": means,
        "groups": _average_groups(list(parts.values())),
        "datasets": [r["dataset"] for r in rows],
        "datasets_of": counted,
    }


def _average_groups(categories: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """The same average of every group, over the data sets that have samples in it."""
    names = dict.fromkeys(name for inside in categories for r in inside for name in r["groups"])
    made = {}
    for name in names:
        having = [[r["groups"][name] for r in inside if name in r["groups"]] for inside in categories]
        means = [_mean([group["value"] for group in inside]) for inside in having if inside]
        samples = sum(group["samples"] for inside in having for group in inside)
        made[name] = {"value": _mean(means), "samples": samples}
    return made


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
