"""Memory of one question on a long text, by part, in a process of its own.

A process's peak never falls, so methods in one process would hide each other's. Started as a program, this
file takes a request as JSON on standard input and prints the figures as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sharedllm
from sharedllm.errors import UsageError, WorkError
from sharedllm.evaluate.speed.phases import endless
from sharedllm.hardware import peak_memory_bytes
from sharedllm.methods import Method, create
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt


@dataclass(frozen=True)
class Loading:
    """How the model is loaded again; as the options of the command line."""

    model: str | None
    adapter: str
    device: str | None
    dtype: str | None


@dataclass(frozen=True)
class Memory:
    """Bytes of one question on a text."""

    weights: int
    """Of the model."""
    added_weights: int
    """Of what the method adds to it."""
    kept: int
    """What is kept of the text for any question."""
    attended: int
    """Keys and values of the text that this question attends to."""
    working_peak: int
    """The most that was taken beyond the loaded model; what is kept and attended to is part of it."""
    peak: int
    """The most that the process had, libraries and all."""


def measure(method: Method, ids: Tensor, prompt: Prompt, new_tokens: int) -> Memory:
    """Ask one question on token ids [n]; the peaks are right only in a process that did nothing before."""
    with endless(method.llm.model):
        method.ask(method.prepare(ids[:0]), prompt, new_tokens)  # what is made once, and weights still on disk
        before = _reset(method.llm.device)
        past = method.prepare(ids)
        method.ask(past, prompt, new_tokens)
    peak = _peak(method.llm.device)
    return Memory(
        weights=_bytes(method.llm.model),
        added_weights=sum(map(_bytes, method.added())),
        kept=method.kept_bytes(past),
        attended=method.attended_bytes(past, prompt, new_tokens),
        working_peak=max(0, peak - before),
        peak=peak,
    )


def measure_apart(loading: Loading, method: Method, ids: Tensor, prompt: Prompt, new_tokens: int) -> Memory:
    """The same in a new process, which loads the model itself.

    Raises:
        WorkError: it ended without figures, as where memory runs out; the sentence gives its last line.
    """
    request = {
        "loading": asdict(loading),
        "method": method.name,
        "window": method.window,
        "ids": ids.tolist(),
        "question": prompt.question,
        "new_tokens": new_tokens,
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-P", "-m", "sharedllm.evaluate.speed.memory"]
    paths = [str(Path(sharedllm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]  # the package that runs here
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ended = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=env)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["it was killed, as where memory runs out"])[-1]
        raise WorkError(f"measuring its memory in a process of its own failed ({ended.returncode}: {last[:200]})")
    return Memory(**json.loads(ended.stdout.splitlines()[-1]))


def _bytes(module: torch.nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def _reset(device: torch.device) -> int:
    """Forget the peak so far; returns what is held now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that glibc still holds is nobody's
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except (OSError, AttributeError, TypeError):
        return peak_memory_bytes(device)  # the peak stays: what is below it is not seen


def _peak(device: torch.device) -> int:
    """The most that was held since `_reset`."""
    try:
        return peak_memory_bytes(device) if device.type == "cuda" else _status("VmHWM")
    except OSError:
        return peak_memory_bytes(device)


def _status(name: str) -> int:
    """A size from Linux's account of this process, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return 1024 * int(found[1])


def _answer(request: dict[str, Any]) -> Memory:
    torch.set_num_threads(request["threads"])
    llm = SharedLLM.from_pretrained(**request["loading"])
    method = create(request["method"], llm, request["window"])
    ids = torch.tensor(request["ids"])
    return measure(method, ids, Prompt(llm.tokenizer, request["question"]), request["new_tokens"])


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(_answer(json.load(sys.stdin)))))
    except (UsageError, WorkError) as error:
        sys.exit(str(error))
