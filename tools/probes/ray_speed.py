"""What does reading many documents with Ray cost and gain, and what would it with 8, 64 and 1,000 workers?

Reads the same documents into a new collection by this process and by 1 and 2 workers, all with as many threads in all as
there are processors. A row each: seconds from the call to the last document without starting (loading the model, and
the cluster), and those of starting. Then the parts that a larger cluster's time follows from, measured here: seconds a document of
reading, of handing a piece of work to a worker and hearing of it, and of writing a byte. At last rows that are computed,
not measured: with W workers, D documents take

    start + max(D * read / W + read, D * dispatch, D * bytes / bandwidth)

the workers' own work (the last of them ends up to one document later), what the one driver can hand out, and what the storage takes.

Run after `make texts`: `python tools/probes/ray_speed.py runs/ray-speed -o docs/results/ray-speed.jsonl`
(100 documents of 1,024 tokens; 10 minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sharedllm import SharedLLM
from sharedllm.collection.engines import LocalEngine, ray_engine
from sharedllm.collection.read import Engine, read_collection
from sharedllm.collection.worker import Worker
from sharedllm.evaluate.results import append_row
from sharedllm.ray_pool import Setup, ray_pool

LOADING: dict[str, Any] = {}
PIECES = 2000
WORKERS = (8, 64, 1000)
MANY = 100_000
BANDWIDTH = 1.25e9
"""Bytes a second that the storage of the computed rows takes: a network of 10 Gbit/s."""


class Nothing:
    """Work that takes no time."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def do(self, item: int) -> int:
        return item


def write_documents(llm: SharedLLM, text: Path, folder: Path, count: int, tokens: int) -> list[str]:
    ids = llm.reader.token_ids(text.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        start = (len(ids) - tokens) * i // count
        (folder / f"{i:05}.txt").write_text(llm.tokenizer.decode(ids[start : start + tokens]), encoding="utf-8")
    return sorted(map(str, folder.glob("*.txt")))


@contextmanager
def local(where: Path) -> Iterator[Engine]:
    yield LocalEngine(Worker(SharedLLM.from_pretrained(**LOADING), where))


def timed(name: str, engine: Any, sources: list[str], where: Path) -> dict[str, Any]:
    """Seconds of starting an engine, until it has said what it reads with, and of reading all documents."""
    shutil.rmtree(where, ignore_errors=True)
    began = time.perf_counter()
    with engine as reading:
        reading.made_with()
        started = time.perf_counter()
        read_collection(sources, where, reading)
        ended = time.perf_counter()
    return {"engine": name, "start_seconds": round(started - began, 3), "read_seconds": round(ended - started, 3)}


def dispatch_seconds() -> float:
    """Of handing one piece of work to a worker and hearing that it is done."""
    with ray_pool(Nothing, {}, workers=2) as pool:
        list(pool.map("do", range(10)))
        started = time.perf_counter()
        list(pool.map("do", range(PIECES)))
        return (time.perf_counter() - started) / PIECES


def computed(workers: int, read: float, dispatch: float, stored: float, start: float) -> dict[str, Any]:
    """Seconds of `MANY` documents with so many workers, and what bounds them."""
    bounds = {"reading": MANY * read / workers + read, "driver": MANY * dispatch, "storage": MANY * stored / BANDWIDTH}
    name = max(bounds, key=bounds.__getitem__)
    return {
        "engine": "computed",
        "workers": workers,
        "documents": MANY,
        "seconds": round(start + bounds[name], 1),
        "bound_by": name,
        **{f"{part}_seconds": round(seconds, 1) for part, seconds in bounds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--text", type=Path, default=Path("data/heldout/python-library.txt"))
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=1024)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    sources = write_documents(
        SharedLLM.from_pretrained(), given.text, given.folder / "texts", given.documents, given.tokens
    )
    about = {"task": "ray-speed", "cores": cores, "tokens": given.tokens}

    def told(row: dict[str, Any]) -> dict[str, Any]:
        append_row(given.output, {**about, **row})
        print(json.dumps({**about, **row}), flush=True)
        return row

    where = given.folder / "collection"
    alone = told({**timed("local", local(where), sources, where), "workers": 1, "documents": given.documents})
    stored = sum(f.stat().st_size for f in where.rglob("*") if f.is_file()) / given.documents
    for workers in (1, 2):
        row = timed("ray", ray_engine(LOADING, str(where), workers=workers), sources, where)
        speedup = round(alone["read_seconds"] / row["read_seconds"], 3)
        last = told({**row, "workers": workers, "documents": given.documents, "times_local": speedup})
    started = time.perf_counter()
    shutil.copytree(where, given.folder / "copy", dirs_exist_ok=True)
    copied = (time.perf_counter() - started) / (stored * given.documents)
    dispatch, read = dispatch_seconds(), alone["read_seconds"] / given.documents
    parts = {"read_seconds": round(read, 4), "dispatch_seconds": round(dispatch, 6), "bytes": round(stored)}
    told({"engine": "parts", **parts, "write_seconds_a_megabyte": round(1e6 * copied, 6)})
    for workers in WORKERS:
        told(computed(workers, read, dispatch, stored, last["start_seconds"]))


if __name__ == "__main__":
    main()
