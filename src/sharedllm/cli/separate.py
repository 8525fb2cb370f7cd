"""`sharedllm encode --separate`: thousands of documents, a store each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sharedllm.cli import common

if TYPE_CHECKING:
    from sharedllm.collection.read import Engine, Progress

NAMED = 5  # documents that failed, of which the command says why


def read_separately(
    sources: Sequence[str],
    where: str,
    loading: dict[str, Any],
    keeping: dict[str, Any],
    engine: str,
    ray_address: str | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Read documents into the collection `where` and say what became of them.

    Args:
        loading: arguments of `SharedLLM.from_pretrained`.
        keeping: `most_bytes` and `compact` of `Worker`.
    Raises:
        WorkError: not one of them could be read.
    """
    from sharedllm.collection import RECORDS
    from sharedllm.collection.read import read_collection
    from sharedllm.collection.records import FAILED, KEPT
    from sharedllm.errors import WorkError

    started = time.perf_counter()
    with _engine(engine, loading, keeping, where, ray_address, workers) as reading, _progress() as told:
        records = read_collection(sources, where, reading, told)
    kept, failed = ([r for r in records.values() if r.state == state] for state in (KEPT, FAILED))
    for record in failed[:NAMED]:
        common.say(f"not read: {record.reason}")
    if len(failed) > NAMED:
        common.say(f"not read: {len(failed) - NAMED:,} more, each with its reason in {where}/{RECORDS}")
    figures = {
        "collection": where,
        "documents": len(kept),
        "failed": len(failed),
        "context_tokens": sum(r.tokens for r in kept),
        "encode_seconds": round(time.perf_counter() - started, 3),
        "engine": engine,
    }
    line = "{documents:,} documents with {context_tokens:,} tokens in {collection}, {failed:,} not read, {encode_seconds:,.1f} s"
    if as_json:
        common.print_json(figures, more=not kept)
    else:
        common.finished(bool(kept))
        common.tell(line.format(**figures))
    if not kept:
        raise WorkError(f"none of the documents could be read; {where}/{RECORDS} says why.")


@contextmanager
def _engine(
    engine: str,
    loading: Mapping[str, Any],
    keeping: Mapping[str, Any],
    where: str,
    ray_address: str | None,
    workers: int | None,
) -> Iterator[Engine]:
    from sharedllm.collection.engines import LocalEngine, ray_engine

    if engine == "ray":
        with ray_engine(dict(loading), where, ray_address, workers, **keeping) as pool:
            yield pool
        return
    from sharedllm.collection.worker import Worker

    yield LocalEngine(Worker(common.load(**loading), where, **keeping))


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A bar of bytes on stderr with documents, tokens a second and time left; plain lines where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = ("reading", BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
    started, spoken = time.perf_counter(), 0.0
    with Bar(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600) as bar:
        task = bar.add_task("reading", total=None, said="")

        def told(now: Progress) -> None:
            nonlocal spoken
            passed = max(time.perf_counter() - started, 1e-9)
            said = f"{now.done:,} of {now.documents:,} documents, {now.tokens / passed:,.0f} tokens/s"
            said += f", {now.failed:,} not read" if now.failed else ""
            bar.update(task, completed=now.done_bytes, total=now.bytes, said=said)
            if not console.is_terminal and (passed - spoken > 15 or now.done == now.documents):
                spoken = passed
                left = passed * (now.bytes - now.done_bytes) / max(now.done_bytes, 1)
                common.say(f"reading: {said}, {left:,.0f} s left")

        yield told
