"""Samples of a task, each as long as fits a number of tokens, and the same again for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from sharedllm.errors import UsageError
from sharedllm.evaluate.ruler.corpus import Corpus
from sharedllm.evaluate.ruler.tasks import TASKS
from sharedllm.evaluate.ruler.wording import Sample

CLOSE = 100  # sizes are searched to one part in so many
MOST = 4  # times the tokens: no sample is larger, whatever its size counts


def make_samples(
    name: str, length: int, samples: int, seed: int, corpus: Corpus, tokens: Callable[[Sample], int]
) -> list[Sample]:
    """`samples` samples of a task, none of more than `length` tokens.

    The size that fits is searched for with the first sample; another that is longer is made smaller.

    Args:
        tokens: of a sample, everything included: prompt, templates, and room for the answer.
    Raises:
        UsageError: the smallest sample is longer, or the task lacks what it is made of.
    """

    def make(size: int, index: int) -> Sample:
        return TASKS[name].maker.make(size, length, index, Random(f"{seed} {name} {length} {index}"), corpus)

    def fits(size: int, index: int = 0) -> bool:
        return tokens(make(size, index)) <= length

    check_length(name, length, seed, corpus, tokens)
    least = TASKS[name].maker.least
    size = _largest(fits, least, MOST * length)
    made = []
    for index in range(samples):
        own = size
        while own > least and not fits(own, index):
            own = max(least, own - max(1, size // CLOSE))
        made.append(make(own, index))
    return made


def check_length(name: str, length: int, seed: int, corpus: Corpus, tokens: Callable[[Sample], int]) -> None:
    """Raise `UsageError` where not even the smallest sample of a task fits `length` tokens."""
    taken = tokens(smallest(name, length, seed, corpus))
    if taken > length:
        raise UsageError(f"the smallest sample of {name} has {taken:,} tokens; raise --lengths from {length:,}.")


def smallest(name: str, length: int, seed: int, corpus: Corpus) -> Sample:
    """The smallest sample of a task, whose question is as that of any other."""
    maker = TASKS[name].maker
    return maker.make(maker.least, length, 0, Random(f"{seed} {name} {length} 0"), corpus)


def _largest(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The largest size that fits, to one part in `CLOSE`; `least` does, above `most` none is looked for."""
    low, high = least, 2 * least
    while high < most and fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // CLOSE):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
