"""Results rows as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sharedllm.cli import common

if TYPE_CHECKING:
    from sharedllm.model import SharedLLM

DEPTH_RANGES = 5  # columns of the table of depths


def print_head(llm: SharedLLM, windows: Mapping[str, int]) -> None:
    """One line with what all rows below it were measured with; `windows` by method."""
    seen = ", ".join(f"{name} {window:,}" for name, window in windows.items())
    dtype = str(llm.dtype).removeprefix("torch.")
    common.tell(f"model {llm.name}, adapter {llm.adapter}, {dtype}, {llm.device}; windows: {seen}")


def print_row(row: dict[str, Any]) -> None:
    metric = f"{row['dataset']}, {row['metric']}" if "dataset" in row else row["metric"]
    what = f"{row['method']:<16} {row['length']:>8,} {metric:<24}"
    if "reason" in row:
        print(f"{what} not measured: {row['reason']}", flush=True)
        return
    bounds = _bounds(row) if "low" in row else ""
    over = f" over {len(row['datasets'])} of {row['datasets_of']} data sets" if "datasets_of" in row else ""
    beyond = "  more positions than the model was trained for" if row.get("beyond_window") else ""
    print(f"{what} {row['value']:.4f}{bounds}{over}{beyond}", flush=True)
    if row["task"] == "needle":
        from sharedllm.evaluate.needle import by_depth

        borders = [round(100 * i / DEPTH_RANGES) for i in range(DEPTH_RANGES + 1)]
        shares = by_depth(row["depths"], row["found"], DEPTH_RANGES)
        print(
            "    depth  " + "".join(f"{f'{low}-{high} %':>12}" for low, high in zip(borders, borders[1:], strict=False))
        )
        print("    found  " + "".join(f"{'-' if share is None else f'{share:.2f}':>12}" for share in shares))
    for name, group in row.get("groups", {}).items():
        print(f"    {name:<15} {group['value']:.4f} of {group['samples']:,}")
    if row.get("cut"):
        lost = f"; {row['answer_lost']:,} lost their answer" if row["answer_lost"] else ""
        print(f"    cut in the middle: {row['cut']:,} of {row['samples']:,}{lost}")


def _bounds(row: dict[str, Any]) -> str:
    """The interval, which a single passage does not have."""
    if row.get("samples") == 1 and row["low"] == row["high"]:
        return " (one sample: no interval)"
    return f" [{row['low']:.4f}, {row['high']:.4f}]"
