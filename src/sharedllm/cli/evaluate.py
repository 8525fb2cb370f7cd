"""`sharedllm eval`: run a benchmark with several methods and write results rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharedllm.cli import common

TASKS = ("perplexity",)


def evaluate(
    task: Annotated[str, typer.Argument(help="perplexity")],
    text: Annotated[list[str], typer.Option("--text", help="A file or folder to take passages from; repeat for more.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Results file; rows are appended.")],
    methods: Annotated[str, typer.Option("--methods", help="Methods, separated by commas.")] = "shared,truncate",
    lengths: Annotated[
        str, typer.Option("--lengths", help="All tokens a method is given, separated by commas.")
    ] = "8192",
    samples: Annotated[int, typer.Option("--samples", help="Passages at each length.")] = 8,
    targets: Annotated[int, typer.Option("--targets", help="How many of the last tokens are scored.")] = 1024,
    window: Annotated[int, typer.Option("--window", help="Newest tokens the model sees itself.")] = 1024,
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    seed: common.SeedOption = 0,
    as_json: common.JsonOption = False,
) -> None:
    """Run a benchmark with several methods on the same tokens; rows go to a results file."""
    from sharedllm.config import check_choice
    from sharedllm.methods import METHODS

    check_choice("task", task, TASKS)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        check_choice("method", name, METHODS)
    wanted = common.positive_numbers("--lengths", lengths)
    for option, value in (("--samples", samples), ("--targets", targets), ("--window", window)):
        common.positive(option, value)
    from sharedllm.sources import read_sources

    documents = read_sources(text)
    llm = common.load(model, adapter, device, dtype, seed)
    from sharedllm.evaluate.perplexity import cut_passages, run
    from sharedllm.evaluate.results import append_row
    from sharedllm.methods import create

    texts = [(Path(d.name).name, llm.reader.token_ids(d.text).long()) for d in documents]
    per_length = {n: cut_passages(texts, n, samples) for n in wanted}
    made = [create(name, llm, window) for name in names]
    row = {}
    for length, passages in per_length.items():
        for row in run(made, passages, targets, seed, lambda line: typer.echo(line, err=True)):
            append_row(output, row)
            if not as_json:
                print(
                    f"{row['method']:<10} {length:>8,} {row['metric']:<24} {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
                )
    if as_json:
        common.print_json({"results": str(output), "last": row})
