"""How well and how fast does a question find its document among many, against looking into all of them?

Documents of about `tokens` tokens are cut from texts and read into a collection, each with a needle in it; then the
needles of a hundred of them are asked for. A row a size: share of questions whose document is among the nearest 1, 4
and 8 by the sketches alone, by sketches and then 16 stores, and by opening every store; seconds a question of each;
seconds that reading all documents took, which is what search saves.

Run after `make texts`: `python tools/probes/library_search.py runs/library-search -o docs/results/library-search.jsonl`
(1,000 documents of 1,024 tokens take 5 GB and about 20 minutes on two cores; stopped, it goes on).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from sharedllm import SharedLLM
from sharedllm.collection.engines import LocalEngine
from sharedllm.collection.read import Progress, read_collection
from sharedllm.collection.search import Collection
from sharedllm.collection.worker import Worker
from sharedllm.data.needles import Needle, draw_needles
from sharedllm.evaluate.results import append_row
from sharedllm.hardware import choose_threads

TEXTS = ("python-library", "python-reference", "debian-manuals", "anarchist-faq")
AMONG = (1, 4, 8)
QUESTIONS = 100
OPENED = 16


def write_documents(llm: SharedLLM, data: Path, folder: Path, count: int, tokens: int) -> list[Needle]:
    """Write `count` documents of `tokens` tokens, in turn from all texts, each with a needle of its own in it."""
    random = np.random.default_rng(1)
    needles = draw_needles(random, count)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [llm.reader.token_ids((data / f"{name}.txt").read_text(encoding="utf-8")) for name in TEXTS]
    shares = [sum(1 for i in range(count) if i % len(texts) == t) for t in range(len(texts))]
    for i, needle in enumerate(needles):
        ids, nth, share = texts[i % len(texts)], i // len(texts), shares[i % len(texts)]
        start = (len(ids) - tokens) * nth // share
        cut = start + int(random.integers(0, tokens))
        parts = llm.tokenizer.decode(ids[start:cut]), llm.tokenizer.decode(ids[cut : start + tokens])
        (folder / f"{i:05}.txt").write_text(f"\n{needle.statement}\n".join(parts), encoding="utf-8")
    return needles


def read(llm: SharedLLM, sources: list[str], where: Path) -> float:
    """Read the documents that are missing; returns seconds a document of those, 0 where none was."""
    started, last = time.perf_counter(), Progress(0, 0)

    def told(now: Progress) -> None:
        nonlocal last
        last = now
        if now.done % 20 == 0:
            print(f"{where}: {now.done} of {now.documents} read", flush=True)

    read_collection(sources, where, LocalEngine(Worker(llm, where)), told)
    return (time.perf_counter() - started) / last.done if last.done else 0.0


def measure(llm: SharedLLM, where: Path, needles: list[Needle], size: int) -> dict[str, object]:
    """Recall and seconds of the three searches among the first `size` documents."""
    collection = Collection(where, llm)
    collection.records = collection.records[:size]
    started = time.perf_counter()
    sketches = collection.sketches
    row: dict[str, object] = {"documents": size, "load_seconds": round(time.perf_counter() - started, 4)}
    row["sketch_bytes"] = sum(t.nbytes for sketch in sketches for t in vars(sketch).values())
    asked = np.unique(np.linspace(0, size - 1, min(size, QUESTIONS)).astype(int)).tolist()
    row["questions"] = len(asked)
    for name, opened in (("sketches", 0), ("sketches_then_stores", OPENED), ("all_stores", size)):
        ranks, started = [], time.perf_counter()
        for i in asked:
            hits = collection.search(needles[i].question, max(AMONG), opened)
            found = [Path(hit.source).stem for hit in hits]
            ranks.append(found.index(f"{i:05}") if f"{i:05}" in found else max(AMONG))
        row[f"{name}_seconds"] = round((time.perf_counter() - started) / len(asked), 4)
        for n in AMONG:
            row[f"{name}_among_{n}"] = round(sum(rank < n for rank in ranks) / len(ranks), 4)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data/heldout"))
    parser.add_argument("--sizes", default="10,100,1000")
    parser.add_argument("--tokens", type=int, default=1024)
    given = parser.parse_args()
    torch.set_num_threads(int(choose_threads().value))
    llm = SharedLLM.from_pretrained()
    sizes = [int(n) for n in given.sizes.split(",")]
    texts, where = given.folder / "texts", given.folder / "collection"
    needles = write_documents(llm, given.data, texts, max(sizes), given.tokens)
    sources = sorted(str(file) for file in texts.glob("*.txt"))
    for size in sizes:
        seconds = read(llm, sources[:size], where)
        about = {"task": "library-search", "model": llm.name, "dtype": str(llm.dtype), "tokens": given.tokens}
        row = {**about, "read_seconds_a_document": round(seconds, 3), **measure(llm, where, needles, size)}
        append_row(given.output, row)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
