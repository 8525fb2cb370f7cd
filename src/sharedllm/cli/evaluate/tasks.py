"""The benchmarks that `sharedllm eval` knows: what each makes of a request, one entry a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from sharedllm.cli import common
from sharedllm.cli.evaluate.jobs import perplexity_jobs, question_jobs, real_jobs, ruler_jobs, suite_jobs
from sharedllm.cli.evaluate.request import Request

if TYPE_CHECKING:
    from sharedllm.evaluate.examples import Task as BenchmarkTask
    from sharedllm.evaluate.forecast import Job
    from sharedllm.evaluate.suite import Averages

Rows = Iterator[dict[str, Any]]
Samples = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """A benchmark: its rows for a request, what is to be done for them, whether it needs `--text` or `--data`, the names that
    `--tasks` may have, and its samples for other systems, where `--write-samples` can write them.

    `takes` names the options that change something, of those that not every task has."""

    rows: Callable[[Request], Rows]
    takes: tuple[str, ...]
    jobs: Callable[[Request], list[Job]]
    needs_text: bool = False
    needs_data: bool = False
    subtasks: Callable[[], list[str]] = list
    samples: Callable[[Request], Samples] | None = None


def _perplexity(asked: Request) -> Rows:
    """Rows of all lengths, each of which ends in the same passages' last tokens."""
    from sharedllm.evaluate.perplexity import run

    return run(
        asked.methods, asked.passages, asked.lengths, asked.targets, asked.seed, common.say, asked.results, asked.free,
        asked.stride,
    )  # fmt: skip


def _passages(asked: Request) -> Samples:
    from sharedllm.evaluate.samples import passage_samples

    window = next((m.window for m in asked.methods if m.name == "shared"), asked.methods[0].window)
    return passage_samples(asked.llm, asked.passages, asked.lengths, window, asked.targets)


def _needle_samples(asked: Request) -> Samples:
    from sharedllm.evaluate.needle import as_text
    from sharedllm.evaluate.samples import question_samples

    for length, haystacks in zip(asked.lengths, asked.haystacks, strict=True):
        texts = [as_text(haystack, asked.llm.tokenizer, asked.new_tokens) for haystack in haystacks]
        yield from question_samples(asked.llm, "needle", "found", length, texts)


def _needle(asked: Request) -> Rows:
    """Rows of all lengths."""
    from sharedllm.evaluate.needle import run

    return chain.from_iterable(
        run(
            asked.llm, asked.methods, length, haystacks, asked.new_tokens, asked.seed, common.say, asked.ceiling,
            asked.results, asked.free,
        )
        for length, haystacks in zip(asked.lengths, asked.haystacks, strict=True)
    )  # fmt: skip


def _questions(asked: Request) -> Rows:
    """Rows of all lengths."""
    from sharedllm.evaluate.questions import run

    return chain.from_iterable(
        run(
            asked.llm, asked.methods, length, texts, asked.seed, common.say, asked.ceiling, asked.results, asked.free,
            alone=number == 0,
        )
        for number, (length, texts) in enumerate(zip(asked.lengths, asked.examined, strict=True))
    )  # fmt: skip


def _real(asked: Request) -> Rows:
    """Rows of the one text that ships, whatever the lengths."""
    from sharedllm.evaluate import real

    return real.run(
        asked.llm, asked.methods, asked.written, asked.new_tokens, asked.seed, common.say,
        asked.ceiling, asked.results, asked.free,
    )  # fmt: skip


def _ruler(asked: Request) -> Rows:
    from sharedllm.evaluate.ruler.run import run

    return run(
        asked.llm, asked.methods, asked.ruler_plan, asked.samples, asked.corpus, asked.seed, common.say, asked.ceiling,
        asked.results, asked.free,
    )  # fmt: skip


def _ruler_tasks() -> list[str]:
    from sharedllm.evaluate.ruler.tasks import TASKS

    return list(TASKS)


def _longbench(asked: Request) -> Rows:
    from sharedllm.evaluate import longbench

    return _suite(asked, longbench.averages, longbench.tasks(asked.variant), {"variant": asked.variant})


def _infinitebench(asked: Request) -> Rows:
    from sharedllm.evaluate import infinitebench

    return _suite(asked, infinitebench.averages, infinitebench.tasks(), {})


def _suite(
    asked: Request,
    averages: Callable[[Sequence[BenchmarkTask]], Averages],
    tasks: Sequence[BenchmarkTask],
    said: dict[str, Any],
) -> Rows:
    """Rows of all data sets of given files, and their averages, those of all `tasks` of the benchmark being `averages` of these."""
    from sharedllm.evaluate.suite import run

    return run(
        asked.llm, asked.methods, asked.task, asked.datasets, averages([dataset.task for dataset in asked.datasets]),
        asked.seed, common.say, asked.results, asked.max_new_tokens, said, asked.free, averages(tasks),
    )  # fmt: skip


def _longbench_tasks() -> list[str]:
    from sharedllm.evaluate import longbench

    return longbench.names()


def _infinitebench_tasks() -> list[str]:
    from sharedllm.evaluate import infinitebench

    return infinitebench.names()


ANSWERS = ("--max-new-tokens", "--ceiling")
TEXTS = ("--text", "--lengths")
TASKS = {
    "perplexity": Task(
        _perplexity, (*TEXTS, "--stride", "--targets"), perplexity_jobs, needs_text=True, samples=_passages
    ),
    "needle": Task(
        _needle, (*TEXTS, "--needles-per-text", *ANSWERS), question_jobs, needs_text=True, samples=_needle_samples
    ),
    "questions": Task(_questions, (*TEXTS, "--needles-per-text", *ANSWERS), question_jobs, needs_text=True),
    "real": Task(_real, ANSWERS, real_jobs),
    "ruler": Task(_ruler, (*TEXTS, "--data", "--ceiling"), ruler_jobs, subtasks=_ruler_tasks),
    "longbench": Task(
        _longbench, ("--data", "--variant", "--max-new-tokens"), suite_jobs, needs_data=True, subtasks=_longbench_tasks
    ),
    "infinitebench": Task(
        _infinitebench, ("--data", "--max-new-tokens"), suite_jobs, needs_data=True, subtasks=_infinitebench_tasks
    ),
}
