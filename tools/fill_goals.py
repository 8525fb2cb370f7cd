"""Writes docs/results/goals.md from the rows that `make goals` left: run `python tools/fill_goals.py`.

A row says itself what the goal is and whether it was met; here is only which row answers which goal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharedllm.evaluate.results import read_rows

DOCS = Path(__file__).parent.parent / "docs"
ROWS, PAGE = DOCS / "results" / "bench.jsonl", DOCS / "results" / "goals.md"
MEASURED, COUNTED = DOCS / "results" / "adapter.jsonl", DOCS / "results" / "scale.jsonl"
TO_FIRST, READING, LONGEST, BREAK_EVEN = (
    "seconds_to_first_token",
    "reading_memory_bytes",
    "longest_context_tokens",
    "break_even_tokens",
)
SAME = ("model", "adapter", "dtype", "device", "processor", "threads")
APART = ", both sides in separate runs"
ONE_ROUND = ", one round"
PLAINLY = "In `bench`, which compresses any text (`ask` reads as the plain model does what fits its 8,192 positions)"
RATIOS = ("first_token", "second_question", "full_cache", "per_token")
K = 1024


@dataclass(frozen=True)
class Asked:
    """What is asked, and which rows of a method answer: a metric at lengths from `low` to `high`, the worst of them. `number` is the
    goal's; None where there is none."""

    number: int | None
    what: str
    metric: str
    low: int = 0
    high: int = 10**9
    against: str | None = None
    method: str = "shared"


GOALS = (
    Asked(1, "Reading 16K to 128K tokens, the worst length; other: the same layers alone on the same batches", "read_speed_over_bare", 16 * K, 128 * K),
    Asked(2, "To the first token at 32K; other: `full`", "first_token_speed_over_full", 32 * K, 32 * K),
    Asked(3, "To the first token at 32K; other: `streaming`", "first_token_speed_over_streaming", 32 * K, 32 * K),
    Asked(3, "To the first token at 32K; other: `encoder-decoder`", "first_token_speed_over_encoder-decoder", 32 * K, 32 * K),
    Asked(4, "A context token at 128K, for one question; other: full key/value cache", "full_cache_over_attended", 128 * K, 128 * K),
    Asked(4, "A context token at 128K, kept for any question, at 4 bits a number; other: full key/value cache at 16", "full_cache_over_kept", 128 * K, 128 * K),
    Asked(4, "The same of a compact context, which reads a chunk again for each question", "full_cache_over_kept", 128 * K, 128 * K, method="shared-compact"),
    Asked(5, "Decoding a token with 128K of context; other: with none", "per_token_over_alone", 128 * K, 128 * K),
    Asked(6, "A second question at 128K; other: the first", "second_over_first", 128 * K, 128 * K),
    Asked(6, "The same of a compact context", "second_over_first", 128 * K, 128 * K, method="shared-compact"),
    Asked(None, "A further question at 8K; other: `full`, whose cache is kept", "second_question_speed_over_full", 8 * K, 8 * K),
    Asked(None, "A further question at 8K; other: `streaming`", "second_question_speed_over_streaming", 8 * K, 8 * K),
    Asked(None, "A further question at 8K; other: `encoder-decoder`", "second_question_speed_over_encoder-decoder", 8 * K, 8 * K),
    Asked(None, "A further question at 32K; other: `full`, whose cache is kept", "second_question_speed_over_full", 32 * K, 32 * K),
    Asked(None, "A further question at 32K; other: `streaming`", "second_question_speed_over_streaming", 32 * K, 32 * K),
    Asked(None, "A further question at 32K; other: `encoder-decoder`", "second_question_speed_over_encoder-decoder", 32 * K, 32 * K),
    Asked(7, "Peak of memory beyond the model while 128K are read; other: what is kept of it", READING, 128 * K, 128 * K),
    Asked(7, "What of it is not kept, longest text measured; other: shortest", "reading_memory_growth", 128 * K, 128 * K),
    Asked(8, "Longest text, read to its end, asked and answered; other: memory allowed", LONGEST),
    Asked(9, f"{PLAINLY}: faster than `full` to the first token from", BREAK_EVEN, against="full"),
)  # fmt: skip


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The page of what is measured so far."""
    rows = same_setting(rows)
    parts = [
        "# Goals of speed and size",
        "`make goals` measures them and makes this page. Goal 1 compares with the lowest layers run to their end: of the top one reading needs "
        "no more than keys and values, and so can be the faster.",
        about(rows),
        goals_table(rows),
        "![Seconds to the first token and memory against length, with the floor of each.](../figures/goals.png)",
        *floor_section(rows),
        *counted_section(),
    ]
    return "\n\n".join(parts) + "\n"


def same_setting(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of our method with the model and the machine's settings of the last one."""
    ours = [row for row in rows if row["method"] in ("shared", "shared-compact")]
    return [row for row in ours if all(row[name] == ours[-1][name] for name in SAME)]


def about(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return "Nothing measured yet."
    row = rows[-1]
    machine = f"on {row['device']} ({row['processor']}) with {row['threads']} threads"
    said = f"Model {row['model']}, adapter {row['adapter']}, {row['dtype']}, {machine}."
    shown_rows = [found for asked in GOALS if (found := answer(rows, asked)) is not None]
    if before := of_other_weights(shown_rows):
        said += f" {before}: its sizes are the same, so that reading, keeping and attending cost the same."
    return said


def of_other_weights(rows: Sequence[dict[str, Any]]) -> str:
    """Says that rows of our method were measured with weights of the shipped adapter's name that ship no longer; nothing where
    none was. Which weights ship is what the rows of `make measure` say."""
    last = [row for row in read_rows(MEASURED) if row["method"] == "shared"][-1:]
    if not last:
        return ""
    named = [row for row in rows if row["value"] is not None and row["adapter"] == last[0]["adapter"]]
    other = [row for row in named if row.get("adapter_weights") != last[0]["adapter_weights"]]
    how = "Measured" if len(other) == len(named) else "Partly measured"
    return f"{how} with an earlier adapter of that name" if other else ""


def goals_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a goal; below it why some have no figure."""
    lines = ["| | what | ours | other | ratio | goal | met? |", "| --- " * 7 + "|"]
    reasons = []
    for asked in GOALS:
        row = answer(rows, asked)
        if row is None:
            cells = ["not measured", "", "", "", ""]
        elif row["value"] is None:
            cells = ["–", "", "", "", ""]
            reasons.append(f"- {asked.number or '–'}, {asked.what}: {row['reason']}.")
        else:
            cells = shown(row)
        lines.append(f"| {asked.number or '–'} | {asked.what} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


SHORT = (
    "Reading: share of the speed of its layers alone",
    "First token after 32K, sooner than with full attention",
    "The same, sooner than with streaming",
    "The same, sooner than with an encoder-decoder",
    "What one question attends to at 128K, smaller than the full cache",
    "What is kept for any question (4 bits a number), smaller than the full cache (16 bits)",
    "The same of a compact context",
    "A token of an answer with 128K of text, slower than with none",
    "A second question at 128K: share of the time of the first",
    "The same of a compact context",
    "A further question at 8K, sooner than with full attention, whose cache is kept",
    None,
    None,
    "The same at 32K",
    "At 32K, sooner than with streaming",
    "At 32K, sooner than with an encoder-decoder",
    "Memory of reading 128K, beyond what is kept",
    None,
    "Longest text read to its end, asked and answered",
    f"{PLAINLY}: sooner than full attention from",
)
"""The goals as the README says them, in the order of `GOALS`; None: left to the page."""


def short_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a goal: measured, goal, whether it is met."""
    rows, lines = same_setting(rows), ["| | measured | goal | |", "| --- | --- | --- | --- |"]
    for asked, said in zip(GOALS, SHORT, strict=True):
        row = answer(rows, asked)
        if said is None:
            continue
        if row is None or row["value"] is None:
            lines.append(f"| {said} | not measured | | |")
            continue
        ours, _, ratio, goal, met = shown(row)
        times = " times" if asked.metric.startswith(RATIOS) else ""
        said_of_it = "".join(words for words in (ONE_ROUND, APART) if words in ratio)
        figure = ratio.removesuffix(said_of_it).removesuffix(" more") + times + said_of_it if ratio else ours
        lines.append(f"| {said} | {figure} | {goal} | {met} |")
    return "\n".join(lines)


def best(rows: Sequence[dict[str, Any]], metric: str, length: int) -> dict[str, Any] | None:
    """The last of our rows with a value and the most rounds; None where there is none."""
    found = [row for row in rows if (row["method"], row["metric"], row["length"]) == ("shared", metric, length)]
    measured = [row for row in reversed(found) if row["value"] is not None]
    return max(measured, key=lambda row: row["samples"], default=None)


def answer(rows: Sequence[dict[str, Any]], asked: Asked) -> dict[str, Any] | None:
    """The row that answers; of a length the last of those with a value and the most rounds, of several lengths the one furthest
    from the goal."""
    found: dict[int, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["value"] is not None, row["samples"])):
        if row["metric"] == asked.metric and asked.low <= row["length"] <= asked.high:
            if asked.method == row["method"] and asked.against in (None, row.get("against")):
                found[row["length"]] = row
    if asked.metric == LONGEST:
        return found[max(found)] if found else None
    if asked.metric == BREAK_EVEN:  # the crossing if one was seen, else what says the most of short texts
        return max(
            found.values(), key=lambda row: (row["value"] is not None, -min(row["lengths"], default=0)), default=None
        )
    measured = [row for row in found.values() if row["value"] is not None]
    if not measured:
        return next(iter(found.values()), None)
    worst: Callable[..., dict[str, Any]] = min if measured[0].get("goal", "at least").startswith("at least") else max
    return worst(measured, key=lambda row: row["value"])


def shown(row: dict[str, Any]) -> list[str]:
    """Ours, other, ratio, goal and whether it is met."""
    if row["metric"] == BREAK_EVEN:
        return [f"{row['value']:,.0f} tokens", "", "", "", ""]
    verdict = [row["goal"], "met" if row["met"] else "missed"] if "goal" in row else ["", ""]
    if row["metric"] == LONGEST:
        ours = f"{row['value']:,} tokens in {row['read_seconds']:,.0f} s, {row['peak_memory_bytes'] / 2**30:.1f} GiB"
        return [ours, f"{row['allowed_bytes'] / 2**30:.0f} GiB", "", *verdict]
    ratio = f"{row['value']:.3g}" if round(row["value"], 2) != 1 else "1.00"
    if row["metric"] == READING:  # a difference, not a ratio
        bound, number = row["goal"].removesuffix(" bytes").rsplit(" ", 1)
        verdict[0] = f"{bound} {megabytes(float(number.replace(',', '')))}"
        ratio = f"{megabytes(row['value'])} more"
    elif row["samples"] > 1:
        ratio += f" [{row['low']:.3g}, {row['high']:.3g}]"
    elif row["unit"] == "s":
        ratio += ONE_ROUND
    ratio += APART if row.get("separate_runs") else ""
    return [side(row, row["ours"]), side(row, row["other"]), ratio, *verdict]


def side(row: dict[str, Any], value: float) -> str:
    """One side of a ratio; what is kept is said by token of the text."""
    if row["unit"] == "s":
        return f"{value:.3g} s"
    if row["metric"].startswith("full_cache"):
        return f"{value / row['length']:,.0f} bytes"
    return megabytes(value)


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB"


def floor_section(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What reading took beside what it cannot be faster than."""
    timed = {
        row["length"]: row
        for row in sorted(rows, key=lambda row: row["samples"])  # of the most rounds, and of those the last
        if row["method"] == "shared" and row["metric"] == TO_FIRST and row.get("floor_seconds")
    }
    if not timed:
        return []
    lines = [
        "| tokens | read | the layers alone | floor | multiply-adds | weights read | rates |",
        "| --- " * 7 + "|",
    ]
    for length, row in sorted(timed.items()):
        reached = f"{row['multiply_adds_a_second'] / 1e9:,.0f} G/s, {row['bytes_a_second'] / 1e9:,.1f} GB/s"
        lines.append(
            f"| {length:,} | {row['read_seconds']:.3g} s | {row['bare_read_seconds']:.3g} s | {row['floor_seconds']:.3g} s | "
            f"{row['multiply_adds'] / 1e12:.3g} T | {row['weight_bytes_read'] / 1e9:.3g} GB | {reached} |"
        )
    said = (
        "Multiply-adds and bytes of weights are counted for the lowest layers; the floor is the longer of the two at the rates that a large matrix "
        "product and a large copy reached in the same run."
    )
    return ["## The floor of reading", said, "\n".join(lines)]


def counted_section() -> list[str]:
    """The floors of goals 3 and 5: operations and bytes that docs/SCALE.md counts of the default model at 128K."""
    counted = [row for row in read_rows(COUNTED) if row["task"] == "scale" and row["length"] == 128 * K]
    by_method = {row["method"]: row for row in counted if row["model"] == counted[0]["model"]}
    if not {"shared", "full", "encoder-decoder"} <= set(by_method):
        return []
    ours, other, full = (by_method[name] for name in ("shared", "encoder-decoder", "full"))
    alone = full["token_bytes"] - full["attended_bytes"]  # weights alone
    said = (
        f"Reading 128K takes an encoder-decoder {other['read_operations'] / 1e12:.1f} T operations and ours {ours['read_operations'] / 1e12:.1f} T, "
        f"{other['read_operations'] / ours['read_operations']:.2f} times (goal 3). A token of an answer reads {ours['token_bytes'] / 1e6:.0f} MB with a "
        f"context, of slots, branches and the model, and {alone / 1e6:.0f} MB without, {ours['token_bytes'] / alone:.2f} times (goal 5). What is kept (goal "
        "4) is measured to the byte as it is counted. The counts are those of [SCALE.md](../SCALE.md)."
    )
    return ["## What is counted", said]


if __name__ == "__main__":
    PAGE.write_text(page(read_rows(ROWS)), encoding="utf-8")
