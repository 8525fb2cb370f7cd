"""Turns of what is large: a few files or requests at a time, some that wait, and the others are told to come again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import Counter

from sharedllm.serve.failures import ApiError

LARGE = 2**20
"""Bytes above which a request waits for its turn."""
PLACE = "sharedllm.place"
"""Where a request's scope has its place."""


class Turns:
    """Turns of one kind of thing.

    Args:
        most: that have their turn at the same time.
        waiting: that wait for it at most.
        what: their name in the sentence of a refusal.
    """

    def __init__(self, most: int, waiting: int, what: str, refused: Counter) -> None:
        self.free, self.taken = asyncio.Semaphore(most), 0
        self._places, self._what, self._refused = most + waiting, what, refused

    def check(self) -> None:
        """Raise `ApiError` 429 where as many wait as may."""
        if self.taken >= self._places:
            self._refused.inc()
            raise ApiError(429, f"too many {self._what} wait already; try again in a moment.", "queue_full", None, 2)


class Place:
    """A place among those that wait, if it is taken, and then the turn; both are given back once."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self._taken, self._begun = turns, False, False

    def take(self) -> None:
        """Take the place, unless it was; 429 as for `Turns.check`."""
        if not self._taken:
            self._turns.check()
            self._turns.taken += 1
            self._taken = True

    async def begin(self) -> None:
        """Wait for the turn, where a place was taken."""
        if self._taken and not self._begun:
            await self._turns.free.acquire()
            self._begun = True

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The place, if it was not taken yet, and then the turn, for as long as the block runs; 429 as for `take`."""
        self.take()
        try:
            await self.begin()
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        if self._begun:
            self._turns.free.release()
        if self._taken:
            self._turns.taken -= 1
        self._taken = self._begun = False
