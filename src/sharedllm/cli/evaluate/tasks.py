"""The benchmarks that `sharedllm eval` knows: what each makes of the command's options, one entry a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedllm.cli import common

if TYPE_CHECKING:
    from torch import Tensor

    from sharedllm.data.needles import Needle
    from sharedllm.evaluate.examples import Dataset
    from sharedllm.evaluate.examples import Task as BenchmarkTask
    from sharedllm.evaluate.forecast import Job
    from sharedllm.evaluate.needle import Haystack
    from sharedllm.evaluate.perplexity import Passage
    from sharedllm.evaluate.results import Results
    from sharedllm.evaluate.suite import Averages
    from sharedllm.methods import Method
    from sharedllm.model import SharedLLM
    from sharedllm.sources import Document

Rows = Iterator[dict[str, Any]]
Samples = Iterator[dict[str, Any]]
NEW_TOKENS = 32  # of an answer, in the benchmarks of one's own texts


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked, with model and methods loaded."""

    llm: SharedLLM
    methods: Sequence[Method]
    documents: Sequence[Document]
    data: Path | None
    subtasks: Sequence[str]
    lengths: Sequence[int]
    samples: int
    stride: int | None
    """Tokens between passages that slide over whole texts; None: `samples` of them are taken."""
    targets: int
    per_text: int
    max_new_tokens: int | None
    """None: as many as the benchmark allows."""
    variant: str
    ceiling: bool
    seed: int
    results: Results
    free: float
    """Memory that a method can take, in bytes."""

    @cached_property
    def texts(self) -> list[tuple[str, Tensor]]:
        """Name and token ids [n] of each document."""
        return [(Path(d.name).name, self.llm.reader.token_ids(d.text).long()) for d in self.documents]

    @cached_property
    def passages(self) -> list[Passage]:
        """The passages that perplexity scores: those of the longest length, whose ends are those of the shorter ones."""
        from sharedllm.evaluate.perplexity import cut_passages, slide_passages

        longest = max(self.lengths)
        cut_passages(self.texts, min(self.lengths), 1)  # too short a length is refused
        if self.stride:
            passages = slide_passages(self.texts, longest, self.stride)
            common.say(f"{len(passages):,} passages of {longest:,} tokens, one every {self.stride:,}")
            return passages
        passages = cut_passages(self.texts, longest, self.samples, self.targets)
        if len(passages) < self.samples:
            common.say(
                f"the texts have room for {len(passages)} passages whose scored tokens differ, not {self.samples}"
            )
        return passages


@dataclass(frozen=True)
class Task:
    """A benchmark: its rows for a request, whether it needs `--text` or `--data`, the names that `--tasks` may have, its
    samples for other systems, where `--write-samples` can write them, and what is to be done, where that is known before.

    `takes` names the options that change something, of those that not every task has."""

    rows: Callable[[Request], Rows]
    takes: tuple[str, ...]
    needs_text: bool = False
    needs_data: bool = False
    subtasks: Callable[[], list[str]] = list
    samples: Callable[[Request], Samples] | None = None
    jobs: Callable[[Request], list[Job]] | None = None


def _perplexity(asked: Request) -> Rows:
    """Rows of all lengths, each of which ends in the same passages' last tokens."""
    from sharedllm.evaluate.perplexity import run

    return run(
        asked.methods, asked.passages, asked.lengths, asked.targets, asked.seed, common.say, asked.results, asked.free
    )  # fmt: skip


def _perplexity_jobs(asked: Request) -> list[Job]:
    from sharedllm.evaluate.forecast import Job

    count = len(asked.passages)
    return [Job(n, count, count, targets=min(asked.targets, n - 1)) for n in asked.lengths]


def _question_jobs(asked: Request) -> list[Job]:
    from sharedllm.evaluate.forecast import Job

    texts = -(-asked.samples // asked.per_text)
    return [Job(n, texts, asked.samples, asked.max_new_tokens or NEW_TOKENS) for n in asked.lengths]


def _ruler_jobs(asked: Request) -> list[Job]:
    from sharedllm.evaluate.forecast import Job
    from sharedllm.evaluate.ruler.tasks import TASKS as RULER

    count = asked.samples
    return [Job(n, count, count, RULER[name].max_new_tokens) for n in asked.lengths for name in asked.subtasks]


def _passages(asked: Request) -> Samples:
    from sharedllm.evaluate.samples import passage_samples

    window = next((m.window for m in asked.methods if m.name == "shared"), asked.methods[0].window)
    return passage_samples(asked.llm, asked.passages, asked.lengths, window, asked.targets)


def _haystacks(asked: Request) -> list[list[Haystack]]:
    """Those of every length; every length is checked before the first is run."""
    from sharedllm.evaluate.asking import tokens_beside
    from sharedllm.evaluate.needle import build_haystacks
    from sharedllm.prompts import Prompt

    llm, new = asked.llm, asked.max_new_tokens or NEW_TOKENS

    def encode(statement: str) -> Tensor:
        return llm.reader.token_ids(statement).long()

    def beside(needle: Needle) -> int:
        return tokens_beside(Prompt(llm.tokenizer, needle.question), new)

    return [
        build_haystacks(asked.texts, n, asked.samples, asked.per_text, asked.seed, encode, beside)
        for n in asked.lengths
    ]


def _needle_samples(asked: Request) -> Samples:
    from sharedllm.evaluate.needle import as_text
    from sharedllm.evaluate.samples import question_samples

    new = asked.max_new_tokens or NEW_TOKENS
    for length, haystacks in zip(asked.lengths, _haystacks(asked), strict=True):
        texts = [as_text(haystack, asked.llm.tokenizer, new) for haystack in haystacks]
        yield from question_samples(asked.llm, "needle", "found", length, texts)


def _needle(asked: Request) -> Rows:
    """Rows of all lengths."""
    from sharedllm.evaluate.needle import run

    per_length = _haystacks(asked)
    return chain.from_iterable(
        run(
            asked.llm, asked.methods, length, haystacks, asked.max_new_tokens or NEW_TOKENS, asked.seed, common.say,
            asked.ceiling, asked.results, asked.free,
        )
        for length, haystacks in zip(asked.lengths, per_length, strict=True)
    )  # fmt: skip


def _questions(asked: Request) -> Rows:
    """Rows of all lengths; every length is checked before the first is run."""
    from sharedllm.evaluate.questions import examine, run

    per_length = [
        examine(asked.texts, n, asked.samples, asked.per_text, asked.llm.tokenizer, asked.max_new_tokens or NEW_TOKENS)
        for n in asked.lengths
    ]
    return chain.from_iterable(
        run(asked.llm, asked.methods, length, texts, asked.seed, common.say, asked.ceiling, asked.results, asked.free)
        for length, texts in zip(asked.lengths, per_length, strict=True)
    )


def _real(asked: Request) -> Rows:
    """Rows of the one text that ships, whatever the lengths."""
    from sharedllm.evaluate import real

    return real.run(
        asked.llm, asked.methods, real.load().spread(asked.samples), asked.max_new_tokens or NEW_TOKENS, asked.seed,
        common.say, asked.ceiling, asked.results, asked.free,
    )  # fmt: skip


def _ruler(asked: Request) -> Rows:
    from sharedllm.evaluate.ruler.corpus import Corpus
    from sharedllm.evaluate.ruler.run import run

    corpus = Corpus([document.text for document in asked.documents], asked.data)
    return run(
        asked.llm, asked.methods, asked.subtasks, asked.lengths, asked.samples, corpus, asked.seed, common.say,
        asked.ceiling, asked.results, asked.free,
    )  # fmt: skip


def _ruler_tasks() -> list[str]:
    from sharedllm.evaluate.ruler.tasks import TASKS

    return list(TASKS)


def _longbench(asked: Request) -> Rows:
    from sharedllm.evaluate import longbench

    assert asked.data is not None  # the command asks for it
    datasets = longbench.datasets(asked.data, asked.subtasks, asked.variant)
    return _suite(asked, "longbench", datasets, longbench.averages, {"variant": asked.variant})


def _infinitebench(asked: Request) -> Rows:
    from sharedllm.evaluate import infinitebench

    assert asked.data is not None
    datasets = infinitebench.datasets(asked.data, asked.subtasks)
    return _suite(asked, "infinitebench", datasets, infinitebench.averages, {})


def _suite(
    asked: Request,
    name: str,
    datasets: Sequence[Dataset],
    averages: Callable[[Sequence[BenchmarkTask]], Averages],
    said: dict[str, Any],
) -> Rows:
    """Rows of all data sets of given files, and their averages."""
    from sharedllm.evaluate.suite import run

    return run(
        asked.llm, asked.methods, name, [dataset.spread(asked.samples) for dataset in datasets],
        averages([dataset.task for dataset in datasets]), asked.seed, common.say, asked.results,
        asked.max_new_tokens, said, asked.free,
    )  # fmt: skip


def _longbench_tasks() -> list[str]:
    from sharedllm.evaluate import longbench

    return longbench.names()


def _infinitebench_tasks() -> list[str]:
    from sharedllm.evaluate import infinitebench

    return infinitebench.names()


ANSWERS = ("--max-new-tokens", "--ceiling")
TASKS = {
    "perplexity": Task(_perplexity, ("--text", "--stride"), needs_text=True, samples=_passages, jobs=_perplexity_jobs),
    "needle": Task(_needle, ("--text", *ANSWERS), needs_text=True, samples=_needle_samples, jobs=_question_jobs),
    "questions": Task(_questions, ("--text", *ANSWERS), needs_text=True, jobs=_question_jobs),
    "real": Task(_real, ANSWERS),
    "ruler": Task(_ruler, ("--text", "--data", "--ceiling"), subtasks=_ruler_tasks, jobs=_ruler_jobs),
    "longbench": Task(
        _longbench, ("--data", "--variant", "--max-new-tokens"), needs_data=True, subtasks=_longbench_tasks
    ),
    "infinitebench": Task(
        _infinitebench, ("--data", "--max-new-tokens"), needs_data=True, subtasks=_infinitebench_tasks
    ),
}
