"""What docs/distributed/ray.md says of reading with Ray and of the search of a collection, from the rows of two probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
SEARCHES = {
    "sketches": "sketches alone",
    "sketches_then_stores": "sketches, then 16 stores",
    "all_stores": "every store",
}
OVERHEAD = 0.10  # the goal: what the engine may cost beyond the local one


def ray_block(rows: Sequence[Row]) -> str:
    """Reading by this process and by workers; then what more workers would take, computed."""
    timed = {(row["engine"], row["workers"]): row for row in rows if row.get("engine") in ("local", "ray")}
    parts = next((row for row in reversed(rows) if row.get("engine") == "parts"), None)
    if parts is None or not {("local", 1), ("ray", 1), ("ray", 2)} <= set(timed):
        return "Not measured yet."
    local = timed["local", 1]
    lines = [
        f"{local['documents']} documents of {local['tokens']:,} tokens on {local['cores']} cores, all engines with as many threads in all:",
        "",
        "| engine | workers | start | reading | times local |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (engine, workers), row in timed.items():
        times = local["read_seconds"] / row["read_seconds"]
        lines.append(
            f"| {engine} | {workers} | {row['start_seconds']:.1f} s | {row['read_seconds']:.1f} s | {times:.2f} |"
        )
    beyond = timed["ray", 1]["read_seconds"] / local["read_seconds"] - 1
    lines += [
        "",
        f"One worker costs {100 * beyond:+.0f} % beyond the local engine (goal: at most {100 * OVERHEAD:.0f} %, "
        f"{'met' if beyond <= OVERHEAD else 'missed'}), its start aside. Handing out a piece of work and hearing of it takes {1000 * parts['dispatch_seconds']:.2f} ms.",
    ]
    return "\n".join(lines)


def search_block(rows: Sequence[Row]) -> str:
    """Share of questions whose document is among the nearest, and seconds a question, by size of the collection."""
    sizes = {row["documents"]: row for row in rows}
    if not sizes:
        return "Not measured yet."
    about = rows[-1]
    lines = [
        f"Documents of {about['tokens']:,} tokens with a needle each; share of questions whose document is among the nearest 1 / 4 / 8, and seconds a question:",
        "",
        "| documents | " + " | ".join(SEARCHES.values()) + " | reading them all |",
        "| --- " * (len(SEARCHES) + 2) + "|",
    ]
    for size, row in sorted(sizes.items()):
        cells = []
        for name in SEARCHES:
            shares = " / ".join(f"{100 * row[f'{name}_among_{n}']:.0f}" for n in (1, 4, 8))
            cells.append(f"{shares} %, {row[f'{name}_seconds']:.2f} s")
        read = row["read_seconds_a_document"] * size
        lines.append(f"| {size:,} | {' | '.join(cells)} | {read:,.0f} s |")
    return "\n".join(lines)
