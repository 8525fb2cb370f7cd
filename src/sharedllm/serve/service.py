"""What the routes share: the model, the engine, the contexts, the settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from fastapi.concurrency import run_in_threadpool

from sharedllm.model import SharedLLM
from sharedllm.serve.engine import Engine
from sharedllm.serve.failures import ApiError
from sharedllm.serve.metrics import Metrics
from sharedllm.serve.settings import Settings
from sharedllm.serve.shelf import Shelf
from sharedllm.serve.turns import Turns

FILES = 2  # that are in memory, and whose text is taken out, at the same time
TEXTS = 2  # of large requests that are split at the same time
P = ParamSpec("P")
T = TypeVar("T")


class Service:
    """One model being served."""

    def __init__(self, llm: SharedLLM, settings: Settings) -> None:
        self.llm, self.settings = llm, settings
        self.metrics = Metrics()
        self.engine = Engine(llm, settings, self.metrics)
        self.shelf = Shelf(llm, self.engine, settings, self.metrics)
        self.files = Turns(FILES, settings.queue, "files", self.metrics.refused)
        self.texts = Turns(TEXTS, settings.queue, "large requests", self.metrics.refused)
        self.created = int(time.time())
        self.model = llm.name.rstrip("/").rsplit("/", 1)[-1] or "model"

    def start(self) -> None:
        self.shelf.open()
        self.engine.start()

    def stop(self) -> None:
        """Let running answers end within the grace time, then write down what was read."""
        self.engine.stop(self.settings.grace)
        self.shelf.close()

    async def looked(self, look: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a look at the contexts gives; where servers share their folder it reads that, so it goes on beside the answers."""
        if self.settings.shared:
            return await run_in_threadpool(look, *args, **kwargs)
        return look(*args, **kwargs)

    def check_model(self, name: str | None) -> None:
        """Raise `ApiError` 404 for a model that is not this one; none, or `default`, means this one."""
        if name not in (None, "", "default", self.model, self.llm.name):
            raise ApiError(
                404, f"there is no model {str(name)[:60]!r} here; use {self.model!r}.", "model_not_found", "model"
            )
