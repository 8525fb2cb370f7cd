"""One request for an answer, from the queue to its last token."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sharedllm.context import Context
from sharedllm.serve.failures import ApiError
from sharedllm.serve.sampling import Chosen, Sampler, Sampling
from sharedllm.serve.written import Written


@dataclass(frozen=True)
class Piece:
    """Text of choice `index`, with the tokens it came from; the last one says why the answer ended."""

    index: int
    text: str
    tokens: tuple[Chosen, ...] = ()
    finish: str | None = None


@dataclass(frozen=True)
class Ended:
    """All choices have ended."""

    generated_tokens: int
    slots: int


Event = Piece | Ended | ApiError


@dataclass(eq=False)
class Task:
    """What is to be answered, and who hears of it.

    Attributes:
        ids: of the window.
        asking: [1, T], which of them ask; None: the last ones.
        context: gives what the window attends to, in slices; None where nothing is attended to.
        send: hears events, on the engine's thread.
        cancelled: set from any thread; work stops at the next step.
        reading: whether its own long prompt is being read now.
    """

    ids: list[int]
    asking: Tensor | None
    context: Callable[[], Generator[None, None, Context]] | None
    sampling: Sampling
    choices: int
    most: int
    stops: Sequence[str]
    send: Callable[[Event], None]
    deadline: float
    cancelled: bool = False
    reading: Callable[[], bool] = lambda: False
    slots: int = 0
    generated: int = 0
    rows: list[Row] = field(default_factory=list)

    def fail(self, error: ApiError) -> None:
        """End with an error."""
        self.cancelled = True
        self.send(error)

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline


class Row:
    """One choice of a task while it decodes."""

    def __init__(self, task: Task, index: int, tokenizer: object, ends: Collection[int]) -> None:
        self.task, self.index, self.ends = task, index, ends
        self.sampler = Sampler(task.sampling, index)
        self.written = Written(tokenizer, task.stops)
        self.finish: str | None = None
        self.newest = 0
        self._count = 0
        self._untold: list[Chosen] = []

    def take(self, logits_V: Tensor) -> None:
        """Choose a token and send what can be sent."""
        chosen = self.sampler.choose(logits_V)
        self.newest = chosen.token
        self.task.generated += 1
        self._count += 1
        text = ""
        if chosen.token in self.ends:
            self.finish = "stop"
        else:
            if chosen.logprob is not None:
                self._untold.append(chosen)
            text = self.written.push(chosen.token)
            if self.written.stopped:
                self.finish = "stop"
            elif self._count == self.task.most:
                self.finish = "length"
        if self.finish:
            text += self.written.finish()
            if self.written.stopped:
                self.finish = "stop"
        if text or self.finish:
            self.task.send(Piece(self.index, text, tuple(self._untold), self.finish))
            self._untold = []
