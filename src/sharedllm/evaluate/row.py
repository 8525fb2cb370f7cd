"""What a results row of any task says besides the task's own figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import transformers

from sharedllm import __version__
from sharedllm.adapter import weights_digest
from sharedllm.errors import out_of_memory
from sharedllm.evaluate.peak import peak
from sharedllm.evaluate.statistics import bounds
from sharedllm.hardware import processor_name
from sharedllm.methods import Method
from sharedllm.model import SharedLLM

MARGIN = 1.25  # allocators and libraries take more than the tensors that are counted
ENDS = 2
"""Tokens of a prompt at least, when it is cut: its first and its last."""
RAN_OUT = "memory ran out"
"""Why a method that was to fit has no value all the same."""
Result = TypeVar("Result")


def machine(llm: SharedLLM) -> dict[str, Any]:
    """Model, adapter, device, its processor, dtype, versions and peak memory, as every row and every JSON output gives them.

    The peak is that since `reset_peak`, which the tasks call before each method, or since the process began.
    """
    return {
        "peak_memory_bytes": peak(llm.device),
        "model": llm.name,
        "adapter": llm.adapter,
        "device": str(llm.device),
        "processor": processor_name(llm.device),
        "dtype": str(llm.dtype).removeprefix("torch."),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Those of the libraries that a value may depend on."""
    return {
        "sharedllm": __version__,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def measured(llm: SharedLLM, values: Sequence[float], seed: int, most: float | None = None) -> dict[str, Any]:
    """The mean of `values` with its 95 % bounds, and with which model, weights, machine and seed it was measured.

    Args:
        most: the highest that a value can be, the lowest being 0; None: there is none. See `statistics.bounds`.
    """
    low, high = bounds(values, seed, most)
    return {
        "value": sum(values) / len(values),
        "low": low,
        "high": high,
        "samples": len(values),
        **machine(llm),
        "adapter_weights": weights_digest(llm.injection),
        "seed": seed,
        "threads": torch.get_num_threads(),
    }


def together(llm: SharedLLM, rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """What a row that sums others up says of them all: samples, seconds, the highest peak of memory, and with which model."""
    return {
        "samples": sum(row["samples"] for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        **machine(llm),
        "adapter_weights": weights_digest(llm.injection),
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
        "seed": seed,
    }


def refusal(method: Method, length: int, tokens: int, scored: int, free: float) -> str | None:
    """Why a method is not measured at a length, or None: it is.

    Args:
        length: tokens of the longest text.
        tokens: all that it would be given there: text, question and answer.
        scored: tokens whose likelihood is computed; 0: answers are generated.
        free: memory that can be taken, in bytes.
    """
    if method.longest is not None and length > method.longest:
        return f"it was to be measured up to {method.longest:,} tokens"
    return too_large(method, tokens, scored, free) or method.quality_reason()


def too_large(method: Method, tokens: int, scored: int, free: float) -> str | None:
    """Why a method does not fit memory, or None: it does; arguments as of `refusal`."""
    needed = MARGIN * method.peak_bytes(tokens, scored)
    if needed <= free:
        return None
    return f"it would take about {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free"


def unless_memory_ends(work: Callable[[], Result]) -> Result | None:
    """What `work` gives; None where memory ran out, and what it took is free again."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None


def too_small(method: Method, dataset: str, max_new_tokens: int) -> str | None:
    """Why a method's limit cannot hold an answer and the two ends of a prompt of a data set, or None: it can, or has none."""
    if method.limit is None or method.limit - max_new_tokens >= ENDS:
        return None
    return (
        f"a window of {method.limit:,} tokens has no room for a question of {dataset} beside an answer of {max_new_tokens:,}; "
        "raise --window, lower --max-new-tokens or name other --tasks"
    )


def refused(llm: SharedLLM, task: str, metric: str, method: str, length: int, reason: str, seed: int) -> dict[str, Any]:
    """The row of a method that is not measured: `value` is null and `reason` says why."""
    return {
        "task": task,
        "method": method,
        "length": length,
        "metric": metric,
        **dict.fromkeys(("value", "low", "high", "seconds")),
        "samples": 0,
        "reason": reason,
        **machine(llm),
        "peak_memory_bytes": None,
        "seed": seed,
    }
