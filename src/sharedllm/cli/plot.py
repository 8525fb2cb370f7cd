"""`sharedllm plot`: a figure of results files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharedllm.cli import common


def plot(
    results: Annotated[
        list[Path],
        typer.Argument(metavar="RESULTS...", help="Results files of eval or bench, or metrics of a training run."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The figure: a .png, .svg or .pdf file.")],
    dark: Annotated[
        bool, typer.Option("--dark", help="Also draw it for dark pages, into a file beside it: x-dark.png of x.png.")
    ] = False,
    as_json: common.JsonOption = False,
) -> None:
    """Draw results: perplexity, time and memory against length, needles found by depth, losses and gains of training."""
    from sharedllm.plot.figure import dark_file
    from sharedllm.plot.figure import plot as draw

    planned = draw(results, output, dark)
    common.finished()
    figures = [output, dark_file(output)] if dark else [output]
    for note in planned.notes:
        common.say(f"note: {note}")
    if as_json:
        beside = {"dark": str(figures[1])} if dark else {}
        common.print_json({"figure": str(output), **beside, "drawn": [strip.kind for strip in planned.strips]})
    else:
        print(*figures, sep="\n")
