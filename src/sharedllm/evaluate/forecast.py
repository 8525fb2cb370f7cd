"""What a run will take, said before it starts: memory and time of each method at each length.

Memory is counted from shapes. Time is what has to be done (`Method.reading`, `Method.answering`) at the pace that two
passes of the model reach here, so it is rough: what a cache holds, and what the operating system does, is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sharedllm.evaluate.row import refusal, too_small
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
        beside: tokens of the longest question and answer, where `length` is the text's alone.
        dataset: whose texts they are; "": of none that has a name. Jobs of one data set are summed whatever their lengths.
    """

    length: int
    texts: int
    asked: int
    new_tokens: int = 0
    targets: int = 0
    beside: int = 0
    dataset: str = ""

    def given(self, method: Method) -> int:
        """Tokens that a method gets of it; a data set's prompts are cut to the limit of one that has a limit."""
        whole = self.length + self.beside
        return min(whole, method.limit) if self.dataset and method.limit is not None else whole


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
    """What a method is expected to take at a length, or of a data set, whose mean length it is; `reason`: why it is not
    measured there."""

    method: str
    length: int
    bytes: int
    seconds: float
    reason: str | None
    dataset: str = ""


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
    """By method and length, the longest last, or by method and data set, in their order; what is read once for all lengths
    is counted with the longest."""
    longest = max((job.length for job in jobs), default=0)
    together: dict[str | int, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: 0 if job.dataset else job.length):
        together.setdefault(job.dataset or job.length, []).append(job)
    for method in methods:
        for alike in together.values():
            length = round(sum(job.length * job.asked for job in alike) / sum(job.asked for job in alike))
            reason = _reason(method, alike, free)
            seconds = sum(_seconds(method, job, pace, job.length == longest) for job in alike)
            memory = max(method.peak_bytes(job.given(method), job.targets) for job in alike)
            yield Expected(method.name, length, memory, 0.0 if reason else seconds, reason, alike[0].dataset)


def _reason(method: Method, alike: Sequence[Job], free: float) -> str | None:
    """Why a method is not measured on these, or None: it is."""
    dataset, new = alike[0].dataset, max(job.new_tokens for job in alike)
    if dataset and (reason := too_small(method, dataset, new)):
        return reason
    longest = max(job.length for job in alike)
    return refusal(method, longest, max(job.given(method) for job in alike), alike[0].targets, free)


def _seconds(method: Method, job: Job, pace: Pace, last: bool) -> float:
    """What a method takes for a job; `last`: it has the longest texts."""
    given = job.given(method)
    reads = 0 if method.reads_once and not job.new_tokens and not last else job.texts
    past = given - (min(method.window, given) if job.targets else job.beside)
    passes = job.texts if method.keeps_cache and job.new_tokens else job.asked
    work = method.reading(max(0, past)).times(reads) + method.answering(given).times(passes)
    return pace.seconds(work) + pace.generated * job.new_tokens * job.asked


def lines(found: Sequence[Expected]) -> Iterator[str]:
    """The same for a person."""
    yield "expected, where the results file has nothing yet (memory beyond the model; time as two short passes let guess):"
    for one in found:
        cost = f"not measured: {one.reason}" if one.reason else f"{one.bytes / 1e9:8.2f} GB  {spoken(one.seconds):>8}"
        of = f"{one.dataset:<21} mean" if one.dataset else ""
        yield f"  {one.method:<16} {of}{one.length:>9,} tokens  {cost}"
    yield f"  in all about {spoken(sum(one.seconds for one in found))}"


def spoken(seconds: float) -> str:
    """Seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
