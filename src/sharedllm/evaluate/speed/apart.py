"""A measurement in a process of its own, which loads the model itself and begins with nothing taken.

A process's peak of memory never falls, so methods in one process would hide each other's. The module that measures is
started as a program, takes a request as JSON on standard input and prints the figures as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sharedllm
from sharedllm.errors import UsageError, WorkError
from sharedllm.hardware import keep_freed_memory
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


Measure = Callable[[Method, Tensor, Prompt, int], Any]
"""From a method, token ids [n], a question and the tokens of an answer to figures, a dataclass."""


def measure_apart(
    module: str, loading: Loading, method: Method, ids: Tensor, prompt: Prompt, new_tokens: int
) -> dict[str, Any]:
    """The figures of `answer` in `module`, run as a program.

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
    paths = [str(Path(sharedllm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]  # the package that runs here
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-P", "-m", module]
    ended = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=env)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["it was killed, as where memory runs out"])[-1]
        raise WorkError(f"measuring in a process of its own failed ({ended.returncode}: {last[:200]})")
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def answer(measure: Measure) -> None:
    """What the process does: load, measure, print; it exits with a sentence where the request is at fault."""
    try:
        request = json.load(sys.stdin)
        torch.set_num_threads(request["threads"])
        keep_freed_memory()  # as the process whose times stand beside it, and every command
        llm = SharedLLM.from_pretrained(**request["loading"])
        method = create(request["method"], llm, request["window"])
        prompt = Prompt(llm.tokenizer, request["question"])
        print(json.dumps(asdict(measure(method, torch.tensor(request["ids"]), prompt, request["new_tokens"]))))
    except (UsageError, WorkError) as error:
        sys.exit(str(error))
