"""What the thread that owns the model does beside decoding, a slice at a time: answers are prepared, texts are read.

An answer that is prepared has somebody waiting for its first token, so that goes first; a text gets every fourth
slice then, and comes to its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

FIRST = 3  # slices of preparing answers to one of reading texts, where both wait


@dataclass(eq=False)
class Work:
    """Work that is done a slice at a time.

    Attributes:
        answering: whether an answer waits for it.
        unwanted: says between two slices whether it is to be dropped.
    """

    slices: Generator[None, None, Any]
    answering: bool
    unwanted: Callable[[], bool] = lambda: False
    done: Future[Any] = field(default_factory=Future)


class Works:
    """All such work; of either kind each takes its turn."""

    def __init__(self) -> None:
        self._answering: deque[Work] = deque()
        self._reading: deque[Work] = deque()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._answering) + len(self._reading)

    def __iter__(self) -> Iterator[Work]:
        yield from self._answering
        yield from self._reading

    def put(self, work: Work) -> None:
        (self._answering if work.answering else self._reading).append(work)

    def take(self) -> Work:
        """The work whose slice is next; there must be some."""
        if self._answering and self._reading:
            self._turn = (self._turn + 1) % (FIRST + 1)
            return (self._answering if self._turn else self._reading).popleft()
        return (self._answering or self._reading).popleft()
