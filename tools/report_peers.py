"""The report's table of kvpress's methods beside ours, on the same samples at equal bytes; from what `make peers` leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
FOUND, NLL = "found", "nll"
BYTES = {"stored_bytes": "kept for any question", "attended_bytes": "attended to by one question"}


def peers_table(rows: Sequence[Row]) -> str:
    """A line a method and budget: needles found, nats a token, and the bytes it kept; nothing without rows of kvpress."""
    if not any(row["method"].startswith("kvpress-") for row in rows):
        return ""
    latest = {
        (row["method"], row.get("budget", ""), row["metric"]): row for row in rows if row.get("value") is not None
    }
    names = list(dict.fromkeys((method, budget) for method, budget, metric in latest if metric in (FOUND, NLL)))
    length = max(row["length"] for row in latest.values())
    lines = [
        f"| at {length:,} tokens | as many bytes as `shared` has | MB kept | needles found | nats a token |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method, budget in sorted(names, key=lambda name: (name[1], name[0])):
        found, nll = latest.get((method, budget, FOUND)), latest.get((method, budget, NLL))
        kept = next((row["bytes_kept"] for row in (found, nll) if row and "bytes_kept" in row), None)
        cells = (
            method,
            BYTES.get(budget, ""),
            "" if kept is None else f"{kept / 1e6:,.1f}",
            ""
            if found is None
            else f"{100 * found['value']:.0f} % [{100 * found['low']:.0f}, {100 * found['high']:.0f}]",
            "" if nll is None else f"{nll['value']:.3f} [{nll['low']:.3f}, {nll['high']:.3f}]",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
