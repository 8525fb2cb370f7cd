"""What `train` shows while it goes on: how long is left, by the steps of this piece."""

from __future__ import annotations

import pytest
from rich.progress import Progress

from sharedllm.cli import train


def row(step: int) -> dict:
    return {"step": step, "loss": 2.0, "tokens_a_second": 1000.0, "rate": 1e-3}


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The time, in a list of one."""
    at = [100.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: at[0])
    return at


def test_a_line_says_how_long_is_left(now, capsys):
    with train._display(20, 10) as show:
        for seconds, step in ((110.0, 11), (160.0, 13)):
            now[0] = seconds
            show(row(step))
    said = [line for line in capsys.readouterr().err.splitlines() if line]
    assert [line.rpartition(", ")[2] for line in said] == ["90 s left", "140 s left"]
    assert said[0].startswith("step 11 of 20: loss 2.000, 1,000 tokens/s, rate 1.00e-03")


def test_the_bar_knows_how_long_is_left_where_steps_are_long(now, monkeypatch):
    bars = []

    class Bar(Progress):
        def __init__(self, *columns, **settings):
            super().__init__(*columns, **settings, get_time=lambda: now[0])
            bars.append(self)

    monkeypatch.setattr("rich.progress.Progress", Bar)
    with train._display(20, 10) as show:
        for seconds, step in ((140.0, 11), (180.0, 12)):
            now[0] = seconds
            show(row(step))
    assert bars[0].tasks[0].time_remaining == pytest.approx(8 * 40, abs=1)
