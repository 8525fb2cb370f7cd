"""Writes the measured parts of README.md from docs/results: run `python docs/fill_readme.py`.

Numbers have one home, the results files; a test says when the README is behind them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sharedllm.evaluate.statistics import bootstrap

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"


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
        f"| attended to for one question | {row['slots']:,} slots a layer, {row['bytes_one_question'] / 1e6:,.0f} MB |",
        f"| {row['passages']} passages deep in the text | {row['nll_without']:.3f} nats a token without the context, {row['nll_with']:.3f} with it: gain {row['nll_gain']:.3f} [{row['nll_gain_low']:.3f}, {row['nll_gain_high']:.3f}] |",
        f"| a question | {per['search_seconds']:.2f} s to search, {per['generate_seconds']:.1f} s to generate |",
        f"| peak memory, all of it | {row['peak_memory_bytes'] / 1e6:,.0f} MB (torch and the model included) |",
        "",
    ]
    for q in row["questions"]:
        verdict = "right" if q["right"] else "wrong: expected " + " or ".join(q["expected"])
        lines.append(f"- **{q['question']}** {' '.join(q['answer'].split())} *({verdict})*")
    return "\n".join(lines)


def gains_by_text(ours: dict[str, Any], alone: dict[str, Any]) -> dict[str, list[float]]:
    """Paired gains in nats of each text's passages, and of all under `all`."""
    gains: dict[str, list[float]] = {"all": []}
    for source, a, b in zip(ours["sources"], alone["values"], ours["values"], strict=True):
        for name in (source.removesuffix(".txt"), "all"):
            gains.setdefault(name, []).append(a - b)
    return gains


def adapter_block() -> str:
    found = {(r["method"], r["length"]): r for r in rows("adapter.jsonl") if r["metric"] == "nll"}
    if not found:
        return "Not measured yet."
    lines = [
        "The shipped adapter on texts from sources it was not trained on: nats a token of the last "
        f"{next(iter(found.values()))['targets']:,} tokens, with a window of as many, alone and with the rest as compressed context. "
        "Gains are paired, with 95 % bootstrap intervals (`make measure`, `docs/results/adapter.jsonl`). "
        "The gap is what the same model gains by reading all 8,192 tokens itself.",
        "",
        "| all tokens | text | passages | gain | share of the gap |",
        "| --- | --- | --- | --- | --- |",
    ]
    for length in sorted({n for _, n in found}):
        alone, ours, full = (found.get((m, length)) for m in ("truncate", "shared", "full"))
        if not (alone and ours):
            continue
        whole = gains_by_text(full, alone) if full else {}
        for name, gains in gains_by_text(ours, alone).items():
            low, high = bootstrap(gains)
            mean = sum(gains) / len(gains)
            share = f"{100 * sum(gains) / sum(whole[name]):.0f} %" if name in whole else ""
            lines.append(f"| {length:,} | {name} | {len(gains)} | {mean:+.3f} [{low:+.3f}, {high:+.3f}] | {share} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    for name, block in (("demo", demo_block()), ("adapter", adapter_block())):
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, b=block: f"{m[1]}{b}\n{m[2]}", text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
