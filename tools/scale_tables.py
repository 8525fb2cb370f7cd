"""The tables of docs/SCALE.md, made of the rows of docs/results/scale.jsonl alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sharedllm.plot.lines import length_name, percent

Row = dict[str, Any]
OTHERS = ("full", "streaming", "encoder-decoder")
TIMES = ((86400 * 365.25, "years"), (86400, "days"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))
PARTS = (("read_operations", "operations to read"), ("kept_bytes", "bytes kept"), ("token_bytes", "bytes a new token"))


def blocks(rows: Sequence[Row]) -> dict[str, str]:
    """The block of each name that the page has marks for."""
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(row["task"], []).append(row)
    costs, library = of["scale"], of["scale-library"]
    return {
        "hardware": _hardware(of["scale-hardware"]),
        "models": _models(of["scale-model"]),
        "reading": "\n\n".join(_by_model(costs, _reading)),
        "answering": "\n\n".join(_by_model(costs, _answering)),
        "search": _search([row for row in costs if row["method"] == "shared"]),
        "compared": _compared(costs),
        "checks": _checks(of["scale-check"]),
        "library-inputs": _library_inputs(of["scale-library-inputs"][0]),
        "library": _library(library),
    }


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def amount(x: float, unit: str = "") -> str:
    """Three figures and a power of a thousand: 3.02 GB, 622 T."""
    for power, name in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if x >= 0.9995 * power:
            return f"{_three(x / power)} {name}{unit}"
    return f"{_three(x)} {unit}".strip()


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "not measured"
    for size, name in TIMES:
        if seconds >= size:
            return f"{_three(seconds / size)} {name}"
    return f"{_three(seconds * 1e6)} µs"


def _three(x: float) -> str:
    """Three figures, no exponent."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def _hardware(rows: Sequence[Row]) -> str:
    made = []
    for r in rows:
        peaks = ["", "", "", "", ""]
        if r["memory"] is not None:
            peaks = [
                amount(r["operations"], "FLOP/s"), percent(r["used_operations"]), amount(r["bandwidth"], "B/s"),
                percent(r["used_bandwidth"]), amount(r["memory"], "B"),
            ]  # fmt: skip
        bandwidth = "not measured" if r["reckoned_bandwidth"] is None else amount(r["reckoned_bandwidth"], "B/s")
        made.append([r["hardware"], *peaks, amount(r["reckoned_operations"], "FLOP/s"), bandwidth, r["source"]])
    return table(
        ("hardware", "peak", "assumed to be reached", "bandwidth", "assumed to be reached", "memory", "reckoned with", "and", "source"),
        made,
    )  # fmt: skip


def _models(rows: Sequence[Row]) -> str:
    names = ("layers", "heads", "kv_heads", "head_dim", "hidden_size", "injected_layers")
    made = [
        [r["model"], *(f"{r[n]:,}" for n in names), amount(r["weight_bytes"], "B"), f"{r['window']:,}"] for r in rows
    ]
    return table(("model", "L", "H", "K", "D", "E", "M", "weights a token reads", "window of streaming"), made)


def _by_model(costs: Sequence[Row], made: Any) -> list[str]:
    return [
        f"**{m}**\n\n" + made([r for r in costs if r["model"] == m]) for m in dict.fromkeys(r["model"] for r in costs)
    ]


def _reading(rows: Sequence[Row]) -> str:
    where = list(rows[0]["seconds"])

    made = [
        [length_name(r["length"]), r["method"], amount(r["read_operations"]), *(_on(r, name, "read") for name in where), amount(r["kept_bytes"], "B")]
        for r in rows
    ]  # fmt: skip
    return table(("tokens", "method", "operations to read", *where, "kept"), made)


def _answering(rows: Sequence[Row]) -> str:
    where = list(rows[0]["seconds"])

    made = [
        [
            length_name(r["length"]), r["method"], amount(r["attended_bytes"], "B"), amount(r["token_operations"]),
            amount(r["token_bytes"], "B"), *(_on(r, name, "token") for name in where),
        ]
        for r in rows
    ]  # fmt: skip
    return table(("tokens", "method", "attended", "operations a new token", "bytes a new token", *where), made)


def _search(rows: Sequence[Row]) -> str:
    made = [
        [
            r["model"], length_name(r["length"]), amount(r["search_operations"]), amount(r["search_bytes"], "B"),
            amount(r["first_operations"]),
        ]
        for r in rows
    ]  # fmt: skip
    names = ("bytes of the store and the token ids", "operations then, to the first token")
    return table(("model", "tokens", "operations", *names), made)


def _compared(costs: Sequence[Row]) -> str:
    """How many times what `shared` costs each other method costs; below 1 it costs less."""
    by = {(r["model"], r["length"], r["method"]): r for r in costs}
    made = []
    for model, length, method in by:
        if method == "shared":
            cells = [
                _times(by[model, length, other][p] / by[model, length, method][p]) for p, _ in PARTS for other in OTHERS
            ]
            made.append([model, length_name(length), *cells])
    return table(("model", "tokens", *(f"{label}, {other}" for _, label in PARTS for other in OTHERS)), made)


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"


def _checks(rows: Sequence[Row]) -> str:
    def shown(x: float, unit: str) -> str:
        return f"{x:,.2f} s" if unit == "s" else f"{x:,.0f}" if x >= 1e5 or x == int(x) else f"{x:,.2f}"

    made = [
        [
            r["what"], r["method"], f"{r['length']:,}", shown(r["predicted"], r["unit"]), shown(r["measured"], r["unit"]),
            f"{r['ratio']:.3f}",
        ]
        for r in rows
    ]  # fmt: skip
    return table(("what", "method", "tokens", "predicted", "measured", "predicted / measured"), made)


def _library_inputs(row: Row) -> str:
    return (
        "Assumed, not measured, and the same however many workers there are: "
        f"{row['documents']:,} documents of {row['tokens']:,} tokens; {row['text_bytes']:g} bytes of text a token; "
        f"{amount(row['network'], 'B/s')} into and out of a worker; {amount(row['storage'], 'B/s')} of storage that all share."
    )


def _library(rows: Sequence[Row]) -> str:
    made = [
        [
            r["model"], r["hardware"], f"{r['workers']:,}", duration(r["reading_seconds"]), duration(r["network_seconds"]),
            duration(r["storage_seconds"]), duration(r["seconds"]), _three(r["speed_up"]), r["bound_by"],
            f"{r['storage_full_from_workers']:,.0f}", amount(r["store_bytes"], "B"),
        ]
        for r in rows
    ]  # fmt: skip
    return table(
        ("model", "a worker", "workers", "reading", "network", "storage", "whole", "speed-up", "bound by", "storage full from", "store"),
        made,
    )  # fmt: skip


def _on(r: Row, name: str, what: str) -> str:
    """Seconds on one hardware, marked where they are of what does not fit its memory."""
    return duration(r["seconds"][name][what]) + ("" if name not in r["fits"] or r["fits"][name][what] else " †")
