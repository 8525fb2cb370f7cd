"""What the commands share: options, loading, progress, JSON output."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from sharedllm.context import Progress
    from sharedllm.model import SharedLLM

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Hugging Face name, folder or .gguf file; SmolLM2-135M-Instruct where none is given."),
]
AdapterOption = Annotated[
    str,
    typer.Option("--adapter", help="Adapter folder, user/name on the Hub, `default` (the shipped one) or `none`."),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...; chosen when left out.")]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; chosen when left out.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
KeepTagsOption = Annotated[
    bool, typer.Option("--keep-tags", help="Read what stands between <keep> and </keep> in the text in whole, always.")
]
EngineOption = Annotated[str, typer.Option("--engine", help="local: this process; ray: the workers of a Ray cluster.")]
RayAddressOption = Annotated[
    str | None, typer.Option("--ray-address", help="Of a running cluster; without it one is started here and stopped.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="With --engine ray: processes; chosen when left out.")
]
ENGINES = ("local", "ray")
_work = {"done": False}  # of the command that runs
_SOURCES = "Files (text, Markdown, HTML, PDF), folders, - for standard input"
SourcesArgument = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help=f"{_SOURCES}, saved contexts or collections, in any mix.")
]
OptionalSourcesArgument = Annotated[list[str] | None, typer.Argument(metavar="SOURCE...", help=f"{_SOURCES}.")]
TalkSourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="SOURCE...", help="Files (text, Markdown, HTML, PDF), folders, saved contexts, in any mix."),
]
NO_ADAPTER = (
    "no trained adapter is in use: of the text only the passages quoted before the question reach the answer "
    "(quoted_tokens)."
)


def load(
    model: str | None,
    adapter: str = "default",
    device: str | None = None,
    dtype: str | None = None,
    seed: int = 0,
    stored_bits: int | None = None,
) -> SharedLLM:
    """Load the model with its adapter, saying so on stderr; threads and seed are set for this process."""
    import torch
    from transformers.utils import logging

    from sharedllm.hardware import choose_threads, keep_freed_memory
    from sharedllm.model import SharedLLM

    logging.set_verbosity_error()
    torch.set_num_threads(int(choose_threads().value))
    torch.manual_seed(seed)
    keep_freed_memory()
    with status("loading the model"):
        return SharedLLM.from_pretrained(model, adapter=adapter, device=device, dtype=dtype, stored_bits=stored_bits)


def depends_on(task: str, llm: SharedLLM, seed: int) -> dict[str, Any]:
    """What all rows of a run depend on; they are computed again where any of it has changed."""
    from importlib.metadata import version

    from sharedllm.adapter import weights_digest

    return {
        "task": task,
        "version": version("sharedllm"),
        "model": [llm.name, llm.fingerprint],
        "adapter": [llm.adapter, weights_digest(llm.injection)],
        "device": str(llm.device),
        "dtype": str(llm.dtype),
        "seed": seed,
    }


@contextmanager
def status(what: str) -> Iterator[None]:
    """A spinner on stderr while the block runs; nothing where stderr is no terminal."""
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ..."):
        yield


@contextmanager
def reading_bar() -> Iterator[Progress]:
    """A bar on stderr with tokens, tokens a second and time left; plain lines where stderr is no terminal."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        "reading",
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens, {task.fields[speed]:,.0f}/s,"),
        TimeRemainingColumn(),
        "left",
    )
    started, spoken = time.perf_counter(), 0.0
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600) as bar:
        task = bar.add_task("reading", total=None, speed=0.0)

        def progress(done: int, total: int) -> None:
            nonlocal spoken
            passed = time.perf_counter() - started
            speed = done / max(passed, 1e-9)
            bar.update(task, completed=done, total=total, speed=speed)
            if not console.is_terminal and (passed - spoken > 15 or done == total):
                spoken = passed
                left = (total - done) / max(speed, 1e-9)
                say(f"reading: {done:,} of {total:,} tokens, {speed:,.0f} tokens/s, {left:,.0f} s left")

        yield progress


def check_engine(engine: str, address: str | None, workers: int | None) -> None:
    """Raise `UsageError` for an engine that there is not, or for options of the other one."""
    from sharedllm.config import check_choice
    from sharedllm.errors import UsageError

    check_choice("--engine", engine, ENGINES)
    if engine == "local" and (address is not None or workers is not None):
        raise UsageError("--ray-address and --workers are for workers of a Ray cluster; add --engine ray.")
    if workers is not None:
        positive("--workers", workers)


def say(line: str, end: str = "\n") -> None:
    """A line of progress, on stderr; where nobody reads that any more the work goes on."""
    try:
        print(line, end=end, file=sys.stderr, flush=True)
    except BrokenPipeError:
        let_go(sys.stderr)


def let_go(*streams: TextIO) -> None:
    """Have nowhere to go what waits for a pipe that is closed: else Python fails once more as it flushes at its end."""
    for stream in filter(None, streams):  # a program may have none
        try:
            stream.flush()
        except BrokenPipeError:
            with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def finished(done: bool = True) -> None:
    """Say that a command's work is done and only its outcome is still to be told: who closes its output then lost nothing."""
    _work["done"] = done


def is_finished() -> bool:
    return _work["done"]


def tell(line: str) -> None:
    """A line on stdout; what its encoding lacks is escaped, and so is what of a file's name is no text."""
    print(line.encode(_encoding(), "backslashreplace").decode(_encoding()), flush=True)


def print_json(values: dict[str, Any], more: bool = False) -> None:
    """A JSON object on stdout, the last thing that a command does unless `more` follows."""
    if not more:
        finished()
    tell(json.dumps(values, ensure_ascii=codecs.lookup(_encoding()).name != "utf-8"))  # else escaped as JSON does not


def _encoding() -> str:
    return sys.stdout.encoding or "utf-8"


def positive(option: str, value: int) -> int:
    """Raise `UsageError` unless a number given to an option is at least 1."""
    from sharedllm.errors import UsageError

    if value < 1:
        raise UsageError(f"{option} is {value}; it must be at least 1.")
    return value


def positive_numbers(option: str, text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas; `UsageError` otherwise."""
    from sharedllm.errors import UsageError

    try:
        numbers = [int(part.replace("_", "")) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}; give whole numbers separated by commas, such as 4096,8192.") from error
    if not numbers:
        raise UsageError(f"{option} is empty; give whole numbers separated by commas, such as 4096,8192.")
    return [positive(option, n) for n in numbers]


def method_names(text: str) -> list[str]:
    """Names of methods, separated by commas; `UsageError` for one that is unknown, or without any."""
    from sharedllm.config import check_choice
    from sharedllm.errors import UsageError
    from sharedllm.methods import METHODS

    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        check_choice("method", name, METHODS)
    if not names:
        raise UsageError(f"--methods is {text!r}; name at least one of {', '.join(METHODS)}.")
    return names


def windows(text: str, methods: Sequence[str]) -> dict[str, int]:
    """The window of every method: one number for all, or some named and the rest 1,024."""
    from sharedllm.errors import UsageError

    if "=" in text:
        return dict.fromkeys(methods, 1024) | numbers_by_method("--window", text, methods)
    (number, *more) = positive_numbers("--window", text)
    if more:
        raise UsageError(f"--window is {text!r}; give one number, or a number by method: shared=4096,truncate=8192.")
    return dict.fromkeys(methods, number)


def numbers_by_method(option: str, text: str, methods: Sequence[str]) -> dict[str, int]:
    """The numbers that an option such as `shared=4096,truncate=8192` gives some of the methods."""
    from sharedllm.errors import UsageError

    found = {}
    for part in filter(None, text.split(",")):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in methods:
            raise UsageError(f"{option} names {name!r}, which is not among the methods {', '.join(methods)}.")
        (found[name],) = positive_numbers(option, number)
    return found
