"""What the routes share: the model, the engine, the contexts, the settings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sharedllm.model import SharedLLM
from sharedllm.serve.engine import Engine
from sharedllm.serve.failures import ApiError
from sharedllm.serve.metrics import Metrics
from sharedllm.serve.settings import Settings
from sharedllm.serve.shelf import Shelf

FILES = 2  # that are in memory, and whose text is taken out, at the same time


class Service:
    """One model being served."""

    def __init__(self, llm: SharedLLM, settings: Settings) -> None:
        self.llm, self.settings = llm, settings
        self.metrics = Metrics()
        self.engine = Engine(llm, settings, self.metrics)
        self.shelf = Shelf(llm, self.engine, settings, self.metrics)
        self._extracting, self._files = asyncio.Semaphore(FILES), 0
        self.created = int(time.time())
        self.model = llm.name.rstrip("/").rsplit("/", 1)[-1] or "model"

    def start(self) -> None:
        self.engine.start()
        self.shelf.open()

    def stop(self) -> None:
        """Let running answers end within the grace time, then write down what was read."""
        self.engine.stop(self.settings.grace)
        self.shelf.close()

    @asynccontextmanager
    async def extracting(self) -> AsyncIterator[None]:
        """A file's turn to be taken into memory.

        Raises:
            ApiError: 429, as many files wait for theirs as requests may.
        """
        if self._files >= FILES + self.settings.queue:
            self.metrics.refused.inc()
            raise ApiError(429, "too many files wait already; try again in a moment.", "queue_full", None, 2)
        self._files += 1
        try:
            async with self._extracting:
                yield
        finally:
            self._files -= 1

    def check_model(self, name: str | None) -> None:
        """Raise `ApiError` 404 for a model that is not this one; none, or `default`, means this one."""
        if name not in (None, "", "default", self.model, self.llm.name):
            raise ApiError(
                404, f"there is no model {str(name)[:60]!r} here; use {self.model!r}.", "model_not_found", "model"
            )
