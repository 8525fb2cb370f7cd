"""What documents are read with: this process, or the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sharedllm.collection.records import Record
from sharedllm.collection.sources import Source
from sharedllm.collection.worker import LoadingWorker, Worker
from sharedllm.errors import SharedLLMError, UsageError
from sharedllm.ray_pool import Pool, ray_pool
from sharedllm.sources import DEFAULT_MAX_BYTES

Results = Iterator[tuple[list[Source], list[Record] | SharedLLMError]]


class LocalEngine:
    """This process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def made_with(self) -> str:
        return self.worker.made_with()

    def map(self, batches: Sequence[list[Source]]) -> Results:
        for batch in batches:
            for source in batch:
                yield [source], self.worker.read([source])


class RayEngine:
    """Workers of a Ray cluster; `ray_engine` makes one."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def made_with(self) -> str:
        """As all workers say.

        Raises:
            UsageError: they do not agree.
        """
        said = set(self.pool.call("made_with"))
        if len(said) > 1:
            raise UsageError(
                "the workers' machines would read with different models or types of numbers; give all the same files, and "
                "give one with --dtype."
            )
        return str(said.pop())

    def map(self, batches: Sequence[list[Source]]) -> Results:
        return self.pool.map("read", batches)


@contextmanager
def ray_engine(
    loading: dict[str, Any],
    where: str,
    address: str | None = None,
    workers: int | None = None,
    most_bytes: int = DEFAULT_MAX_BYTES,
    compact: bool = False,
) -> Iterator[RayEngine]:
    """Workers that load their models with `SharedLLM.from_pretrained(**loading)`; the rest as for `Worker` and `ray_pool`.

    The workers must reach sources, model and `where` under the same names: a shared folder, or addresses.
    """
    arguments = {"loading": loading, "where": where, "most_bytes": most_bytes, "compact": compact}
    with ray_pool(LoadingWorker, arguments, address, workers) as pool:
        yield RayEngine(pool)
