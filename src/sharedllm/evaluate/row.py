"""What a results row of any task says besides the task's own figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sharedllm.evaluate.statistics import bootstrap
from sharedllm.hardware import peak_memory_bytes
from sharedllm.model import SharedLLM


def machine(llm: SharedLLM) -> dict[str, Any]:
    """Model, adapter, device, dtype and peak memory, as every row and every JSON output gives them."""
    return {
        "peak_memory_bytes": peak_memory_bytes(llm.device),
        "model": llm.name,
        "adapter": llm.adapter,
        "device": str(llm.device),
        "dtype": str(llm.dtype).removeprefix("torch."),
    }


def measured(llm: SharedLLM, values: Sequence[float], seed: int) -> dict[str, Any]:
    """The mean of `values` with its 95 % bootstrap bounds, and with which model, machine and seed it was measured."""
    low, high = bootstrap(values, seed)
    return {
        "value": sum(values) / len(values),
        "low": low,
        "high": high,
        "samples": len(values),
        **machine(llm),
        "seed": seed,
        "threads": torch.get_num_threads(),
    }
