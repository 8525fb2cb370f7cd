"""Perplexity: nats a token of the last targets of a passage, by every method on the same tokens.

A passage is `length` tokens in a row of one text. What a method sees itself is the window (its newest
tokens); what lies before is the past, given to the method as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharedllm.errors import UsageError
from sharedllm.evaluate.statistics import bootstrap
from sharedllm.hardware import peak_memory_bytes
from sharedllm.methods import Method


@dataclass(frozen=True)
class Passage:
    """Token ids of a passage and where it comes from."""

    source: str
    start: int
    ids: Tensor


def cut_passages(texts: Sequence[tuple[str, Tensor]], length: int, samples: int) -> list[Passage]:
    """`samples` passages of `length` tokens, taken in turn from the texts and evenly spread in each.

    Raises:
        UsageError: no text is long enough; the longest is named.
    """
    if length < 2:
        raise UsageError(f"a length of {length} tokens cannot be scored; give at least 2.")
    long_enough = [(name, ids) for name, ids in texts if len(ids) >= length]
    if not long_enough:
        name, ids = max(texts, key=lambda t: len(t[1]))
        raise UsageError(
            f"no text has {length:,} tokens; the longest, {name}, has {len(ids):,}: give longer texts or lengths."
        )
    passages = []
    for t, (name, ids) in enumerate(long_enough):
        share = samples // len(long_enough) + (t < samples % len(long_enough))
        room = len(ids) - length
        for k in range(share):
            start = room * (2 * k + 1) // (2 * share)
            passages.append(Passage(name, start, ids[start : start + length]))
    return passages


def run(
    methods: Sequence[Method], passages: Sequence[Passage], targets: int, seed: int, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Score all passages (of one length) by all methods; yields a row a method, then paired differences.

    A row's `value` is the mean over passages of the mean nats of a passage; `low` and `high` bound it
    (95 % bootstrap over passages); `values` gives each passage, `sources` its text.
    The first target always has a token
    before it in the window, so a window of `targets` tokens is widened by one.
    """
    length = len(passages[0].ids)
    targets = min(targets, length - 1)
    scores: dict[str, list[float]] = {}
    for method in methods:
        window = min(length, max(method.window, targets + 1))
        started, values = time.perf_counter(), []
        for i, passage in enumerate(passages):
            past, newest = passage.ids[: length - window], passage.ids[length - window :]
            values.append(method.score(method.prepare(past), newest, targets).mean().item())
            progress(f"{method.name} at {length:,}: passage {i + 1} of {len(passages)}, {values[-1]:.3f} nats")
        scores[method.name] = values
        yield {
            **_row(method, length, passages, targets, window, values, seed),
            "metric": "nll",
            "seconds": round(time.perf_counter() - started, 3),
        }
    if "truncate" in scores:
        for method in methods:
            if method.name != "truncate":
                gains = [a - b for a, b in zip(scores["truncate"], scores[method.name], strict=True)]
                row = _row(method, length, passages, targets, min(length, max(method.window, targets + 1)), gains, seed)
                yield {**row, "metric": "nll_gain_over_truncate", "seconds": 0.0}


def _row(
    method: Method, length: int, passages: Sequence[Passage], targets: int, window: int, values: list[float], seed: int
) -> dict[str, Any]:
    low, high = bootstrap(values, seed)
    llm = method.llm
    return {
        "task": "perplexity",
        "method": method.name,
        "length": length,
        "value": sum(values) / len(values),
        "low": low,
        "high": high,
        "samples": len(values),
        "targets": targets,
        **method.settings(),
        "window": window,
        "peak_memory_bytes": peak_memory_bytes(llm.device),
        "model": llm.name,
        "adapter": llm.adapter,
        "device": str(llm.device),
        "dtype": str(llm.dtype).removeprefix("torch."),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "sources": [p.source for p in passages],
        "values": [round(v, 6) for v in values],
    }
