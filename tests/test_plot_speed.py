"""The figure of bench rows: what is drawn of which, and with which floor."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharedllm.errors import UsageError
from sharedllm.plot import lines, speed
from sharedllm.plot.figure import compose, plan
from sharedllm.plot.rows import Row


def row(method: str, length: int, metric: str, value: float | None, **more: object) -> dict:
    return {
        "task": "bench", "method": method, "length": length, "metric": metric, "value": value, "low": value,
        "high": value, "samples": 3, "model": "tiny", "adapter": "first", "device": "cpu", "dtype": "float32",
        "threads": 2, **more,
    }  # fmt: skip


def time(method: str, length: int, value: float, **more: object) -> dict:
    return row(method, length, speed.TIME, value, **more)


def memory(method: str, length: int, value: float, kept: float = 3e6, attended: float = 1e6) -> dict:
    return row(method, length, speed.MEMORY, value, kept_bytes=kept, attended_bytes=attended)


ROWS = [
    time("full", 4096, 8.0, low=7.0, high=9.0), time("full", 2048, 2.0),
    time("shared", 2048, 3.0, bare_read_seconds=3.5, floor_seconds=1.5),
    time("shared", 4096, 6.0, bare_read_seconds=5.0, floor_seconds=2.5),
    memory("full", 2048, 50e6), memory("shared", 2048, 20e6),
    row("shared", 2048, "second_over_first", 0.1),
    row("full", 8192, speed.TIME, None, reason="it takes too long"),
    row("shared", 4096, "break_even_tokens", 2800.0, against="full"),
]  # fmt: skip


def rows(*values: dict) -> list[Row]:
    return [Row(value, Path("rows.jsonl"), number) for number, value in enumerate(values, 1)]


def test_time_and_memory_stand_side_by_side_with_their_floors():
    planned = plan(rows(*ROWS))
    (strip,) = planned.strips
    assert "3 rounds" in strip.below and "cpu with 2 threads" in strip.below
    seconds, megabytes = compose(planned).axes
    assert (seconds.get_xscale(), seconds.get_yscale(), megabytes.get_yscale()) == ("log",) * 3
    assert "lower is better" in seconds.get_ylabel() and "MB" in megabytes.get_ylabel()
    for axes in (seconds, megabytes):
        low, high = axes.get_ylim()
        assert sum(low <= at <= high for at in axes.get_yticks()) >= 2, (
            "an axis within one power of ten has numbers too"
        )
    drawn = [
        [(list(map(float, x.get_xdata())), list(x.get_ydata())) for x in axes.lines] for axes in compose(planned).axes
    ]
    assert drawn[0] == [
        ([2048, 4096], [3, 6]),
        ([2048, 4096], [2, 8]),
        ([2048, 4096], [1.5, 2.5]),
        ([2048, 4096], [3.5, 5]),
    ]
    assert drawn[1] == [([2048], [20]), ([2048], [50]), ([2048], [4])]
    named = [text.get_text() for text in compose(planned).subfigs[0].legends[0].get_texts()]
    assert len(named) == 5 and sum(name.startswith("floor") for name in named) == 2
    assert any("layers alone" in name for name in named), "which can take longer than reading: it is no floor"


def test_machines_are_never_mixed_and_the_last_of_repeated_rows_counts():
    found = speed.settings(rows(*ROWS[:4], time("full", 2048, 1.0), time("full", 2048, 9.0, threads=1)))
    assert [(setting.where, setting.replaced) for setting in found] == [
        ("cpu with 1 thread", 0),
        ("cpu with 2 threads", 1),
    ]
    (line,) = (line for line in found[1].lines if line.method == "full")
    assert found[1].points[speed.TIME][line][2048].value == 1.0


def test_a_row_without_its_value_is_named():
    with pytest.raises(UsageError, match=r"rows.jsonl, line 2: kept_bytes is missing"):
        plan(rows(ROWS[0], row("shared", 2048, speed.MEMORY, 1.0)))


def test_processors_are_never_mixed():
    values = [time("full", 2048, 2.0, device="cuda", processor=name) for name in ("H100", "H200")]
    found = speed.settings(rows(*values, time("full", 2048, 2.0, processor="AMD EPYC")))
    assert [setting.where for setting in found] == ["cpu (AMD EPYC) with 2 threads", "cuda (H100)", "cuda (H200)"]
    assert not any(setting.replaced for setting in found)


def test_windows_of_a_method_are_lines_of_their_own():
    """But for what reads everything in any case."""
    values = [time(method, 2048, 1.0, window=window) for method in ("truncate", "full") for window in (1024, 8192)]
    (setting,) = speed.settings(rows(*values, time("shared", 2048, 1.0, window=1024)))
    named = lines.names(setting.lines).values()
    assert [name for name in named if "(" in name] == ["truncate A (window 1,024)", "truncate B (window 8,192)"]
    assert len(named) == 4 and setting.replaced == 1
