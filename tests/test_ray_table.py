"""The tables of docs/distributed/ray.md: what they take from the rows of the two probes."""

from __future__ import annotations

from pathlib import Path

import pytest

LOCAL = {
    "engine": "local",
    "workers": 1,
    "documents": 100,
    "tokens": 1024,
    "cores": 2,
    "start_seconds": 2.0,
    "read_seconds": 100.0,
}
PARTS = {"engine": "parts", "dispatch_seconds": 0.0015}
FOUND = {"documents": 10, "tokens": 1024, "read_seconds_a_document": 1.5} | {
    f"{name}_{what}": value
    for name in ("sketches", "sketches_then_stores", "all_stores")
    for what, value in (("seconds", 0.25), ("among_1", 0.5), ("among_4", 0.9), ("among_8", 1.0))
}


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "tools"))
    import ray_table

    return ray_table


def test_the_overhead_is_that_of_one_worker_against_its_goal(tables):
    one, two = (
        {**LOCAL, "engine": "ray", "read_seconds": 112.0},
        {**LOCAL, "engine": "ray", "workers": 2, "read_seconds": 80.0},
    )
    said = tables.ray_block([LOCAL, one, two, PARTS])
    assert (
        "| ray | 2 | 2.0 s | 80.0 s | 1.25 |" in said
        and "costs +12 % beyond" in said
        and "missed" in said
        and "1.50 ms" in said
    )
    assert tables.ray_block([LOCAL, one, PARTS]) == "Not measured yet."


def test_a_line_for_each_size_of_a_collection(tables):
    said = tables.search_block([{**FOUND, "all_stores_seconds": 9.0}, FOUND, {**FOUND, "documents": 1000}])
    assert "| 10 | 50 / 90 / 100 %, 0.25 s |" in said and "9.00" not in said and "| 1,500 s |" in said
    assert tables.search_block([]) == "Not measured yet."
