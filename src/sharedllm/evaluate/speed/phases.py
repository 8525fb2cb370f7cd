"""One question on a long text, timed by phase; the same for every method.

A phase ends where the model's own forward pass starts or ends, so a method need not say where that is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sharedllm.evaluate.stopping import endless
from sharedllm.hardware import finished
from sharedllm.methods import Method
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt

Clock = Callable[[], float]
"""Seconds since some moment."""


@dataclass(frozen=True)
class Sample:
    """A text, and its token ids [n]."""

    text: str
    ids: Tensor


@dataclass(frozen=True)
class Phases:
    """Seconds of one question on a text that was not read before."""

    tokenise: float
    """From the text to its token ids."""
    read: float
    """What is done once a text, however many questions follow."""
    search: float
    """From the question to the first forward pass of the whole model."""
    first_token: float
    """From there to the first token's logits."""
    per_token: float
    """Median of the tokens after the first."""
    per_token_alone: float
    """The same where nothing was read."""
    bare_read: float | None
    """The lowest layers over the batches that were read, and nothing else; None where they read none."""

    @property
    def second(self) -> float:
        """Of a further question: to its first token."""
        return self.search + self.first_token

    @property
    def to_first_token(self) -> float:
        """Of the first question: from token ids to its first token."""
        return self.read + self.second


def rounds_of(row: Mapping[str, Any]) -> list[Phases]:
    """The rounds that a results row of a time says."""
    said: Mapping[str, Any] = row["rounds"]
    names = {f.name: f"{f.name}_seconds" for f in fields(Phases)}
    every: list[dict[str, Any]] = [
        {name: said[key][k] if key in said else None for name, key in names.items()} for k in range(row["samples"])
    ]
    return [Phases(**round_) for round_ in every]


@dataclass(frozen=True)
class Asked:
    """One question, its seconds as of `Phases`."""

    search: float
    first_token: float
    per_token: float
    answer: Tensor
    """Token ids [new]."""


def clock(device: torch.device) -> Clock:
    """A clock that waits for what the device was given to do."""

    def now() -> float:
        finished(device)
        return time.perf_counter()

    return now


def measure(method: Method, sample: Sample, prompt: Prompt, new_tokens: int, now: Clock) -> Phases:
    """Time one question on a text, and what it is compared with.

    Args:
        new_tokens: of the answer, at least 2; it never ends earlier.
    """
    llm = method.llm
    alone = ask(method, method.prepare_to_ask(sample.ids[:0], prompt), prompt, new_tokens, now)
    started = now()
    llm.reader.token_ids(sample.text)
    tokenised = now()
    with _lower_batches(llm) as batches:
        past = method.prepare_to_ask(sample.ids, prompt)
    read = now()
    asked = ask(method, past, prompt, new_tokens, now)
    return Phases(
        tokenise=tokenised - started,
        read=read - tokenised,
        search=asked.search,
        first_token=asked.first_token,
        per_token=asked.per_token,
        per_token_alone=alone.per_token,
        bare_read=_bare(llm, batches, now) if batches else None,
    )


def ask(method: Method, past: Any, prompt: Prompt, new_tokens: int, now: Clock) -> Asked:
    """Put a question on what `Method.prepare` gave; the answer has `new_tokens` tokens, at least 2."""
    started = now()
    with _passes(method.llm.model, now) as spans, endless(method.llm.model):
        answer = method.ask(past, prompt, new_tokens)
    ends = [
        end for _, end in spans[-len(answer) :]
    ]  # a question may take several passes, a token after the first takes one
    gaps = [later - end for end, later in zip(ends, ends[1:], strict=False)]
    return Asked(spans[0][0] - started, ends[0] - spans[0][0], median(gaps), answer)


@contextmanager
def _passes(model: Any, now: Clock) -> Iterator[list[tuple[float, float]]]:
    """When each forward pass of the model within this block starts and ends."""
    starts, spans = list[float](), list[tuple[float, float]]()
    handles = [
        model.register_forward_pre_hook(lambda *_: starts.append(now())),
        model.register_forward_hook(lambda *_: spans.append((starts[-1], now()))),
    ]
    try:
        yield spans
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _lower_batches(llm: SharedLLM) -> Iterator[list[Tensor]]:
    """Token ids [X, C] of every batch that the lower model reads within this block."""
    batches = list[Tensor]()

    def note(module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if module is llm.lower.module:  # a shallow copy: it shares its hooks with the whole model
            batches.append(kwargs["input_ids"])

    handle = llm.lower.module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield batches
    finally:
        handle.remove()


@torch.no_grad()
def _bare(llm: SharedLLM, batches: Sequence[Tensor], now: Clock) -> float:
    """Seconds of the lowest layers alone over the same batches: what reading cannot be faster than."""
    started = now()
    with llm.lower.apart():
        for ids in batches:
            llm.lower.module(input_ids=ids, use_cache=False)
    return now() - started
