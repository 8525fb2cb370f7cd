"""The report's table of kvpress's methods beside ours, on the same samples at equal bytes; from what `make peers` leaves."""

from __future__ import annotations

from collections.abc import Sequence

from report_table import NOT_MEASURED, Row, interval, same_passages

FOUND, NLL = "found", "nll"
BYTES = {"stored_bytes": "kept for any question", "attended_bytes": "attended to by one question"}


def peers_table(rows: Sequence[Row]) -> str:
    """A line a method and budget: needles found, nats a token, the bytes it kept, and how much `shared` gains over it on the
    same passages; nothing without rows of kvpress."""
    if not any(row["method"].startswith("kvpress-") for row in rows):
        return ""
    latest = {
        (row["method"], row.get("budget", ""), row["metric"]): row for row in rows if row.get("value") is not None
    }
    names = list(dict.fromkeys((method, budget) for method, budget, metric in latest if metric in (FOUND, NLL)))
    length = max(row["length"] for row in latest.values())
    lines = [
        f"| at {length:,} tokens | as many bytes as `shared` has | MB kept | needles found | nats a token | nats less with `shared`, paired |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, budget in sorted(names, key=lambda name: (name[1], name[0])):
        found, nll = latest.get((method, budget, FOUND)), latest.get((method, budget, NLL))
        kept = next((row["bytes_kept"] for row in (found, nll) if row and "bytes_kept" in row), None)
        cells = (
            method,
            BYTES.get(budget, ""),
            allowed(rows) if method == "shared" else "" if kept is None else f"{kept / 1e6:,.1f}",
            NOT_MEASURED
            if found is None
            else f"{100 * found['value']:.0f} % [{100 * found['low']:.0f}, {100 * found['high']:.0f}]",
            NOT_MEASURED if nll is None else f"{nll['value']:.3f} [{nll['low']:.3f}, {nll['high']:.3f}]",
            "" if method == "shared" else paired(latest.get(("shared", "", NLL)), nll),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def paired(ours: Row | None, theirs: Row | None) -> str:
    """By how many nats a token `shared` is better than a method, passage by passage, with 95 % interval."""
    if ours is None or theirs is None or "values" not in ours or not same_passages(ours, theirs):
        return NOT_MEASURED
    return interval([b - a for a, b in zip(ours["values"], theirs["values"], strict=True)])


def allowed(rows: Sequence[Row]) -> str:
    """What `shared` has itself, in MB, which the samples allow the others: a figure a budget, of needles where there are any."""
    facts_last = sorted(rows, key=lambda row: row["metric"] == FOUND)
    last = {row["budget"]: row["allowed_bytes"] for row in facts_last if "allowed_bytes" in row}
    return ", ".join(f"{last[budget] / 1e6:,.1f} {said}" for budget, said in BYTES.items() if budget in last)
