"""What each benchmark has to do for a request, for what is said of a run before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharedllm.cli.evaluate.request import Request
    from sharedllm.evaluate.forecast import Job


def perplexity_jobs(asked: Request) -> list[Job]:
    from sharedllm.evaluate.forecast import Job

    count = len(asked.passages)
    return [Job(n, count, count, targets=min(asked.targets, n - 1)) for n in asked.lengths]


def question_jobs(asked: Request) -> list[Job]:
    from sharedllm.evaluate.forecast import Job

    texts = -(-asked.samples // asked.per_text)
    return [Job(n, texts, asked.samples, asked.new_tokens) for n in asked.lengths]


def real_jobs(asked: Request) -> list[Job]:
    from sharedllm.evaluate import real
    from sharedllm.evaluate.asking import most_tokens
    from sharedllm.evaluate.forecast import Job

    text = real.as_text(asked.llm, asked.written, asked.new_tokens)
    beside = most_tokens([text]) - len(text.ids)
    return [Job(len(text.ids), 1, len(text.questions), asked.new_tokens, beside=beside)]


def ruler_jobs(asked: Request, placed: bool = False) -> list[Job]:
    """`placed`: of the tasks alone whose answer is in one place."""
    from sharedllm.evaluate.forecast import Job
    from sharedllm.evaluate.ruler.tasks import TASKS
    from sharedllm.evaluate.ruler.wording import ONE_NEEDLE

    count, planned = asked.samples, asked.ruler_plan
    return [
        Job(n, count, count, TASKS[name].max_new_tokens)
        for n, names in planned.items()
        for name in names
        if not placed or TASKS[name].maker.wording is ONE_NEEDLE
    ]


def suite_jobs(asked: Request) -> list[Job]:
    """Of LongBench and InfiniteBench."""
    from sharedllm.evaluate.suite import jobs

    return jobs(asked.llm, asked.datasets, asked.max_new_tokens)


def ceiling_jobs(asked: Request) -> list[Job]:
    """The passages around the answers, each read for its question alone."""
    from sharedllm.evaluate.asking import CEILING_TOKENS
    from sharedllm.evaluate.forecast import Job

    if asked.task == "ruler":
        made = ruler_jobs(asked, placed=True)
    else:
        made = real_jobs(asked) if asked.task == "real" else question_jobs(asked)
    return [
        Job(min(job.length, CEILING_TOKENS), job.asked, job.asked, job.new_tokens, beside=job.beside) for job in made
    ]


def sample_jobs(asked: Request) -> list[Job]:
    """The texts that `shared` reads once more for `--write-samples`, to count what it keeps of them."""
    from sharedllm.evaluate.forecast import Job

    texts = len(asked.passages) if asked.task == "perplexity" else -(-asked.samples // asked.per_text)
    return [Job(n, texts, texts, new_tokens=1) for n in asked.lengths]
