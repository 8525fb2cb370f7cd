"""`sharedllm eval`: run a benchmark with several methods and write results rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sharedllm.cli import common

if TYPE_CHECKING:
    from torch import Tensor

    from sharedllm.methods import Method
    from sharedllm.model import SharedLLM

TASKS = ("perplexity", "needle", "questions")
DEPTH_RANGES = 5  # columns of the table of depths


def evaluate(
    task: Annotated[str, typer.Argument(help="perplexity, needle or questions")],
    text: Annotated[list[str], typer.Option("--text", help="A file or folder to take passages from; repeat for more.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Results file; rows are appended.")],
    methods: Annotated[str, typer.Option("--methods", help="Methods, separated by commas.")] = "shared,truncate",
    lengths: Annotated[
        str, typer.Option("--lengths", help="All tokens a method is given, separated by commas; needle: of the text.")
    ] = "8192",
    samples: Annotated[int, typer.Option("--samples", help="Passages at each length; else questions.")] = 8,
    targets: Annotated[int, typer.Option("--targets", help="perplexity: how many of the last tokens are scored.")] = (
        1024
    ),
    window: Annotated[
        str,
        typer.Option("--window", help="Newest tokens the model sees itself; by method: shared=4096,truncate=8192."),
    ] = "1024",
    needles: Annotated[
        int, typer.Option("--needles-per-text", help="needle, questions: asked of each text at most.")
    ] = 8,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help="needle, questions: longest answer, in tokens.")
    ] = 32,
    ceiling: Annotated[
        bool,
        typer.Option(
            "--ceiling", help="needle, questions: also ask the model shown only the 1,024 tokens around the answer."
        ),
    ] = False,
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    seed: common.SeedOption = 0,
    as_json: common.JsonOption = False,
) -> None:
    """Run a benchmark with several methods on the same tokens; rows go to a results file."""
    names = _checked(task, methods)
    windows = _windows(window, names)
    wanted = common.positive_numbers("--lengths", lengths)
    for option, value in (
        ("--samples", samples), ("--targets", targets),
        ("--needles-per-text", needles), ("--max-new-tokens", max_new_tokens),
    ):  # fmt: skip
        common.positive(option, value)
    from sharedllm.sources import read_sources

    documents = read_sources(text)
    llm = common.load(model, adapter, device, dtype, seed)
    from sharedllm.evaluate.results import append_row
    from sharedllm.methods import create

    texts = [(Path(d.name).name, llm.reader.token_ids(d.text).long()) for d in documents]
    made = [create(name, llm, windows[name]) for name in names]
    if task == "perplexity":
        rows = _perplexity(made, texts, wanted, samples, targets, seed)
    elif task == "questions":
        rows = _questions(llm, made, texts, wanted, samples, needles, max_new_tokens, ceiling, seed)
    else:
        rows = _needle(llm, made, texts, wanted, samples, needles, max_new_tokens, ceiling, seed)
    row: dict[str, Any] = {}
    for row in rows:
        append_row(output, row)
        if not as_json:
            _print_row(row)
    if as_json:
        common.print_json({"results": str(output), "last": row})


def _checked(task: str, methods: str) -> list[str]:
    """The methods' names; `UsageError` where one, or the task, is unknown."""
    from sharedllm.config import check_choice
    from sharedllm.methods import METHODS

    check_choice("task", task, TASKS)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        check_choice("method", name, METHODS)
    return names


def _windows(text: str, methods: Sequence[str]) -> dict[str, int]:
    """The window of every method: one number for all, or some named and the rest 1,024."""
    from sharedllm.errors import UsageError

    if "=" not in text:
        (number, *more) = common.positive_numbers("--window", text)
        if more:
            raise UsageError(
                f"--window is {text!r}; give one number, or a number by method: shared=4096,truncate=8192."
            )
        return dict.fromkeys(methods, number)
    windows = dict.fromkeys(methods, 1024)
    for part in text.split(","):
        name, _, number_text = part.partition("=")
        if name.strip() not in windows:
            raise UsageError(f"--window names {name.strip()!r}, which is not among the methods {', '.join(methods)}.")
        (windows[name.strip()],) = common.positive_numbers("--window", number_text)
    return windows


def _perplexity(
    methods: Sequence[Method],
    texts: Sequence[tuple[str, Tensor]],
    lengths: Sequence[int],
    samples: int,
    targets: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Rows of all lengths, each of which ends in the same passages' last tokens."""
    from sharedllm.evaluate.perplexity import cut_passages, run

    cut_passages(texts, min(lengths), samples)  # too short a length is refused
    return run(methods, cut_passages(texts, max(lengths), samples), lengths, targets, seed, _progress)


def _needle(
    llm: SharedLLM,
    methods: Sequence[Method],
    texts: Sequence[tuple[str, Tensor]],
    lengths: Sequence[int],
    samples: int,
    needles: int,
    max_new_tokens: int,
    ceiling: bool,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Rows of all lengths; every length is checked before the first is run."""
    from sharedllm.evaluate.needle import build_haystacks, run

    def encode(statement: str) -> Tensor:
        return llm.reader.token_ids(statement).long()

    per_length = [build_haystacks(texts, n, samples, needles, seed, encode) for n in lengths]
    return chain.from_iterable(
        run(llm, methods, haystacks, max_new_tokens, seed, _progress, ceiling) for haystacks in per_length
    )


def _questions(
    llm: SharedLLM,
    methods: Sequence[Method],
    texts: Sequence[tuple[str, Tensor]],
    lengths: Sequence[int],
    samples: int,
    per_text: int,
    max_new_tokens: int,
    ceiling: bool,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Rows of all lengths; every length is checked before the first is run."""
    from sharedllm.evaluate.questions import examine, run

    per_length = [examine(texts, n, samples, per_text, llm.tokenizer, max_new_tokens) for n in lengths]
    return chain.from_iterable(run(llm, methods, made, seed, _progress, ceiling) for made in per_length)


def _progress(line: str) -> None:
    typer.echo(line, err=True)


def _print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['method']:<10} {row['length']:>8,} {row['metric']:<24} {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
    )
    if row["task"] == "needle":
        from sharedllm.evaluate.needle import by_depth

        borders = [round(100 * i / DEPTH_RANGES) for i in range(DEPTH_RANGES + 1)]
        shares = by_depth(row["depths"], row["found"], DEPTH_RANGES)
        print(
            "    depth  " + "".join(f"{f'{low}-{high} %':>12}" for low, high in zip(borders, borders[1:], strict=False))
        )
        print("    found  " + "".join(f"{'-' if share is None else f'{share:.2f}':>12}" for share in shares))
