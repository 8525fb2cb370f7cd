"""`sharedllm eval`: run a benchmark with several methods and write results rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sharedllm.cli import common
from sharedllm.cli.evaluate import options
from sharedllm.cli.evaluate.jobs import ceiling_jobs, sample_jobs
from sharedllm.cli.evaluate.request import Request
from sharedllm.cli.evaluate.show import print_head, print_row
from sharedllm.cli.evaluate.tasks import TASKS, Samples
from sharedllm.cli.given import check_output, documents_of
from sharedllm.errors import UsageError

if TYPE_CHECKING:
    from sharedllm.evaluate.results import Results
    from sharedllm.methods import Method
    from sharedllm.model import SharedLLM


def evaluate(
    context: typer.Context,
    task: options.Task,
    output: options.Output,
    text: options.Text = None,
    data: options.Data = None,
    subtasks: options.Subtasks = "",
    variant: options.Variant = "v1",
    methods: options.Methods = "shared,truncate",
    lengths: options.Lengths = "8192",
    samples: options.Samples = 8,
    stride: options.Stride = None,
    targets: options.Targets = 1024,
    window: options.Window = "1024",
    at_most: options.AtMost = "",
    cross: options.Cross = None,
    needles: options.PerText = 8,
    max_new_tokens: options.MaxNewTokens = None,
    ceiling: options.Ceiling = False,
    fresh: options.Fresh = False,
    write_samples: options.WriteSamples = None,
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    seed: common.SeedOption = 0,
    engine: common.EngineOption = "local",
    ray_address: common.RayAddressOption = None,
    workers: common.WorkersOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Run a benchmark with several methods on the same tokens; rows go to a results file."""
    common.check_engine(engine, ray_address, workers)
    names = _checked(task, methods, text or [], data)
    given = _given(context)
    _refuse_idle(task, given)
    _check_cross(cross, engine, names)
    chosen = _subtasks(task, subtasks)
    samples_of = _samples_of(task, write_samples, output, text or [])
    check_output(output, text or [])
    windows, longest = common.windows(window, names), common.numbers_by_method("--at-most", at_most, names)
    wanted = common.positive_numbers("--lengths", lengths)
    _check_counts(samples, targets, needles, max_new_tokens, stride)
    if task == "perplexity" and "--window" in given:
        _check_windows(window, names, min(targets, min(wanted) - 1))
    documents = documents_of(text, output) if text else []
    loading: dict[str, Any] = {"model": model, "adapter": adapter, "device": device, "dtype": dtype}
    llm = common.load(**loading, seed=seed)
    from sharedllm.hardware import free_memory_bytes

    request = Request(
        task=task,
        llm=llm,
        methods=_methods(llm, windows, longest, cross),
        documents=documents,
        data=data,
        subtasks=chosen,
        lengths=wanted,
        samples=samples,
        stride=stride,
        targets=targets,
        per_text=needles,
        max_new_tokens=max_new_tokens,
        variant=variant,
        ceiling=ceiling,
        seed=seed,
        results=_results(output, task, llm, seed, fresh),
        free=free_memory_bytes(llm.device),
    )
    _forecast(task, request, write_samples is not None)
    _write(write_samples, samples_of, request)
    with _spread(engine, request, loading, ray_address, workers) as spread:
        last = _run(spread, as_json)
    if as_json:
        common.print_json({"results": str(output), "last": last})


def _results(output: Path, task: str, llm: SharedLLM, seed: int, fresh: bool) -> Results:
    """The file that rows go to."""
    from sharedllm.evaluate.results import PLAIN, Results
    from sharedllm.evaluate.row import versions

    return Results(output, common.depends_on(task, llm, seed), fresh, common.say, versions=versions(), plain=PLAIN)


def _run(request: Request, quiet: bool) -> dict[str, Any]:
    """Measure, and print each row as it comes unless `quiet`; the last one."""
    row: dict[str, Any] = {}
    for number, row in enumerate(TASKS[request.task].rows(request)):
        if not quiet and number == 0:
            print_head(request.llm, request.windows)
        if not quiet:
            print_row(row)
    return row


def _methods(
    llm: SharedLLM, windows: Mapping[str, int], longest: Mapping[str, int], cross: Path | None
) -> list[Method]:
    """The methods by name, each with its window and the length up to which it is measured."""
    from sharedllm.methods import create

    given: dict[str, dict[str, Any]] = {"encoder-decoder": {"weights": cross}}
    made = [create(name, llm, window, **given.get(name, {})) for name, window in windows.items()]
    for method in made:
        method.longest = longest.get(method.name)
    return made


def _forecast(task: str, request: Request, samples: bool) -> None:
    """Say what the run is expected to take; `samples`: they are written too."""
    from sharedllm.evaluate import forecast
    from sharedllm.evaluate.asking import CEILING, CEILING_TOKENS
    from sharedllm.methods import create

    llm, pace = request.llm, forecast.pace_of(request.llm)
    found = list(forecast.expected(request.methods, TASKS[task].jobs(request), pace, request.free))
    besides = [(CEILING, create("full", llm, CEILING_TOKENS), ceiling_jobs(request))] if request.ceiling else []
    besides += [("--write-samples", create("shared", llm, 1), sample_jobs(request))] if samples else []
    for name, method, jobs in besides:
        found += [replace(one, method=name) for one in forecast.expected([method], jobs, pace, request.free)]
    for line in forecast.lines(found):
        common.say(line)


def _write(file: Path | None, samples_of: Callable[[Request], Samples] | None, request: Request) -> None:
    """Write the task's samples where a file for them is named."""
    if file is None or samples_of is None:
        return
    from sharedllm.evaluate.samples import write_samples

    common.say(f"{write_samples(file, samples_of(request))} samples written to {file}")


@contextmanager
def _spread(
    engine: str, request: Request, loading: dict[str, Any], address: str | None, workers: int | None
) -> Iterator[Request]:
    """Let the workers of the engine do the methods' work inside the block; the request, with the memory that they have."""
    if engine == "local":
        yield request
        return
    from sharedllm.evaluate.spread import ray_spread

    with ray_spread(loading, address, workers) as spread:
        for method in request.methods:
            method.spread = spread
        request.results.besides = spread.besides
        yield replace(request, free=spread.free())


def _checked(task: str, methods: str, texts: Sequence[str], data: Path | None) -> list[str]:
    """The methods' names; `UsageError` where one, or the task, is unknown, or what the task reads is not named."""
    from sharedllm.config import check_choice

    check_choice("task", task, TASKS)
    names = common.method_names(methods)
    if TASKS[task].needs_text and not texts:
        raise UsageError(f"{task} takes its passages from texts; name a file or folder with --text.")
    if TASKS[task].needs_data and data is None:
        raise UsageError(f"{task} reads its original files; name the folder that has them with --data.")
    if data is not None and not data.is_dir():
        raise UsageError(f"--data is {data}, which is no folder; name the folder with the benchmark's files.")
    return names


def _given(context: typer.Context) -> list[str]:
    """The options that the user gave, whatever their values."""

    def source(name: str | None) -> str:
        found = context.get_parameter_source(name or "")
        return found.name if found else ""  # by name: typer may have a copy of click's enumeration

    return [option.opts[0] for option in context.command.params if source(option.name) == "COMMANDLINE"]


def _refuse_idle(task: str, given: Sequence[str]) -> None:
    """Raise `UsageError` for an option that would change nothing of this task."""
    for option in given:
        able = ", ".join(name for name, known in TASKS.items() if option in known.takes)
        if able and option not in TASKS[task].takes:
            raise UsageError(f"{option} is for {able}, and does nothing for {task}; leave it out.")
    if {"--stride", "--samples"} <= set(given):
        raise UsageError("--stride takes all passages of the texts, however many; leave out --samples.")


def _check_cross(cross: Path | None, engine: str, names: Sequence[str]) -> None:
    """Raise `UsageError` for weights of encoder-decoder that nothing would use, or no worker could find."""
    if cross is not None and engine != "local":
        raise UsageError("--cross is a folder of this machine; use it with --engine local.")
    if cross is not None and "encoder-decoder" not in names:
        raise UsageError(f"--cross is for encoder-decoder, which is not among the methods {', '.join(names)}.")


def _check_counts(samples: int, targets: int, needles: int, max_new_tokens: int | None, stride: int | None) -> None:
    """Raise `UsageError` for a number that must be positive and is not."""
    counts = {"--samples": samples, "--targets": targets, "--needles-per-text": needles}
    for option, value in {**counts, "--max-new-tokens": max_new_tokens, "--stride": stride}.items():
        common.positive(option, 1 if value is None else value)


def _check_windows(text: str, names: Sequence[str], scored: int) -> None:
    """Raise `UsageError` for a window that --window names and that has no room for the tokens that are scored."""
    named = common.numbers_by_method("--window", text, names) if "=" in text else common.windows(text, names)
    for name, size in named.items():
        if size < scored:
            raise UsageError(
                f"--window is {size:,} for {name}, and the {scored:,} tokens that are scored must stand in it; "
                f"give --targets {size} or less, or a larger window."
            )


def _samples_of(
    task: str, file: Path | None, output: Path, texts: Sequence[str]
) -> Callable[[Request], Samples] | None:
    """What makes the task's samples; `UsageError` where a task without is given a file for them, or one has the results or a
    text that is read."""
    if file is not None and file.resolve() == output.resolve():
        raise UsageError(f"--write-samples would write over the results in {output}; name another file.")
    if (
        file is not None
        and file.exists()
        and any(file.resolve().is_relative_to(Path(text).resolve()) for text in texts)
    ):
        raise UsageError(f"--write-samples would write over {file}, which is read with --text; name another file.")
    if file is not None and TASKS[task].samples is None:
        able = ", ".join(name for name, known in TASKS.items() if known.samples)
        raise UsageError(f"the samples of {task} cannot be written; --write-samples is for {able}.")
    return TASKS[task].samples


def _subtasks(task: str, text: str) -> list[str]:
    """The names given to --tasks, otherwise all the benchmark has; none where that is for the files to say."""
    from sharedllm.config import check_choice

    known = TASKS[task].subtasks()
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names and not known:
        raise UsageError(f"{task} is one task; leave out --tasks.")
    for name in names:
        check_choice("--tasks", name, known)
    return names or ([] if TASKS[task].needs_data else known)
