"""What reading cannot be faster than: its multiply-adds and bytes counted, at the rates that this machine reaches.

The count is that of dense layers, where every token meets every weight; of a mixture of experts it is too high.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sharedllm.evaluate.speed.phases import Clock
from sharedllm.model import SharedLLM

SIDE = 2048  # of the matrices that are multiplied
COPIED = 2**28  # bytes: more than caches hold
TRIES = 3


@dataclass(frozen=True)
class Work:
    """What a computation must do at least."""

    multiply_adds: int
    weight_bytes: int
    """Of weights brought from memory."""


@dataclass(frozen=True)
class Rates:
    """What a machine reaches."""

    multiply_adds: float
    """A second, of a product of two large matrices."""
    bytes: float
    """A second, of a large copy: those read and those written."""


@dataclass(frozen=True)
class Floor:
    """Work, and the seconds it takes at a machine's rates."""

    work: Work
    rates: Rates

    @property
    def operations_seconds(self) -> float:
        return self.work.multiply_adds / self.rates.multiply_adds

    @property
    def bytes_seconds(self) -> float:
        return self.work.weight_bytes / self.rates.bytes

    @property
    def seconds(self) -> float:
        """The longer of the two, as if each hid behind the other (the roofline model, Williams et al. 2009)."""
        return max(self.operations_seconds, self.bytes_seconds)

    def said(self) -> dict[str, float]:
        """What a row says of it."""
        return {
            "floor_seconds": self.seconds,
            "floor_operations_seconds": self.operations_seconds,
            "floor_bytes_seconds": self.bytes_seconds,
            "multiply_adds": self.work.multiply_adds,
            "weight_bytes_read": self.work.weight_bytes,
            "multiply_adds_a_second": self.rates.multiply_adds,
            "bytes_a_second": self.rates.bytes,
        }


def reading(llm: SharedLLM, tokens: int) -> Work:
    """Of the M lowest layers over a text cut into chunks of C tokens, of the top one only its keys and values.

    A token is multiplied with every weight matrix of a layer once. In attention its query meets each key up to its own
    place in the chunk, and as many values: c (c + 1) / 2 of each in a chunk of c tokens. Norms, rotations and activations
    are left out. The weights are read once for each batch of chunks.
    """
    parts, C = llm.parts, llm.config.chunk_length
    layers = list(parts.layers[: llm.config.injected_layers - 1])
    weights = [weight for layer in layers for weight in layer.parameters()]
    top = 2 * parts.hidden_size * parts.kv_heads * parts.head_dim
    matrices = top + sum(weight.numel() for weight in weights if weight.ndim > 1)
    whole, rest = divmod(tokens, C)
    pairs = whole * C * (C + 1) // 2 + rest * (rest + 1) // 2
    attention = 2 * pairs * parts.heads * parts.head_dim * len(layers)
    batches = -(-whole // llm.reader.a_pass(C)) + (rest > 0)
    read = top * parts.dtype.itemsize + sum(weight.nbytes for weight in weights)
    return Work(tokens * matrices + attention, batches * read)


def rates(device: torch.device, dtype: torch.dtype, now: Clock) -> Rates:
    """The best of a few tries on this machine, after one that counts for nothing."""
    a, b, out = (torch.ones(SIDE, SIDE, device=device, dtype=dtype) for _ in range(3))
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Rates(
        multiply_adds=SIDE**3 / _least_seconds(lambda: torch.mm(a, b, out=out), now),
        bytes=2 * COPIED / _least_seconds(lambda: target.copy_(source), now),
    )


def _least_seconds(work: Callable[[], object], now: Clock) -> float:
    work()
    took = []
    for _ in range(TRIES):
        started = now()
        work()
        took.append(now() - started)
    return min(took)
