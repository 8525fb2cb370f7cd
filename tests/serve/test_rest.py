"""A server at rest holds no memory that it does not need."""

from __future__ import annotations

import time

import pytest

from tests.serve.conftest import started

pytest.importorskip("httpx", reason="httpx is not installed")


def test_freed_memory_is_given_back_once_each_time_there_is_nothing_to_do(tmp_path, monkeypatch):
    import httpx

    from sharedllm.serve import engine

    given_back: list[float] = []

    def wait_for(count: int) -> None:
        until = time.monotonic() + 30
        while len(given_back) < count and time.monotonic() < until:
            time.sleep(0.01)

    monkeypatch.setattr(engine, "REST_SECONDS", 0.2)
    monkeypatch.setattr(engine, "trim", lambda: given_back.append(time.monotonic()))
    running = started(tmp_path)
    try:
        wait_for(1)
        time.sleep(0.6)
        assert len(given_back) == 1, "it is at rest, and goes on giving back"
        body = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 4}
        httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60).raise_for_status()
        wait_for(2)
        assert len(given_back) == 2
    finally:
        running.stop()
    assert len(given_back) == 2
