"""Processes that train and read together, started by the real launcher (gloo, CPUs), and what they are given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from sharedllm import SharedLLM
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model

LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--main_process_port", "0")
QUIET = ("--mixed_precision", "no", "--dynamo_backend", "no")
TORCH = ("--multi_gpu",)  # by torch's launcher, on CPUs as well
PATIENCE = 400  # seconds for a launch on a busy machine; well below what an exchange waits


def started(
    count: int, *module: str, options: tuple[str, ...] = TORCH, settings: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """`accelerate launch -m MODULE ARGUMENTS...` in `count` processes, with further settings of the environment."""
    command = [*LAUNCH, *QUIET, *options, "--num_processes", str(count), "-m", *module]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path("src").resolve()), str(Path.cwd())]),
        **(settings or {}),
    }
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def launched(count: int, *module: str, options: tuple[str, ...] = TORCH, settings: dict[str, str] | None = None) -> str:
    """The same, waited for; gives all it said."""
    process = started(count, *module, options=options, settings=settings)
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        stop(process)
    assert process.returncode == 0, said
    return said


def stop(process: subprocess.Popen[str]) -> None:
    """End a launch; asked to end, the launcher ends its processes."""
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()


def write_model(folder: Path) -> Path:
    """A tiny model with its tokenizer, as Hugging Face keeps it, and an adapter with random weights."""
    model, tokenizer = tiny_model(), byte_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    llm = SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=tokenizer)
    randomize(llm).save_adapter(folder / "adapter")
    return folder / "model"


def write_recipe(file: Path, values: dict[str, Any]) -> str:
    file.write_text(yaml.safe_dump(values))
    return str(file)
