"""Where does the server's time go while many answers are written, without HTTP? And what does it cost that other threads have computed?

Sixteen askers at a time put 32 short prompts to the engine, 64 tokens each. In turns: the model loaded in the main thread, which
then keeps workers of its own; in a thread that ended (`hardware.in_own_thread`), as the server does; each with one thread and
with all. Run `python tools/probes/engine.py -o docs/results/probe-engine.jsonl` (5 minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from sharedllm import SharedLLM
from sharedllm.hardware import choose_threads, in_own_thread
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


def measure(main_thread: bool, threads: int) -> dict[str, Any]:
    """Tokens a second, seconds of a step with all rows, and what the rest of the time was."""
    torch.set_num_threads(threads)
    llm = SharedLLM.from_pretrained() if main_thread else in_own_thread(SharedLLM.from_pretrained)
    steps: list[tuple[int, float]] = []
    step = Batch.step

    def timed(batch: Batch, ids: list[int]) -> torch.Tensor:
        started = time.perf_counter()
        logits = step(batch, ids)
        steps.append((batch.rows, time.perf_counter() - started))
        return logits

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Batch, "step", timed):
        engine = Engine(llm, Settings(Path(folder), rows=TOGETHER), Metrics())
        engine.start()
        while not engine.tokens_per_second:
            time.sleep(0.05)
        askers = Askers(
            engine, [Prompt(llm.tokenizer, f"Say something about number {i}.").alone() for i in range(PROMPTS)]
        )
        started = time.perf_counter()
        for _ in range(TOGETHER):
            askers.ask()
        askers.done.wait()
        seconds = time.perf_counter() - started
        engine.stop(1)
    whole = [took for rows, took in steps if rows == TOGETHER]
    tokens = sum(rows for rows, _ in steps) + PROMPTS
    return {
        "loaded_in": "main thread" if main_thread else "own thread",
        "threads": threads,
        "dtype": str(llm.dtype),
        "tokens_per_second": tokens / seconds,
        "seconds": seconds,
        "step_seconds": sum(took for _, took in steps),
        "step_seconds_of_all_rows": sum(whole) / len(whole),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="results file; it is written anew")
    parser.add_argument("--one", nargs=2, metavar=("MAIN", "THREADS"), help="measure one setting, in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0] == "main", int(args.one[1]))))
        return
    rows = []
    for place in ("main", "own"):
        for threads in sorted({1, int(choose_threads().value)}):
            command = [sys.executable, __file__, "--one", place, str(threads)]
            rows.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(rows[-1], end="", flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
