"""`sharedllm demo`: a short-window LLM reads more than 128K tokens of real text and answers from it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sharedllm.cli import common

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedllm.model import SharedLLM


def demo(
    tokens: Annotated[int, typer.Option("--tokens", help="Read at least so many tokens.")] = 131_072,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Results file; a row is appended.")] = None,
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Read the Python language reference and the library's docstrings, and answer ten questions from them."""
    from sharedllm.evaluate.results import Results, append_row

    common.positive("--tokens", tokens)
    Results(output)  # which refuses a file that cannot have rows, before anything is read
    started = time.perf_counter()
    llm = common.load(model, adapter, device, dtype)
    from sharedllm import demo as shown
    from sharedllm.evaluate.row import machine
    from sharedllm.methods.estimate import cache_bytes

    say: Callable[[str], None] = common.say if as_json else print
    say(
        f"{llm.name}: {llm.window:,} positions, {len(llm.parts.layers)} layers, adapter {llm.adapter}, {llm.dtype}, on {llm.device}"
    )
    text = shown.reference_text(lambda part: len(llm.reader.token_ids(part)), tokens)
    reading = time.perf_counter()
    with common.reading_bar() as progress:
        context = llm.read(text, progress)
        llm.reader.encode(context, progress)  # what fits the window is only tokenised so far
    encode_seconds = time.perf_counter() - reading
    full = cache_bytes(llm, context.tokens)
    figures: dict[str, Any] = {
        "task": "demo",
        "context_tokens": context.tokens,
        "window": llm.window,
        "chunks": context.chunks,
        "bytes_kept": context.nbytes,
        "bytes_full_cache": full,
        "encode_seconds": round(encode_seconds, 1),
        "tokens_a_second": round(context.tokens / encode_seconds, 1),
    }
    say(
        f"\nread {context.tokens:,} tokens in {encode_seconds:.0f} s ({figures['tokens_a_second']:,.0f} tokens/s), "
        f"{context.tokens / llm.window:.0f} times the window\n"
        f"kept {context.nbytes / 1e6:,.0f} MB for any later question; the full key/value cache would take {full / 1e6:,.0f} MB"
    )
    figures |= shown.deep_passages(llm, context)
    say(_deep(figures))
    figures["questions"] = shown.ask_all(llm, context, say)
    figures |= _attended(llm, max(q["slots"] for q in figures["questions"]))
    figures |= machine(llm) | {"total_seconds": round(time.perf_counter() - started, 1)}
    row = {"method": "shared", "length": context.tokens, "metric": "nll_gain", "value": figures["nll_gain"]}
    figures |= row | {"samples": figures["passages"], "seconds": figures["total_seconds"], "seed": 0}
    say(_closing(figures))
    if output is not None:
        append_row(output, figures)
    if as_json:
        common.print_json(figures)


def _deep(figures: dict[str, Any]) -> str:
    low, high = figures["nll_gain_low"], figures["nll_gain_high"]
    if low > 0:
        verdict = "the context helps"
    elif high < 0:
        verdict = "the context HARMS: this adapter is not good enough"
    else:
        verdict = "weak: the difference is not clear of zero"
    return (
        f"\n{figures['passages']} passages deep in the text: {figures['nll_without']:.3f} nats a token without the context, "
        f"{figures['nll_with']:.3f} with it\n   gain {figures['nll_gain']:.3f} [{low:.3f}, {high:.3f}]: {verdict}"
    )


def _attended(llm: SharedLLM, slots: int) -> dict[str, Any]:
    """What one question attends to of the text: slots in the injected layers, and the passages quoted before it in all."""
    from sharedllm.methods.estimate import attended_bytes, cache_bytes

    quoted = llm.config.quoted_tokens
    return {
        "slots": slots,
        "bytes_one_question": attended_bytes(llm, slots),
        "quoted_tokens": quoted,
        "bytes_quoted": cache_bytes(llm, quoted),
    }


def _closing(figures: dict[str, Any]) -> str:
    right = sum(q["right"] for q in figures["questions"])
    asked = len(figures["questions"])
    search = sum(q["search_seconds"] for q in figures["questions"]) / asked
    generate = sum(q["generate_seconds"] for q in figures["questions"]) / asked
    weak = "" if right == asked else " A model this small with an adapter this young answers loosely: weak."
    return (
        f"\n{right} of {asked} answers have the expected word.{weak}\n"
        f"reading {figures['encode_seconds']:.0f} s, searching {search:.2f} s and generating {generate:.1f} s a question, "
        f"attending to {figures['slots']:,} slots a layer ({figures['bytes_one_question'] / 1e6:,.0f} MB) and "
        f"{figures['quoted_tokens']} quoted tokens ({figures['bytes_quoted'] / 1e6:,.0f} MB)\n"
        f"peak memory {figures['peak_memory_bytes'] / 1e6:,.0f} MB, {figures['total_seconds']:.0f} s in all"
    )
