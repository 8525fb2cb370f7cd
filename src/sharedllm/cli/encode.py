"""`sharedllm encode`: read files once and keep what was read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharedllm.cli import common


def encode(
    sources: common.SourcesArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to keep the context in.")],
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Read files once and keep the context in a folder, for any number of later questions."""
    from sharedllm.context import check_target

    check_target(output)
    llm = common.load(model, adapter, device, dtype)
    from sharedllm.evaluate.row import machine

    context, seconds = common.read(llm, sources)
    context.save(output)
    figures = {
        "context": str(output),
        "context_tokens": context.tokens,
        "chunks": context.chunks,
        "bytes": context.nbytes,
        "encode_seconds": round(seconds, 3),
        **machine(llm),
    }
    if as_json:
        common.print_json(figures)
    else:
        print(f"{context.tokens:,} tokens kept in {output} ({context.nbytes / 1e6:,.1f} MB), read in {seconds:.1f} s")
