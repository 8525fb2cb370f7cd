"""Memory of one question on a long text, by part; started as a program, see `apart`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharedllm.evaluate.peak import peak, reset_peak
from sharedllm.evaluate.speed.apart import answer
from sharedllm.evaluate.stopping import endless
from sharedllm.methods import Method
from sharedllm.prompts import Prompt

MODULE = "sharedllm.evaluate.speed.memory"


@dataclass(frozen=True)
class Memory:
    """Bytes of one question on a text."""

    weights: int
    """Of the model."""
    added_weights: int
    """Of what the method adds to it."""
    kept: int
    """What is kept of the text for any question."""
    attended: int
    """Keys and values of the text that this question attends to."""
    reading: int
    """The most that was taken beyond the loaded model until the text was read; what is kept is part of it."""
    working_peak: int
    """The same until the question was answered; what it attends to is part of it too."""
    peak: int
    """The most that the process had, libraries and all."""


def measure(method: Method, ids: Tensor, prompt: Prompt, new_tokens: int) -> Memory:
    """Ask one question on token ids [n]; the peaks are right only in a process that did nothing before."""
    device = method.llm.device
    with endless(method.llm.model):
        nothing = method.prepare_to_ask(ids[:0], prompt)
        method.ask(nothing, prompt, new_tokens)  # what is made once, and weights still on disk
        before = reset_peak(device)
        past = method.prepare_to_ask(ids, prompt)
        reading = peak(device)
        method.ask(past, prompt, new_tokens)
    highest = peak(device)
    return Memory(
        weights=_bytes(method.llm.model),
        added_weights=sum(map(_bytes, method.added())),
        kept=method.kept_bytes(past),
        attended=method.attended_bytes(past, prompt, new_tokens),
        reading=max(0, reading - before),
        working_peak=max(0, highest - before),
        peak=highest,
    )


def _bytes(module: torch.nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


if __name__ == "__main__":
    answer(measure)
