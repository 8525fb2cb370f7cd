"""The options of `sharedllm eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sharedllm.cli.evaluate.tasks import TASKS

Task = Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Results file; rows are appended.")]
Text = Annotated[
    list[str] | None, typer.Option("--text", help="A file or folder to take passages from; repeat for more.")
]
Data = Annotated[Path | None, typer.Option("--data", help="Folder with a benchmark's own files.")]
Subtasks = Annotated[
    str, typer.Option("--tasks", help="Which of a benchmark's tasks, separated by commas; otherwise all.")
]
Variant = Annotated[str, typer.Option("--variant", help="longbench: v1, e (scored by length as well) or v2.")]
Methods = Annotated[str, typer.Option("--methods", help="Methods, separated by commas.")]
Lengths = Annotated[
    str,
    typer.Option(
        "--lengths",
        help="All tokens a method is given, question and answer included, separated by commas; real, longbench and "
        "infinitebench have their own.",
    ),
]
Samples = Annotated[
    int,
    typer.Option(
        "--samples",
        help="perplexity: passages; needle, questions, real: questions; ruler, longbench, infinitebench: questions of each "
        "task.",
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        help="perplexity: slide over the whole of each text, a passage every so many tokens, instead of --samples of them.",
    ),
]
Targets = Annotated[int, typer.Option("--targets", help="perplexity: how many of the last tokens are scored.")]
Window = Annotated[
    str, typer.Option("--window", help="Newest tokens the model sees itself; by method: shared=4096,truncate=8192.")
]
Cross = Annotated[
    Path | None, typer.Option("--cross", help="Trained weights of encoder-decoder: the adapter folder of its run.")
]
AtMost = Annotated[
    str,
    typer.Option(
        "--at-most",
        help="Longest length of a method: full=16384,yarn=32768; beyond it is not measured. longbench, infinitebench: of "
        "a data set the longest text counts.",
    ),
]
PerText = Annotated[int, typer.Option("--needles-per-text", help="needle, questions: asked of each text at most.")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        help="Longest answer, in tokens: for needle, questions and real otherwise 32; ruler has its own, longbench and "
        "infinitebench too, which this only lowers.",
    ),
]
Ceiling = Annotated[
    bool,
    typer.Option(
        "--ceiling",
        help="Also ask the model shown only the 1,024 tokens around the answer, where that is in one place.",
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute everything, also what the results file has already.")]
WriteSamples = Annotated[
    Path | None,
    typer.Option("--write-samples", help="perplexity, needle: also write what is asked, for other systems."),
]
