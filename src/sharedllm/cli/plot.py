"""`sharedllm plot`: a figure of results files."""

from __future__ import annotations

import sys
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
    as_json: common.JsonOption = False,
) -> None:
    """Draw results: perplexity, time and memory against length, needles found by depth, losses and gains of training."""
    from sharedllm.plot.figure import plot as draw

    planned = draw(results, output)
    for note in planned.notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        common.print_json({"figure": str(output), "drawn": [strip.kind for strip in planned.strips]})
    else:
        print(output)
