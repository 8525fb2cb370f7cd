"""What the commands share: options, loading, progress, JSON output."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from sharedllm.context import Context, Progress
    from sharedllm.model import SharedLLM
    from sharedllm.sources import Document

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
NAMED = 5  # files that are passed over, by name
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
    model: str | None, adapter: str = "default", device: str | None = None, dtype: str | None = None, seed: int = 0
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
        return SharedLLM.from_pretrained(model, adapter=adapter, device=device, dtype=dtype)


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


def read(llm: SharedLLM, sources: Sequence[str], keep_tags: bool = False) -> tuple[Context, float]:
    """The context of some sources, saved contexts among them, and the seconds that reading took.

    Texts that follow each other are read as one; with `keep_tags`, what stands between their tags is kept.
    """
    import time
    from itertools import groupby

    from sharedllm.context import Context

    contexts, seconds = [], 0.0
    groups = [(saved, list(group)) for saved, group in groupby(sources, key=is_saved)]
    folders = [folder for saved, group in groups if saved for folder in group]
    opened = {folder: Context.load(folder, llm) for folder in folders}  # first, since one may be refused
    for saved, group in groups:
        if saved:
            contexts += [opened[folder] for folder in group]
            continue
        text = text_of(group, keep_tags)
        started = time.perf_counter()
        with reading_bar() as progress:
            contexts.append(llm.read(text, progress=progress, keep="tags" if keep_tags else None))
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    whole = contexts[0] if len(contexts) == 1 else Context.compose(contexts)  # reads short texts beside others
    return whole, seconds + time.perf_counter() - started


def encode(llm: SharedLLM, context: Context) -> float:
    """Encode what a context has read and not encoded yet; the seconds that took."""
    import time

    started = time.perf_counter()
    if context.encoded_tokens < context.tokens:
        with reading_bar() as progress:
            llm.reader.encode(llm.reader.bind(context), progress)
    return time.perf_counter() - started


def found(
    llm: SharedLLM, sources: Sequence[str], question: str, documents: int
) -> tuple[list[str], list[dict[str, Any]], float]:
    """The sources with each collection among them replaced by those of its documents that are nearest to a question.

    Also what was found, an entry a document, and the seconds that finding took.
    """
    import time

    from sharedllm.collection.search import Collection, is_collection

    named: list[str] = []
    hits: list[dict[str, Any]] = []
    started = time.perf_counter()
    for source in sources:
        if not is_collection(source):
            named.append(source)
            continue
        collection = Collection(source, llm)
        for hit in collection.search(question, documents):
            named.append(str(collection.folder(hit.store)))
            hits.append({"source": hit.source, "tokens": hit.tokens, "score": round(hit.score, 4)})
    return named, hits, time.perf_counter() - started


def is_saved(source: str) -> bool:
    """Whether a source is a saved context, or what is left of one; not asked of pathlib, which fails where a name is too
    long for a file."""
    from sharedllm.manifest import FORMAT, MANIFEST

    about = os.path.join(source, MANIFEST)
    if not os.path.isfile(about):
        return False
    try:
        with open(about, "rb") as file:
            told = json.load(file)
    except (OSError, ValueError):
        return True
    return not isinstance(told, dict) or told.get("format") == FORMAT  # another program's file may have this name


def refuse_collections(sources: Sequence[str]) -> None:
    """Raise `UsageError` for a collection where texts or saved contexts are expected."""
    from sharedllm.collection.search import is_collection
    from sharedllm.errors import UsageError

    if kept := [source for source in sources if is_collection(source)]:
        raise UsageError(f"{kept[0]} is a collection, which `sharedllm ask` alone answers from; ask it there.")


def text_of(sources: Sequence[str], keep_tags: bool = False, output: Path | None = None) -> str:
    """The text of some sources, a blank line between files.

    Args:
        keep_tags: whether each file is checked for tags without their other half.
        output: as for `documents_of`.
    """
    from sharedllm.errors import UsageError

    refuse_collections(sources)
    if saved := [source for source in sources if is_saved(source)]:
        raise UsageError(f"{saved[0]} is a saved context, and a text is expected here; name the files it was made of.")
    documents = documents_of(sources, output)
    if keep_tags:
        check_tags(documents)
    return "\n\n".join(document.text for document in documents)


def check_tags(documents: Sequence[Document]) -> None:
    """Raise `UsageError`, with its name, for a file in which a tag has no other half: joined, those of two files may seem to."""
    from sharedllm.errors import UsageError
    from sharedllm.keep import untagged

    for document in documents:
        try:
            untagged(document.text)
        except UsageError as error:
            raise UsageError(f"{document.name}: {error}") from error


def documents_of(sources: Sequence[str], output: Path | None = None) -> list[Document]:
    """The files of some sources as texts, saying on stderr which files of folders have none.

    Args:
        output: the results file, which is no text where it lies in one of the folders; see `check_output`.
    """
    from sharedllm.sources import read_sources

    passed: list[str] = []
    documents = read_sources(list(sources), passed=passed.append)
    if passed:
        more = f" and {len(passed) - NAMED} more" if len(passed) > NAMED else ""
        say(f"passed over, binary, empty or a linked folder: {', '.join(passed[:NAMED])}{more}")
    if output is None:
        return documents
    return [document for document in documents if os.path.realpath(document.name) != os.path.realpath(output)]


def check_output(output: Path, texts: Sequence[str]) -> None:
    """Raise `UsageError` for a results file that is one of the texts, to which rows would be added."""
    from sharedllm.errors import UsageError

    written = os.path.realpath(output)
    for text in texts:
        read = os.path.realpath(text)
        inside = written.startswith(os.path.join(read, "")) and not _has_rows(output)
        if written == read or inside:
            raise UsageError(f"-o is {output}, which is read with --text; name another file.")


def _has_rows(file: Path) -> bool:
    """Whether a file has results rows and nothing else, or is not there."""
    from sharedllm.errors import WorkError
    from sharedllm.evaluate.results import read_rows

    try:
        return all("task" in row for row in read_rows(file))
    except WorkError:
        return False


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
                print(
                    f"reading: {done:,} of {total:,} tokens, {speed:,.0f} tokens/s, {left:,.0f} s left", file=sys.stderr
                )

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


def say(line: str) -> None:
    """A line of progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def tell(line: str) -> None:
    """A line on stdout; what its encoding lacks is escaped, and so is what of a file's name is no text."""
    print(line.encode(_encoding(), "backslashreplace").decode(_encoding()), flush=True)


def print_json(values: dict[str, Any]) -> None:
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
