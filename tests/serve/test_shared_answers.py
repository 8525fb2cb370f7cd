"""A server that shares its folder with others, over HTTP: what it looks up there, and whom it lets go."""

from __future__ import annotations

import threading
import time

import pytest

from tests.serve.conftest import LONG, read, started, upload

pytest.importorskip("fastapi", reason="the server is not installed: pip install sharedllm[serve]")

from sharedllm.serve.entry import state_of

httpx = pytest.importorskip("httpx", reason="httpx is not installed")


def test_servers_that_share_a_folder_look_into_it_beside_their_answers(tmp_path, monkeypatch):
    running = started(tmp_path, shared=True, prompt_disk_bytes=0)
    looked = []

    def watched(folder):
        looked.append(threading.current_thread())
        return state_of(folder)

    monkeypatch.setattr("sharedllm.serve.shelf.state_of", watched)
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            key = upload(http)
            ask = {"messages": [{"role": "user", "content": "Why?"}], "context": key, "max_tokens": 1}
            for path in ("", f"/{key}/events", "/events", f"/{key}/text"):
                assert http.get(f"/v1/contexts{path}").status_code == 200
            assert http.post("/v1/chat/completions", json=ask).status_code == 200
            assert http.post("/v1/map", json=ask).status_code == 200
            more = {"file": ("more.txt", b"One more.")}
            assert http.post(f"/v1/contexts/{key}", files=more).status_code == 202
            assert http.delete(f"/v1/contexts/{key}").status_code == 200
        assert looked and running.ended not in looked, "the thread of all answers"
    finally:
        running.stop()


def test_who_follows_a_reading_of_a_replica_is_let_go_before_that_would_be_killed(tmp_path, monkeypatch):
    running, go = started(tmp_path, shared=True, prompt_disk_bytes=0, grace=1.0), threading.Event()
    rows = running.llm.reader.encode_rows
    monkeypatch.setattr(running.llm.reader, "encode_rows", lambda *a, **k: (go.wait(120), rows(*a, **k))[1])
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            key = http.post("/v1/contexts", files={"file": ("items.txt", LONG.encode())}).json()["id"]
            for path in (f"/{key}/events", "/events"):
                begun = time.monotonic()
                told = http.get(f"/v1/contexts{path}").text
                assert '"status": "reading"' in told and time.monotonic() - begun < 1 + 10
            go.set()
            read(http, key)
    finally:
        go.set()
        running.stop()
