"""How fast a text is read and how long it takes yet, as a client is told it: by the clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.conftest import tokens

pytest.importorskip("fastapi", reason="the server is not installed: pip install sharedllm[serve]")

from sharedllm.serve.entry import Entry
from sharedllm.serve.keeping import Keeping
from sharedllm.serve.metrics import Metrics
from sharedllm.serve.reading import begun
from sharedllm.serve.settings import Settings


@pytest.fixture
def llm(make, monkeypatch):
    """A model to which a chunk takes a second, by a clock that nothing else moves."""
    llm, now = make(), [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0], time=lambda: now[0])
    monkeypatch.setattr("sharedllm.serve.entry.time", clock)
    monkeypatch.setattr("sharedllm.serve.keeping.time", clock)
    rows = llm.reader.encode_rows

    def encode_rows(*arguments, **options):
        now[0] += 1.0
        return rows(*arguments, **options)

    monkeypatch.setattr(llm.reader, "encode_rows", encode_rows)
    return llm


def test_the_time_left_counts_what_is_done_between_the_slices(llm, tmp_path):
    """Two texts of ten chunks are read in turns."""
    kept = Keeping(llm, Settings(tmp_path), Metrics())
    entries = [Entry(name, tmp_path / name, ids=tokens(160, seed)) for seed, name in enumerate(("one", "two"))]
    for entry in entries:
        entry.partial = begun(llm.reader, entry.ids, None)
    readings = [kept.read(entry) for entry in entries]
    try:
        for turn in range(4):
            for reading in readings:
                next(reading)
            if turn == 0:
                assert entries[1].describe()["seconds_left"] is None, "one slice says nothing of what comes between"
        told = [entry.describe() for entry in entries]
    finally:
        kept.close()
    for about in told:
        assert about["read_tokens"] == 64 and about["read_seconds"] == 4.0, "its own"
        assert about["tokens_per_second"] == 8.0, "16 tokens a second, half of the time"
        assert about["seconds_left"] == 12.0, "six chunks, and six of the other text between"
