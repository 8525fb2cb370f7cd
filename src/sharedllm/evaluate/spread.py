"""A benchmark's samples spread over the workers of a Ray cluster: each loads the model and makes the methods itself.

What a method is asked stays as it is; `Method.each` hands its items here instead of working them off one by one.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sharedllm.adapter import weights_digest
from sharedllm.errors import SharedLLMError, UsageError
from sharedllm.evaluate.peak import peak, reset_peak
from sharedllm.hardware import free_memory_bytes
from sharedllm.methods import Method, create
from sharedllm.model import SharedLLM
from sharedllm.ray_pool import Pool, Setup, ray_pool

COMPARED = ("the device", "the dtype", "the model", "the adapter")


class MethodWorker:
    """One process' methods.

    Args:
        loading: arguments of `SharedLLM.from_pretrained`.
        setup: folder and threads to work with.
    """

    def __init__(self, loading: dict[str, Any], setup: Setup) -> None:
        setup.apply()
        self.llm = SharedLLM.from_pretrained(**loading)
        self.methods: dict[tuple[str, int], Method] = {}
        self.asked: int | None = None

    def room(self) -> tuple[str, int]:
        """Whose memory this process takes, and how much of it is free, in bytes."""
        device = self.llm.device
        apart = os.environ.get("CUDA_VISIBLE_DEVICES", "") if device.type == "cuda" else ""
        return f"{platform.node()} {device} {apart}", free_memory_bytes(device)

    def computes_with(self) -> tuple[str, ...]:
        """See `computes_with`."""
        return computes_with(self.llm)

    def work(self, piece: tuple[int, int, tuple[str, int], Any, Any]) -> tuple[list[Any], int]:
        """All that a method's work on an item yields, and this process' peak memory in that call of `Spread`, in bytes."""
        _, call, (name, window), work, item = piece
        if (name, window) not in self.methods:
            self.methods[name, window] = create(name, self.llm, window)
        if self.asked != call:
            reset_peak(self.llm.device)
            self.asked = call
        return list(work(self.methods[name, window], item)), peak(self.llm.device)


class Spread:
    """What `Method.spread` is: the method's work done by the workers of a pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.peak, self._calls = pool, 0, 0
        self._agreed = False

    def free(self) -> float:
        """Memory that each of the workers can take if all take as much, in bytes."""
        rooms = self.pool.call("room")
        sharing = Counter(place for place, _ in rooms)
        return min(free / sharing[place] for place, free in rooms)

    def __call__(self, method: Method, work: Any, items: Sequence[Any]) -> Iterator[Any]:
        """All that `work(method, item)` yields, for all items in their order.

        Raises:
            UsageError: a worker computes with something else than this process, of which the rows tell.
            SharedLLMError: what a worker raised, or `WorkError` where it could not be started or kept alive.
        """
        self._agree(method.llm)
        self._calls, self.peak = self._calls + 1, 0  # a row has what it took, not what one before it did
        pieces = [(i, self._calls, (method.name, method.window), work, item) for i, item in enumerate(items)]
        done: dict[int, list[Any]] = {}
        at = 0
        for (i, *_), result in self.pool.map("work", pieces):
            if isinstance(result, SharedLLMError):
                raise result
            done[i], held = result
            self.peak = max(self.peak, held)
            while at in done:
                yield from done.pop(at)
                at += 1

    def _agree(self, llm: SharedLLM) -> None:
        """Raise `UsageError` unless all workers compute with what this process does; asked before the first piece."""
        if self._agreed:
            return
        here = computes_with(llm)
        for there in self.pool.call("computes_with"):
            for what, a, b in zip(COMPARED, there, here, strict=True):
                if a != b:
                    raise UsageError(
                        f"{what} of a worker is {a} and that of this process, of which the rows tell, {b}; give all machines "
                        "the same files, and name --device and --dtype."
                    )
        self._agreed = True

    def besides(self) -> dict[str, Any]:
        """What the rows of the last call say of the workers: the peak memory of the largest of them."""
        return {"peak_memory_bytes": self.peak} if self.peak else {}


def computes_with(llm: SharedLLM) -> tuple[str, ...]:
    """What the values of a row depend on besides its settings, in the order of `COMPARED`."""
    return llm.device.type, str(llm.dtype), llm.reader.identity, weights_digest(llm.injection)


@contextmanager
def ray_spread(loading: dict[str, Any], address: str | None = None, workers: int | None = None) -> Iterator[Spread]:
    """Workers that load their models with `SharedLLM.from_pretrained(**loading)`; the rest as for `ray_pool`.

    This process computes with as many threads as each of them inside the block, and its rows say so.
    """
    before = torch.get_num_threads()
    with ray_pool(MethodWorker, {"loading": loading}, address, workers) as pool:
        torch.set_num_threads(pool.threads)
        try:
            yield Spread(pool)
        finally:
            torch.set_num_threads(before)
