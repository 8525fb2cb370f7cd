"""The load script measures what it says, against a tiny server and with a few clients."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="httpx is not installed")


@pytest.fixture(scope="module")
def load():
    spec = importlib.util.spec_from_file_location("load", Path(__file__).parents[2] / "tools/probes/load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_clients_are_counted_and_timed(load, served):
    prompts = load.mixed(8, 200, 0)
    assert sum(len(p) > 500 for p in prompts) == 2
    row = asyncio.run(load.clients(served.url, 3, prompts, 6, 120))
    assert (row["samples"], row["errors"]) == (8, 0)
    assert row["value"] * row["seconds"] == pytest.approx(8 * 6)
    assert 0 < row["first_token_p50"] <= row["first_token_p95"] <= row["first_token_p99"] < row["seconds"]
    assert load.memory(os.getpid()) > 0


def test_a_refusal_is_an_error(load, served):
    row = asyncio.run(load.clients(served.url, 1, ["Why?"], 10**6, 120))
    assert (row["samples"], row["errors"], row["value"]) == (1, 1, 0)


def test_gaps_are_measured_while_a_text_is_read(load, served):
    row = asyncio.run(load.gap(served.url, 200, 120))
    assert row["length"] > 500 and row["samples"] > 0
    assert row["value"] >= row["median_gap_seconds"] > 0 and row["alone_median_gap_seconds"] > 0
