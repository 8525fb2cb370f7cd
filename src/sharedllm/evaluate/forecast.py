"""What a run will take, said before it starts: memory and time of each method at each length.

Memory is counted from shapes. Time is what has to be done (`Method.reading`, `Method.answering`) at the pace that two
passes of the model reach here, so it is rough: what a cache holds, and what the operating system does, is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sharedllm.evaluate.row import refusal
from sharedllm.methods import Method
from sharedllm.methods.estimate import Passes, one_pass
from sharedllm.model import SharedLLM

SHORT, LONG = 128, 1024  # tokens of the two passes that are timed


@dataclass(frozen=True)
class Job:
    """Texts of a length that are read, and what is asked of them: windows that are scored, or questions.

    Args:
        length: tokens that a method is given, text and question.
        texts: how many.
        asked: of all of them together.
        new_tokens: of an answer at most; 0: tokens are scored.
        targets: scored tokens.
    """

    length: int
    texts: int
    asked: int
    new_tokens: int = 0
    targets: int = 0


@dataclass(frozen=True)
class Pace:
    """Seconds a token that passes the model, a pair of a query and a key, and a token that is generated."""

    token: float
    pair: float
    generated: float

    def seconds(self, passes: Passes) -> float:
        return self.token * passes.tokens + self.pair * passes.pairs


@dataclass(frozen=True)
class Expected:
    """What a method is expected to take at a length; `reason`: why it is not measured there."""

    method: str
    length: int
    bytes: int
    seconds: float
    reason: str | None


@torch.no_grad()
def pace_of(llm: SharedLLM) -> Pace:
    """The pace of the plain model here, from passes of 1, `SHORT` and `LONG` tokens."""
    long = min(LONG, llm.window)
    short = max(1, long * SHORT // LONG)

    def timed(tokens: int) -> float:
        ids = torch.zeros(1, tokens, dtype=torch.long, device=llm.device)
        took = []
        for _ in range(2):
            started = time.perf_counter()
            llm.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits.flatten()[0].item()
            took.append(time.perf_counter() - started)
        return min(took)

    generated, less, more = timed(1), one_pass(short), one_pass(long)
    few, many = (max(0.0, timed(tokens) - generated) for tokens in (short, long))  # a pass has to begin and to end too
    by_token = few / less.tokens  # two equations, few = token * tokens + pair * pairs, and neither below 0
    pair = max(0.0, (many - by_token * more.tokens) / (more.pairs - less.pairs * more.tokens / less.tokens))
    pair = min(pair, many / more.pairs)  # a short pass may have been disturbed less than that of one token
    return Pace(max(0.0, many - pair * more.pairs) / more.tokens, pair, generated)


def expected(methods: Sequence[Method], jobs: Sequence[Job], pace: Pace, free: float) -> Iterator[Expected]:
    """By method and length, the longest last; what is read once for all lengths is counted with the longest."""
    longest = max((job.length for job in jobs), default=0)
    for method in methods:
        for job in sorted(jobs, key=lambda job: job.length):
            reason = refusal(method, job.length, job.length, job.targets, free)
            reads = 0 if method.reads_once and not job.new_tokens and job.length < longest else job.texts
            past = job.length - (min(method.window, job.length) if job.targets else 0)
            work = method.reading(past).times(reads) + method.answering(job.length).times(job.asked)
            seconds = pace.seconds(work) + pace.generated * job.new_tokens * job.asked
            memory = method.peak_bytes(job.length, job.targets)
            yield Expected(method.name, job.length, memory, 0.0 if reason else seconds, reason)


def lines(found: Sequence[Expected]) -> Iterator[str]:
    """The same for a person."""
    yield "expected, where the results file has nothing yet (memory beyond the model; time as two short passes let guess):"
    for one in found:
        cost = f"not measured: {one.reason}" if one.reason else f"{one.bytes / 1e9:8.2f} GB  {spoken(one.seconds):>8}"
        yield f"  {one.method:<16} {one.length:>9,} tokens  {cost}"
    yield f"  in all about {spoken(sum(one.seconds for one in found))}"


def spoken(seconds: float) -> str:
    """Seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
