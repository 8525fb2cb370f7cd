"""With how many threads should a server write answers, when somebody else computes beside it and when nobody does?

Sixteen askers at a time put 32 short prompts to the engine, without HTTP, 64 tokens each; steps with one thread and with all, alone and beside a
process that computes without end (as those who ask do, on the same machine).
Run `python tools/probes/engine.py -o docs/results/probe-engine.jsonl` (5 minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from sharedllm import SharedLLM
from sharedllm.hardware import choose_threads, processor_name
from sharedllm.prompts import Prompt
from sharedllm.serve.batch import Batch
from sharedllm.serve.engine import Engine
from sharedllm.serve.failures import ApiError
from sharedllm.serve.metrics import Metrics
from sharedllm.serve.sampling import Sampling
from sharedllm.serve.settings import Settings
from sharedllm.serve.task import Ended, Event, Task

TOGETHER, PROMPTS, TOKENS = 16, 32, 64


class Askers:
    """Those who ask: each puts the next prompt once it has its answer."""

    def __init__(self, engine: Engine, prompts: list[list[int]]) -> None:
        self.engine, self.left, self.open = engine, prompts, len(prompts)
        self.lock, self.done = threading.Lock(), threading.Event()

    def ask(self) -> None:
        with self.lock:
            if not self.left:
                return
            ids = self.left.pop(0)
        sampling, deadline = Sampling(1.0, seed=len(self.left)), time.monotonic() + 600
        self.engine.ask(Task(ids, None, None, sampling, 1, TOKENS, (), self.hear, deadline))

    def hear(self, event: Event) -> None:
        if isinstance(event, ApiError):
            raise SystemExit(f"a request failed: {event}")
        if isinstance(event, Ended):
            self.open -= 1
            self.ask()
            if not self.open:
                self.done.set()


@contextmanager
def busy(beside: bool) -> Iterator[None]:
    """Somebody who computes within this block, if asked for."""
    if not beside:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def measure(llm: SharedLLM, threads: int, beside: bool) -> dict[str, Any]:
    """Tokens a second with steps of so many threads, and seconds of a step with all rows."""
    steps: list[tuple[int, float]] = []
    step = Batch.step

    def timed(batch: Batch, ids: list[int]) -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        started = time.perf_counter()
        logits = step(batch, ids)
        steps.append((batch.rows, time.perf_counter() - started))
        torch.set_num_threads(before)
        return logits

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Batch, "step", timed), busy(beside):
        engine = Engine(llm, Settings(Path(folder), rows=TOGETHER), Metrics())
        engine.start()
        while not engine.tokens_per_second:
            time.sleep(0.05)
        prompts = [Prompt(llm.tokenizer, f"Say something about number {i}.").alone() for i in range(PROMPTS)]
        askers = Askers(engine, prompts)
        started = time.perf_counter()
        for _ in range(TOGETHER):
            askers.ask()
        askers.done.wait()
        seconds = time.perf_counter() - started
        engine.stop(1)
    whole = [took for rows, took in steps if rows == TOGETHER]
    tokens = sum(rows for rows, _ in steps) + PROMPTS
    return {
        "threads_of_a_step": threads,
        "beside": "a busy process" if beside else "nothing",
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "step_seconds": sum(took for _, took in steps),
        "step_seconds_of_all_rows": sum(whole) / len(whole),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file; it is written anew")
    args = parser.parse_args()
    most = int(choose_threads().value)
    torch.set_num_threads(most)
    llm = SharedLLM.from_pretrained()
    about = {"dtype": str(llm.dtype), "processor": processor_name(llm.device), "threads": most}
    rows = [measure(llm, n, beside) for beside in (False, True) for n in sorted({1, most})]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text("".join(json.dumps({**about, **row}) + "\n" for row in rows), encoding="utf-8")
    print(args.output.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
