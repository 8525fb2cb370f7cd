"""A very long text read to its end, asked and answered, once; started as a program, see `apart`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sharedllm.context import Context
from sharedllm.errors import UsageError
from sharedllm.evaluate.peak import peak
from sharedllm.evaluate.speed.apart import answer
from sharedllm.evaluate.speed.phases import ask, clock
from sharedllm.methods import Method
from sharedllm.prompts import Prompt

MODULE = "sharedllm.evaluate.speed.longest"


@dataclass(frozen=True)
class Longest:
    """One question on one text, in seconds and bytes."""

    tokens: int
    """Of the text, that were read."""
    read: float
    """Seconds from token ids to what can be asked."""
    first_token: float
    """Seconds from the question to its first token."""
    answer: str
    kept: int
    """What is kept of the text for any question."""
    peak: int
    """The most that the process had, the model and libraries too."""


def measure(method: Method, ids: Tensor, prompt: Prompt, new_tokens: int) -> Longest:
    """Read token ids [n] and ask; the peak is right only in a process that did nothing before.

    Raises:
        UsageError: the method is not `shared`.
    """
    llm = method.llm
    now = clock(llm.device)
    started = now()
    past = method.prepare(ids)
    read = now() - started
    if not isinstance(past, Context):
        raise UsageError(f"the longest text is measured with shared, not with {method.name}.")
    asked = ask(method, past, prompt, new_tokens, now)
    return Longest(
        tokens=past.encoded_tokens,
        read=read,
        first_token=asked.search + asked.first_token,
        answer=llm.tokenizer.decode(asked.answer),
        kept=method.kept_bytes(past),
        peak=peak(llm.device),
    )


if __name__ == "__main__":
    answer(measure)
