"""`sharedllm bench`: time and memory of several methods on the same text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sharedllm.cli import common

if TYPE_CHECKING:
    from sharedllm.evaluate.speed.phases import Sample
    from sharedllm.model import SharedLLM

QUESTION = "What is this text about?"
PHASES = ("tokenise", "read", "search", "first_token", "per_token", "per_token_alone")
HEADER = ("tokenise", "read", "search", "first", "a token", "alone")


def bench(
    output: Annotated[Path, typer.Option("-o", "--output", help="Results file; rows are appended.")],
    methods: Annotated[str, typer.Option("--methods", help="Methods, separated by commas.")] = "shared,truncate,full",
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens of the text, separated by commas.")] = "2048,8192",
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A file or folder to read; else Python's own documentation.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Measurements of each method and length.")] = 3,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Tokens of an answer, at least 2.")] = 16,
    window: Annotated[
        str,
        typer.Option("--window", help="Newest tokens the model sees itself; by method: streaming=512,truncate=8192."),
    ] = "1024",
    against: Annotated[
        str | None, typer.Option("--against", help="The method that others are compared with; full, if it is there.")
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", help="Seconds one measurement may take, as shorter lengths let expect.")
    ] = 600.0,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure memory too, in a process of its own each time.")
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything, also what the results file has.")] = False,
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    seed: common.SeedOption = 0,
    as_json: common.JsonOption = False,
) -> None:
    """Measure time by phase and memory by part; the methods take turns, round by round. Rows go to a results file."""
    from sharedllm.errors import UsageError

    names = common.method_names(methods)
    windows = common.windows(window, names)
    wanted = common.positive_numbers("--lengths", lengths)
    common.positive("--rounds", rounds)
    if new_tokens < 2:
        raise UsageError(
            f"--new-tokens is {new_tokens}; it must be at least 2, for the time of a token after the first."
        )
    if not budget > 0:
        raise UsageError(f"--budget is {budget:g}; it must be above 0 seconds.")
    if against is not None and against not in names:
        raise UsageError(f"--against is {against!r}, which is not among the methods {', '.join(names)}.")
    llm = common.load(model, adapter, device, dtype, seed)
    from sharedllm.evaluate.results import Results
    from sharedllm.evaluate.speed.memory import Loading, measure_apart
    from sharedllm.evaluate.speed.run import Bench
    from sharedllm.hardware import free_memory_bytes
    from sharedllm.methods import create
    from sharedllm.prompts import Prompt

    prompt, loading = Prompt(llm.tokenizer, QUESTION), Loading(model, adapter, device, dtype)
    asked = Bench(
        llm=llm,
        methods=[create(name, llm, windows[name]) for name in names],
        sample=_samples(llm, text or [], max(wanted)),
        prompt=prompt,
        rounds=rounds,
        new_tokens=new_tokens,
        against=against or ("full" if "full" in names and len(names) > 1 else None),
        seed=seed,
        budget=budget,
        free=free_memory_bytes(llm.device),
        peak=(lambda method, sample: measure_apart(loading, method, sample.ids, prompt, new_tokens))
        if memory
        else None,
        say=common.say,
        results=Results(output, common.depends_on("bench", llm, seed), fresh, common.say),
    )
    row: dict[str, Any] = {}
    for row in asked.rows(wanted):
        if not as_json:
            print("\n".join(shown(row)), flush=True)
    if as_json:
        common.print_json({"results": str(output), "last": row})


def _samples(llm: SharedLLM, texts: list[str], longest: int) -> Callable[[int], Sample]:
    """A function from a length to the beginning of the text of so many tokens; a short text is repeated."""
    from sharedllm.demo import reference_text
    from sharedllm.evaluate.speed.phases import Sample

    if texts:
        text = common.text_of(texts)
    else:
        text = reference_text(lambda part: len(llm.reader.token_ids(part)), longest)
    ids = llm.reader.token_ids(text).long()
    if len(ids) < longest:
        common.say(f"the text has {len(ids):,} tokens and is repeated up to {longest:,}")
        ids = ids.repeat(-(-longest // len(ids)))

    def sample(length: int) -> Sample:
        return Sample(llm.tokenizer.decode(ids[:length]), ids[:length])

    return sample


def shown(row: dict[str, Any]) -> list[str]:
    """A row as a person reads it."""
    what = f"{row['method']:<16} {row['length']:>8,}  {row['metric']:<34}"
    if "reason" in row:
        return [f"{what} none: {row['reason']}"]
    if row["metric"] == "working_peak_bytes":
        parts = ("weights", "added_weights", "kept", "attended")
        sizes = ", ".join(f"{part.replace('_', ' ')} {row[f'{part}_bytes'] / 1e6:,.1f}" for part in parts)
        return [f"{what} {row['value'] / 1e6:,.1f} MB ({sizes})"]
    if row["metric"] == "break_even_tokens":
        return [f"{what} faster than {row['against']} from {row['value']:,.0f} tokens"]
    figures = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    if row["metric"] == "seconds_to_first_token":
        bare = f"; bare read {row['bare_read_seconds']:.3f}" if "bare_read_seconds" in row else ""
        phases = zip(HEADER, PHASES, strict=True)
        return [f"{what} {figures}", "    " + ", ".join(f"{n} {row[f'{p}_seconds']:.3f}" for n, p in phases) + bare]
    return [f"{what} {figures}" + (f"; goal {row['goal']}" if "goal" in row else "")]
