"""What docs/SERVE.md says of the load test, from the rows that `tools/probes/load.py` left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def load_block(rows: Sequence[Row]) -> str:
    """A table of the clients, then batches against one at a time, then what an upload costs an answer."""
    latest = {(row["method"], row["clients"]): row for row in rows}
    loads = [row for (method, _), row in sorted(latest.items()) if method == "load"]
    by_method = {method: row for (method, _), row in latest.items()}
    if not loads or not {"upload", "batched", "one at a time"} <= set(by_method):
        return "Not measured yet."
    about = loads[-1]
    lines = [
        f"Measured on loopback by `python tools/probes/load.py -o docs/results/serving.jsonl` (the default model, {about['dtype']}, on {about['device']}, "
        f"{about['processor']}, {about['threads']} threads; a quarter of the prompts have some 12,000 tokens):",
        "",
        "| clients | requests | errors | tokens a second | first token, p50 / p95 / p99 | memory after, of before |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in loads:
        first = " / ".join(f"{row[f'first_token_p{n}']:.1f}" for n in (50, 95, 99))
        memory = f"{100 * row['memory_end'] / row['memory_start']:.0f} %"
        lines.append(
            f"| {row['clients']} | {row['samples']} | {row['errors']} | {row['value']:.1f} | {first} s | {memory} |"
        )
    batched, alone, upload = (by_method[method] for method in ("batched", "one at a time", "upload"))
    ratio = batched["value"] / alone["value"]
    elsewhere = "" if upload["dtype"] == about["dtype"] else f" (another machine, {upload['dtype']})"
    lines += [
        "",
        f"- {batched['clients']} clients with short prompts: {batched['value']:.1f} tokens a second decoded together, {alone['value']:.1f} one at a time: "
        f"**{ratio:.1f} times** (goal 3: {'met' if ratio >= 3 else 'missed'}).",
        f"- While {upload['length']:,} tokens are read, the worst gap between two pieces of another answer is {upload['value']:.2f} s, the median "
        f"{upload['median_gap_seconds']:.2f} s; without the upload {upload['alone_worst_gap_seconds']:.2f} s and {upload['alone_median_gap_seconds']:.2f} s{elsewhere}.",
    ]
    return "\n".join(lines)
