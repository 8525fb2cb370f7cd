"""Writes the measured parts of README.md, the adapter's card and two pages of docs/ from docs/results: run `python tools/fill_readme.py`.

Numbers have one home, the results files; a test says when the README is behind them.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from adapter_tables import best_use, by_length, by_text, in_warm_windows, needles, questions, written
from fill_goals import K, best, same_setting, short_table
from fill_report import earlier_weights
from ray_table import ray_block, search_block
from serving_table import load_block

from sharedllm.evaluate.results import PLAIN

DOCS = Path(__file__).parent.parent / "docs"
README = DOCS.parent / "README.md"
SOONER = 1.05
"""A ratio of speeds from which on the one is said to be sooner than the other."""
UNIT = ("metric", "method", "length", "sources", "starts")
PAGES = (DOCS / "SERVE.md", DOCS / "distributed/ray.md")
CARD = DOCS.parent / "src/sharedllm/adapters/smollm2-135m-instruct/README.md"


def rows(name: str) -> list[dict[str, Any]]:
    file = DOCS / "results" / name
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def demo_block() -> str:
    found = rows("demo.jsonl")
    if not found:
        return "Not measured yet."
    row = found[-1]
    per = {
        k: sum(q[k] for q in row["questions"]) / len(row["questions"]) for k in ("search_seconds", "generate_seconds")
    }
    lines = [
        "| | |",
        "| --- | --- |",
        f"| read | {row['context_tokens']:,} tokens, {row['context_tokens'] / row['window']:.0f} times the model's window, in {row['encode_seconds']:.0f} s ({row['tokens_a_second']:,.0f} tokens/s, {row['dtype']}) |",
        f"| kept for any later question | {row['bytes_kept'] / 1e6:,.0f} MB; the model's full key/value cache would take {row['bytes_full_cache'] / 1e6:,.0f} MB |",
        f"| attended to for one question | {row['slots']:,} slots a layer, {row['bytes_one_question'] / 1e6:,.0f} MB, and {row['quoted_tokens']} quoted tokens, {row['bytes_quoted'] / 1e6:,.0f} MB |",
        f"| {row['passages']} passages deep in the text | {row['nll_without']:.3f} nats a token without the context, {row['nll_with']:.3f} with it: gain {row['nll_gain']:.3f} [{row['nll_gain_low']:.3f}, {row['nll_gain_high']:.3f}] |",
        f"| a question | {per['search_seconds']:.2f} s to search, {per['generate_seconds']:.1f} s to generate |",
        f"| peak memory, all of it | {row['peak_memory_bytes'] / 1e6:,.0f} MB (torch and the model included) |",
        "",
    ]
    for q in row["questions"]:
        verdict = "right" if q["right"] else "wrong: expected " + " or ".join(q["expected"])
        lines.append(f"- **{q['question']}** {' '.join(q['answer'].split())} *({verdict})*")
    return "\n".join(lines)


def last_adapter() -> list[dict[str, Any]]:
    """Rows of the adapter that the last row of `shared` is of, as far as rows say whose weights they are of, and of the model
    alone; of what was measured again the last."""
    found = rows("adapter.jsonl")
    said = [r["adapter_weights"] for r in found if r["method"] == "shared" and "adapter_weights" in r]
    last: dict[str, dict[str, Any]] = {}
    for r in (r for r in found if r["value"] is not None):
        if not said or r["method"] in PLAIN or r.get("adapter_weights") == said[-1]:
            seen = ("window", "targets") if "targets" in r else ()  # of an answer it is only what was used
            unit = json.dumps([r.get(name) for name in (*UNIT, *seen)])
            last.pop(unit, None)
            last[unit] = r
    return list(last.values())


def adapter_block() -> str:
    """Tables of the shipped adapter: by kind of text, by length, with a large window, retrieval."""
    found = last_adapter()
    blocks = [
        by_text(found),
        in_warm_windows(found),
        by_length(found),
        best_use(found),
        needles(found),
        questions(found),
        written(found),
    ]
    return "\n\n".join(block for block in blocks if block) or "Not measured yet."


def no_harm() -> str:
    """What the adapter changes where it is not wanted."""
    found = rows("no-harm.jsonl")
    if not found:
        return ""
    row = found[-1]
    changed = max(row["largest_difference_of_logits"], row["largest_difference_after_detach"])
    return (
        f"**Where there is nothing to attend to.** With no context, or with a text that fits the window, the model is the plain one: logits of {row['tokens']} tokens of "
        f"{row['answers']} texts differ by {changed:g} at most, also once the adapter is taken off, and {row['answers_equal']} of {row['answers']} answers are the same ([row](docs/results/no-harm.jsonl))."
    )


def headline() -> str:
    """What a reader should know first, in one paragraph."""
    asked = {r["method"]: r for r in last_adapter() if r["metric"] == "answered"}
    timed = same_setting(rows("bench.jsonl"))
    first, again = (
        [best(timed, f"{which}_speed_over_full", n) for n in (8 * K, 32 * K)]
        for which in ("first_token", "second_question")
    )
    if not {"shared", "retrieval", "passage"} <= set(asked) or None in (*first, *again):
        return "Not measured yet."
    ours, found, right = (f"{100 * asked[m]['value']:.0f} %" for m in ("shared", "retrieval", "passage"))
    at_8k, at_32k = first
    return (
        f"Measured with the default model of 135 million weights on two cores: of {asked['shared']['samples']} questions written by hand about "
        f"{asked['shared']['length']:,} tokens **{ours}** are answered; {found} where the same passages are retrieved as text and nothing is compressed, "
        f"{right} where the plain model is shown the right 1,024 tokens. The first token of an answer comes **{at_32k['value']:.1f} times sooner** than with full "
        f"attention about 32,768 tokens (too many for this model to make sense of with it{one_round(at_32k)}), and **{at_8k['value']:.1f} times** about 8,192, "
        f"its own positions{one_round(at_8k)}. {further_question(*again)} [What falls short](#what-works-and-what-does-not-yet)."
    )


def one_round(row: dict[str, Any], mark: str = ";") -> str:
    """What is said behind the figure of a row that was measured once."""
    return "" if row["samples"] > 1 else f"{mark} one round"


def further_question(*over_full: dict[str, Any]) -> str:
    """When a further question on a text starts, of rows that hold it against full attention."""
    later = all(row["value"] < SOONER for row in over_full)
    said = [
        f"{row['ours']:.2f} s against {row['other']:.2f} s about {row['length']:,} tokens{one_round(row, ',')}"
        for row in over_full
    ]
    beside = "starts no sooner than with" if later else "against one with"
    return f"A further question {beside} full attention, whose cache is kept: {' and '.join(said)}."


def before() -> str:
    """What it needs, and what to expect of it."""
    demo, asked = rows("demo.jsonl")[-1:], [r for r in last_adapter() if r["metric"] == "answered"]
    ours = [r for r in asked if r["method"] == "shared"]
    if not (demo and ours):
        return "Not measured yet."
    row, answers = demo[0], ours[-1]
    return (
        f"**Before you start.** Python 3.11 or later, 3 GB of disk and {math.ceil(row['peak_memory_bytes'] / 1e9)} GB of memory. Two cores read about "
        f"{round(row['tokens_a_second'], -1):,.0f} tokens a second: {row['context_tokens'] / 1000:.0f} thousand tokens, some 300 pages, take "
        f"{row['encode_seconds'] / 60:.0f} minutes and {row['bytes_kept'] / 1e9:.1f} GB of disk; `sharedllm encode --dry-run` says what your text takes. From the default "
        f"model expect short answers to questions of fact: of {answers['samples']} questions about {answers['length']:,} tokens it answered "
        f"{100 * answers['value']:.0f} % rightly. It was not trained to summarise or to count."
    )


def report_of() -> str:
    """What stands behind the link to the full report as long as its rows are of an adapter that ships no longer."""
    said = earlier_weights(rows("report-full.jsonl")).removesuffix(" of that name")
    return f", {said[0].lower()}{said[1:]}" if said else ""


def filled(text: str) -> str:
    """A page with every block between its marks: on lines of its own where the first mark ends a line."""
    blocks = {
        "headline": headline(),
        "before": before(),
        "demo": demo_block(),
        "adapter": "\n\n".join(filter(None, (adapter_block(), no_harm()))),
        "report": report_of(),
    }
    blocks |= {"goals": short_table(rows("bench.jsonl")), "load": load_block(rows("serving.jsonl"))}
    blocks |= {"ray": ray_block(rows("ray-speed.jsonl")), "search": search_block(rows("library-search.jsonl"))}
    for name, block in blocks.items():
        marks = rf"(<!-- {name} -->(\n?)).*?(<!-- /{name} -->)"
        text = re.sub(marks, lambda m, b=block: f"{m[1]}{b}{m[2]}{m[3]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    for page in (README, CARD, *PAGES):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
