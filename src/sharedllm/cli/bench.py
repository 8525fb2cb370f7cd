"""`sharedllm bench`: time and memory of several methods on the same text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sharedllm.cli import common, given

if TYPE_CHECKING:
    from sharedllm.evaluate.results import Results
    from sharedllm.evaluate.speed.apart import Loading
    from sharedllm.evaluate.speed.longest import Longest
    from sharedllm.evaluate.speed.memory import Memory
    from sharedllm.evaluate.speed.phases import Sample
    from sharedllm.methods import Method
    from sharedllm.model import SharedLLM
    from sharedllm.prompts import Prompt

QUESTION = "What is this text about?"
PHASES = ("tokenise", "read", "search", "first_token", "per_token", "per_token_alone")
HEADER = ("tokenise", "read", "search", "first", "a token", "alone")


TextOption = Annotated[
    list[str] | None, typer.Option("--text", help="A file or folder to read; else Python's own documentation.")
]
WindowOption = Annotated[
    str, typer.Option("--window", help="Newest tokens the model sees itself; by method: streaming=512,truncate=8192.")
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        "--against",
        help="Methods that the others are compared with, separated by commas [default: full, if it is there]",
    ),
]
BudgetOption = Annotated[
    float, typer.Option("--budget", help="Seconds one measurement may take, as shorter lengths let expect.")
]
LongestOption = Annotated[
    int | None, typer.Option("--longest", help="Also let shared read a text of this many tokens once, and answer.")
]
MemoryOption = Annotated[
    bool, typer.Option("--memory/--no-memory", help="Measure memory too, in a process of its own each time.")
]


def bench(
    output: Annotated[Path, typer.Option("-o", "--output", help="Results file; rows are appended.")],
    methods: Annotated[str, typer.Option("--methods", help="Methods, separated by commas.")] = "shared,truncate,full",
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens of the text, separated by commas.")] = "2048,8192",
    text: TextOption = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Measurements of each method and length.")] = 3,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Tokens of an answer, at least 2.")] = 16,
    window: WindowOption = "1024",
    against: AgainstOption = None,
    budget: BudgetOption = 600.0,
    longest: LongestOption = None,
    memory: MemoryOption = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything, also what the results file has.")] = False,
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    seed: common.SeedOption = 0,
    as_json: common.JsonOption = False,
) -> None:
    """Measure time by phase and memory by part; the methods take turns, round by round. Rows go to a results file."""
    names = common.method_names(methods)
    windows, others = common.windows(window, names), _against(against, names)
    wanted = common.positive_numbers("--lengths", lengths)
    common.positive("--rounds", rounds)
    _check(new_tokens, budget, longest, names)
    given.check_output(output, text or [])
    llm = common.load(model, adapter, device, dtype, seed)
    from sharedllm.evaluate.speed import floor
    from sharedllm.evaluate.speed.apart import Loading
    from sharedllm.evaluate.speed.phases import clock
    from sharedllm.evaluate.speed.run import Bench
    from sharedllm.hardware import free_memory_bytes
    from sharedllm.methods import create
    from sharedllm.prompts import Prompt

    prompt = Prompt(llm.tokenizer, QUESTION)
    peak, read_longest = _apart(Loading(model, adapter, device, dtype), prompt, new_tokens)
    asked = Bench(
        llm=llm,
        methods=[create(name, llm, windows[name]) for name in names],
        sample=_samples(llm, text or [], max(*wanted, longest or 0), output),
        prompt=prompt,
        rounds=rounds,
        new_tokens=new_tokens,
        against=others,
        seed=seed,
        budget=budget,
        free=free_memory_bytes(llm.device),
        peak=peak if memory else None,
        rates=cache(lambda: floor.rates(llm.device, llm.dtype, clock(llm.device))),
        longest=(longest, read_longest) if longest else None,
        say=common.say,
        results=_results(output, llm, seed, fresh),
    )
    row: dict[str, Any] = {}
    for row in asked.rows(wanted):
        if not as_json:
            print("\n".join(shown(row)), flush=True)
    if as_json:
        common.print_json({"results": str(output), "last": row})


def _results(output: Path, llm: SharedLLM, seed: int, fresh: bool) -> Results:
    """The file that rows go to; those of another processor are not taken for known."""
    from sharedllm.evaluate.results import Results
    from sharedllm.evaluate.row import versions
    from sharedllm.hardware import processor_name

    here = {"processor": processor_name(llm.device)}
    return Results(output, common.depends_on("bench", llm, seed), fresh, common.say, same=here, versions=versions())


def _check(new_tokens: int, budget: float, longest: int | None, names: Sequence[str]) -> None:
    """Raise `UsageError` for a number that makes no sense."""
    from sharedllm.errors import UsageError

    if new_tokens < 2:
        raise UsageError(
            f"--new-tokens is {new_tokens}; it must be at least 2, for the time of a token after the first."
        )
    if not budget > 0:
        raise UsageError(f"--budget is {budget:g}; it must be above 0 seconds.")
    if longest is not None:
        from sharedllm.evaluate.speed.limits import COMPRESSING

        common.positive("--longest", longest)
        if not set(COMPRESSING) & set(names):
            raise UsageError(f"--longest is for shared, which is not among the methods {', '.join(names)}.")


def _against(against: str | None, names: Sequence[str]) -> list[str]:
    """The methods that others are compared with; `UsageError` for one that is not measured."""
    from sharedllm.errors import UsageError

    if against is None:
        return ["full"] if "full" in names and len(names) > 1 else []
    others = [name.strip() for name in against.split(",") if name.strip()]
    for name in others:
        if name not in names:
            raise UsageError(f"--against is {name!r}, which is not among the methods {', '.join(names)}.")
    return others


def _apart(
    loading: Loading, prompt: Prompt, new_tokens: int
) -> tuple[Callable[[Method, Sample], Memory], Callable[[Method, Sample], Longest]]:
    """What measures memory and the longest text, each in a process of its own."""
    from sharedllm.evaluate.speed import longest, memory
    from sharedllm.evaluate.speed.apart import measure_apart

    def peak(method: Method, sample: Sample) -> Memory:
        return memory.Memory(**measure_apart(memory.MODULE, loading, method, sample.ids, prompt, new_tokens))

    def read_longest(method: Method, sample: Sample) -> Longest:
        return longest.Longest(**measure_apart(longest.MODULE, loading, method, sample.ids, prompt, new_tokens))

    return peak, read_longest


def _samples(llm: SharedLLM, texts: list[str], longest: int, output: Path) -> Callable[[int], Sample]:
    """A function from a length to the beginning of the text of so many tokens; a short text is repeated."""
    from sharedllm.demo import reference_text
    from sharedllm.evaluate.speed.phases import Sample

    if texts:
        text = given.text_of(texts, output=output)
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
    if row["metric"] == "longest_context_tokens":
        peak = f"{row['peak_memory_bytes'] / 2**30:.1f} of {row['allowed_bytes'] / 2**30:.0f} GiB"
        return [f"{what} {row['value']:,} read in {row['read_seconds']:,.1f} s, {peak}{_goal(row)}"]
    if row["metric"] == "reading_memory_bytes":
        return [f"{what} {row['value'] / 1e6:,.1f} MB beyond the model and what is kept{_goal(row)}"]
    figures = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    if row["metric"] == "seconds_to_first_token":
        bare = f"; bare read {row['bare_read_seconds']:.3f}" if "bare_read_seconds" in row else ""
        phases = zip(HEADER, PHASES, strict=True)
        floor = f"; floor {row['floor_seconds']:.3f}" if "floor_seconds" in row else ""
        times = ", ".join(f"{n} {row[f'{p}_seconds']:.3f}" for n, p in phases)
        return [f"{what} {figures}", f"    {times}{bare}{floor}"]
    return [f"{what} {figures}{_sides(row)}{_goal(row)}"]


def _sides(row: dict[str, Any]) -> str:
    """Both sides of a ratio."""
    if row["unit"] == "bytes":
        return f"; {row['ours'] / 1e6:,.1f} MB, other {row['other'] / 1e6:,.1f} MB"
    return f"; {row['ours']:.3f} s, other {row['other']:.3f} s"


def _goal(row: dict[str, Any]) -> str:
    return f"; goal {row['goal']}: {'met' if row['met'] else 'missed'}" if "goal" in row else ""
