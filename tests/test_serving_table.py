"""The load test's table in docs/SERVE.md: what it takes from the rows, and that it says so where one is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

ABOUT = {"device": "cpu", "dtype": "bfloat16", "processor": "a processor", "threads": 2}
LOAD = {
    "method": "load", "clients": 8, "samples": 32, "errors": 0, "value": 20.04, "first_token_p50": 1.0,
    "first_token_p95": 2.0, "first_token_p99": 3.04, "memory_start": 100, "memory_end": 103, **ABOUT,
}  # fmt: skip
ALONE = {"method": "one at a time", "clients": 16, "value": 10.0, **ABOUT}
BATCHED = {"method": "batched", "clients": 16, "value": 29.0, **ABOUT}
UPLOAD = {
    "method": "upload", "clients": 1, "length": 131072, "value": 0.5, "median_gap_seconds": 0.25,
    "alone_worst_gap_seconds": 0.125, "alone_median_gap_seconds": 0.0625, **ABOUT,
}  # fmt: skip


@pytest.fixture
def load_block(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "tools"))
    from serving_table import load_block

    return load_block


def test_a_line_for_each_number_of_clients_and_the_ratio_with_its_goal(load_block):
    again = {**LOAD, "value": 21.0}
    said = load_block([LOAD, again, ALONE, BATCHED, UPLOAD])
    assert "| 8 | 32 | 0 | 21.0 | 1.0 / 2.0 / 3.0 s | 103 % |" in said and "20.0" not in said, "the last one counts"
    assert "**2.9 times** (goal 3: missed)" in said
    assert "131,072 tokens are read, the worst gap between two pieces of another answer is 0.50 s" in said
    assert "another machine" not in said
    assert "0.06 s (another machine, float32)." in load_block([LOAD, ALONE, BATCHED, {**UPLOAD, "dtype": "float32"}])


@pytest.mark.parametrize("lacks", range(4))
def test_a_run_that_was_stopped_says_nothing(load_block, lacks):
    rows = [LOAD, ALONE, BATCHED, UPLOAD]
    assert load_block(rows[:lacks] + rows[lacks + 1 :]) == "Not measured yet."
