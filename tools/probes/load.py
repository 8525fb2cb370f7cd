"""What a server does under load: many clients, a long upload beside an answer, and batches against one at a time.

Starts `sharedllm serve` on loopback, sends a bounded number of requests, ends it, and appends rows to a results file:

    python tools/probes/load.py -o docs/results/serving.jsonl            (about half an hour on two cores)

`--serve` takes more options for the server, such as `--serve "--device cpu --dtype float32"`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

PARTS = ("load", "upload", "batches")
START_SECONDS, END_SECONDS = 600, 60
REST_SECONDS = 10  # before memory is looked at; a server at rest gives back what it had kept for the next tensors
WORDS = "river letter winter captain garden number window paper stone market answer evening harbour clock".split()


def text(tokens: int, seed: int) -> str:
    """About so many tokens of made-up sentences, the same for the same seed."""
    words = np.random.default_rng(seed).choice(WORDS, size=tokens)
    return "\n\n".join(" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, tokens, 12))


@contextmanager
def served(options: list[str], rows: int) -> Iterator[tuple[str, int]]:
    """A server of its own process: its address and process id."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as store:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        start = "from sharedllm.cli import main; main()"
        command = [sys.executable, "-c", start, "serve", "--port", str(port), "--store", store, "--rows", str(rows)]
        process = subprocess.Popen([*command, "--log-level", "error", *options], stdout=subprocess.DEVNULL)
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        try:
            while True:
                try:
                    httpx.get(f"{url}/ready", timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    if process.poll() is not None or time.monotonic() > until:
                        raise SystemExit("the server does not start.") from None
                    time.sleep(0.2)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(END_SECONDS)


async def ask(http: httpx.AsyncClient, prompt: str, tokens: int) -> list[float] | None:
    """When the request was sent, and when each piece of its answer came, in seconds; None where it failed."""
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": True}
    times = [time.perf_counter()]
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return None
            async for line in answer.aiter_lines():
                if '"error"' in line:
                    return None
                if line.startswith("data:") and ('"content": "' in line and '"content": ""' not in line):
                    times.append(time.perf_counter())
                if line == "data: [DONE]":
                    return times
    except httpx.HTTPError:
        return None
    return None


def metrics(url: str, *names: str) -> list[float]:
    """What the server says of itself under some names."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return [float(next(line.split()[1] for line in lines if line.startswith(f"sharedllm_{name} "))) for name in names]


def counted(url: str) -> list[float]:
    """Tokens that the server has generated so far, steps in which it did, and seconds of these."""
    return metrics(url, "generated_tokens_total", "step_seconds_count", "step_seconds_sum")


def held(url: str, pid: int, when: str) -> dict[str, int]:
    """Bytes that the server has once it rests, and those of them that are contexts, up to `--memory-gb`."""
    time.sleep(REST_SECONDS)
    return {f"memory_{when}": memory(pid), f"contexts_{when}": int(*metrics(url, "contexts_memory_bytes"))}


async def clients(url: str, count: int, prompts: list[str], tokens: int, seconds: float) -> dict[str, Any]:
    """`count` clients share the prompts, each sending its next one when it has its answer."""
    left, answers, until = list(prompts), [], time.perf_counter() + seconds
    before, started = counted(url), time.perf_counter()
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=seconds, limits=limits) as http:

        async def client() -> None:
            while left and time.perf_counter() < until:
                answers.append(await ask(http, left.pop(0), tokens))

        await asyncio.gather(*(client() for _ in range(count)))
    took = time.perf_counter() - started
    new, steps, step_seconds = (now - then for now, then in zip(counted(url), before, strict=True))
    first = [times[1] - times[0] for times in answers if times and len(times) > 1]
    quantiles = np.quantile(first, [0.5, 0.95, 0.99]).tolist() if first else [None] * 3
    return {
        "metric": "tokens_per_second",
        "value": new / took,
        "samples": len(answers),
        "seconds": took,
        "errors": sum(times is None for times in answers),
        "step_seconds": step_seconds / steps if steps else None,
        "tokens_a_step": new / steps if steps else None,
        **dict(zip(("first_token_p50", "first_token_p95", "first_token_p99"), quantiles, strict=True)),
    }


async def gap(url: str, length: int, seconds: float) -> dict[str, Any]:
    """Worst time between two pieces of an answer while a text of `length` tokens is read, and without."""

    async def gaps(http: httpx.AsyncClient, going: Any) -> list[float]:
        found: list[float] = []
        while going():
            times = await ask(http, "Tell a long story.", 128)
            found += [b - a for a, b in zip(times[1:-1], times[2:], strict=True)] if times else []
        return found

    started = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=seconds) as http:
        rounds = iter([True, False])
        alone = await gaps(http, lambda: next(rounds))
        upload = (await http.post("/v1/contexts", files={"file": ("long.txt", text(length, 7).encode())})).json()

        async def reading() -> dict[str, Any]:
            while (about := (await http.get(f"/v1/contexts/{upload['id']}")).json())["status"] == "reading":
                if time.perf_counter() - started > seconds:
                    raise SystemExit("the upload was not read in time; give more --seconds.")
                await asyncio.sleep(0.2)
            return about

        work = asyncio.create_task(reading())
        beside = await gaps(http, lambda: not work.done())
        about = await work
    return {
        "metric": "worst_gap_seconds",
        "value": max(beside, default=None),
        "samples": len(beside),
        "seconds": time.perf_counter() - started,
        "length": about["tokens"],
        "median_gap_seconds": statistics.median(beside) if beside else None,
        "alone_worst_gap_seconds": max(alone, default=None),
        "alone_median_gap_seconds": statistics.median(alone) if alone else None,
        "read_seconds": about["read_seconds"],
    }


def memory(pid: int) -> int:
    """Bytes that a process has taken itself; pages of files that it reads are the system's to take back."""
    info = psutil.Process(pid).memory_info()
    return info.rss - getattr(info, "shared", 0)


def machine() -> dict[str, Any]:
    """What `sharedllm doctor` says of the machine and of what is chosen for it."""
    command = [sys.executable, "-c", "from sharedllm.cli import main; main()", "doctor", "--json"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return {name: said[name] for name in ("device", "dtype", "threads", "processor", "versions")}


def mixed(count: int, long_tokens: int, seed: int) -> list[str]:
    """Three short prompts to a long one; a long text comes four times, with other questions."""
    long = [text(long_tokens, seed + i // 16) for i in range(0, count, 4)]
    return [f"{long[i // 4]}\n\nWhat is said {i}?" if i % 4 == 3 else f"What is {i} plus {i}?" for i in range(count)]


def load_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    options = shlex.split(args.serve)
    if "load" in args.parts:
        yield from clients_rows(args, options)
    if "upload" in args.parts:
        with served(options, args.rows) as (url, _pid):
            yield {"method": "upload", "clients": 1, **asyncio.run(gap(url, args.upload_tokens, args.seconds))}
    for rows in (1, args.together) if "batches" in args.parts else ():
        with served(options, rows) as (url, _pid):
            prompts = [f"Say something about number {i}." for i in range(2 * args.together)]
            asyncio.run(clients(url, 2, prompts[:2], 4, args.seconds))
            row = asyncio.run(clients(url, args.together, prompts, 2 * args.tokens, args.seconds))
            yield {"method": "batched" if rows > 1 else "one at a time", "clients": args.together, "rows": rows, **row}


def clients_rows(args: argparse.Namespace, options: list[str]) -> Iterator[dict[str, Any]]:
    """One client, then more, and what the server holds before and after."""
    bounded = ["--memory-gb", str(args.memory_gb), *options]  # so little that warming up fills it
    with served(bounded, args.rows) as (url, pid):
        for count in args.clients:  # the first time through, caches of allocators and of prompts fill
            asyncio.run(clients(url, count, mixed(count, args.long_tokens, 0), args.tokens, args.seconds))
        start = held(url, pid, "start")
        for round_, count in enumerate(args.clients):
            prompts = mixed(count * args.requests, args.long_tokens, 1000 * (round_ + 1))
            row = asyncio.run(clients(url, count, prompts, args.tokens, args.seconds))
            yield {"method": "load", "clients": count, **start, **held(url, pid, "end"), **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file; rows are appended")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which are measured")
    parser.add_argument("--clients", type=lambda s: [int(n) for n in s.split(",")], default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--long-tokens", type=int, default=12_000, help="of a long prompt")
    parser.add_argument("--upload-tokens", type=int, default=131_072, help="of the text read beside an answer")
    parser.add_argument("--together", type=int, default=16, help="clients whose answers are batched")
    parser.add_argument("--rows", type=int, default=8, help="answers the server decodes together under load")
    parser.add_argument("--memory-gb", type=float, default=0.125, help="of contexts that the server may hold in memory")
    parser.add_argument("--seconds", type=float, default=900, help="most that one measurement may take")
    parser.add_argument("--serve", default="", help="more options of `sharedllm serve`")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    about = machine()
    for row in load_rows(args):
        with args.output.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"task": "serve", **about, **row}) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
