"""Reading one long text with several processes: `accelerate launch -m sharedllm.reading book.txt -o book.context`.

The first process does what `sharedllm encode` does; the others encode chunks with it. The folder is the one that
`sharedllm encode` writes, and goes on where it was as well.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sharedllm.cli import common
from sharedllm.cli.encode import kept, named_texts, tell_gone


def read(
    sources: common.SourcesArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to keep the context in.")],
    append: Annotated[bool, typer.Option("--append", help="Keep what the folder holds and add to it.")] = False,
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Read files with all processes of a launch and keep the context in a folder."""
    from sharedllm.hardware import choose_device
    from sharedllm.library import Library
    from sharedllm.manifest import check_target
    from sharedllm.parallel import LeadingReader, ParallelReader, follow
    from sharedllm.processes import Processes

    processes = Processes(cpu=choose_device(device).value == "cpu")
    llm = common.load(model, adapter, str(processes.device), dtype or processes.dtype)
    processes.agree("model", f"{llm.reader.identity} in {llm.dtype} with {llm.config}")
    if not processes.main:
        follow(ParallelReader(llm.reader, processes))
        processes.end()
        return
    llm.reader = reader = LeadingReader(llm.reader, processes)
    try:
        check_target(output)
        library = Library(output, llm)
        texts = named_texts(library, sources, append)
        started = time.perf_counter()
        with common.reading_bar() as progress:
            gone = library.update(texts, only=not append, progress=progress)
        tell_gone(gone, texts)
    finally:
        if not reader.exchanging:  # else the launcher ends the others, as soon as this process says what went wrong
            reader.end()
            processes.end()
    figures = {
        **kept(library),
        "encode_seconds": round(time.perf_counter() - started, 3),
        "processes": processes.count,
        "received_bytes": processes.received,
    }
    common.say(f"each of {processes.count} processes received {processes.received / 1e6:,.1f} MB")
    if as_json:
        common.print_json(figures)
    else:
        print("{context_tokens:,} tokens kept in {context}, read in {encode_seconds:,.1f} s".format(**figures))


if __name__ == "__main__":
    from sharedllm.cli import main
    from sharedllm.cli.ending import Command

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(cls=Command)(read)
    main(commands=app)
