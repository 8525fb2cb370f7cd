"""What a text takes is known before it is read: what memory or disk cannot hold is refused, the rest waits its turn."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from tests.serve.conftest import LONG, read, started, tiny_llm, upload
from tests.serve.test_wrong import CHAT, CONTEXTS, assert_refused

httpx = pytest.importorskip("httpx", reason="httpx is not installed")


def bytes_of(llm, text, folder) -> int:
    from sharedllm.serve.budget import Budget
    from sharedllm.serve.settings import Settings

    return Budget(llm, Settings(folder)).bytes_of(len(text))


def test_what_memory_cannot_hold_is_refused_before_it_is_read(tmp_path):
    llm = tiny_llm()
    running = started(tmp_path, llm=llm, memory_bytes=bytes_of(llm, LONG, tmp_path))
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            key = upload(http)
            context = running.service.shelf.get(key).context
            assert 0 <= bytes_of(llm, LONG, tmp_path) - context.nbytes <= context.nbytes // (len(LONG) // 16)
            before, long = http.get(f"{CONTEXTS}/{key}").json(), {"file": ("b.txt", (LONG * 2).encode())}
            assert_refused(http.post(CONTEXTS, files=long), 413, "--memory-gb")
            assert_refused(http.post(f"{CONTEXTS}/{key}", files={"file": ("b.txt", LONG.encode())}), 413, "split it")
            asks = {"messages": [{"role": "user", "content": f"{LONG * 3}\n\nWhy?"}], "max_tokens": 1}
            for stream in (False, True):
                assert_refused(http.post(CHAT, json={**asks, "stream": stream}), 413, "split it")
            after = http.get(f"{CONTEXTS}/{key}").json()
            assert (after["documents"], after["tokens"], after["status"]) == (before["documents"], len(LONG), "ready")
        assert len(list((tmp_path / "contexts").iterdir())) == 1 and not running.service.shelf.kept.prompts
    finally:
        running.stop()


def test_what_disk_cannot_hold_is_refused_before_it_is_read(tmp_path):
    llm = tiny_llm()
    running = started(tmp_path, llm=llm, context_disk_bytes=bytes_of(llm, LONG * 2, tmp_path))
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            assert_refused(http.post(CONTEXTS, files={"file": ("a.txt", (LONG * 3).encode())}), 507, "delete some")
            upload(http)
    finally:
        running.stop()


def test_a_kept_text_that_memory_cannot_hold_fails_and_the_server_starts(tmp_path):
    from sharedllm.serve.entry import Entry, new_id

    llm, key = tiny_llm(), new_id()
    Entry(key, tmp_path / "contexts" / key, ["a.txt"], ids=llm.reader.token_ids(LONG * 9)).save_text()
    running = started(tmp_path, llm=llm, memory_bytes=bytes_of(llm, LONG, tmp_path))
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            about = http.get(f"{CONTEXTS}/{key}").json()
            assert about["status"] == "failed" and "--memory-gb" in about["error"]
            asks = {"messages": [{"role": "user", "content": "Why?"}], "context": key}
            assert_refused(http.post(CHAT, json=asks), 409, "--memory-gb")
            more = {"file": ("b.txt", b"More.")}
            assert_refused(http.post(f"{CONTEXTS}/{key}", files=more), 409, "--memory-gb")
            upload(http)
    finally:
        running.stop()


def test_texts_that_memory_cannot_hold_together_are_read_one_after_another(tmp_path, monkeypatch):
    llm, taken = tiny_llm(), []
    most = bytes_of(llm, LONG * 6, tmp_path)
    running = started(tmp_path, llm=llm, memory_bytes=most)
    shelf, rows = running.service.shelf, llm.reader.encode_rows

    def encode_rows(*arguments, **options):
        taken.append(sum(entry.reserved for entry in shelf.contexts.values()))
        return rows(*arguments, **options)

    monkeypatch.setattr(llm.reader, "encode_rows", encode_rows)
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            files = [{"file": (name, (LONG * 5).encode())} for name in ("a.txt", "b.txt")]
            keys = [http.post(CONTEXTS, files=file).json()["id"] for file in files]
            for key in keys:
                read(http, key)
        assert 0 < max(taken) <= most and not any(entry.reserved for entry in shelf.contexts.values())
        assert shelf.metrics.registry.get_sample_value("sharedllm_contexts_memory_bytes") <= most
    finally:
        running.stop()


def test_what_was_read_of_a_text_is_let_go_where_reading_fails(http, served, monkeypatch):
    rows, calls = served.llm.reader.encode_rows, []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("secret")
        return rows(*arguments, **options)

    with monkeypatch.context() as broken:
        broken.setattr(served.llm.reader, "encode_rows", failing)
        key = http.post(CONTEXTS, files={"file": ("a.txt", LONG.encode())}).json()["id"]
        until = time.monotonic() + 20
        while http.get(f"{CONTEXTS}/{key}").json()["status"] == "reading" and time.monotonic() < until:
            time.sleep(0.02)
    about, entry = http.get(f"{CONTEXTS}/{key}").json(), served.service.shelf.get(key)
    assert about["status"] == "failed" and "secret" not in about["error"]
    assert entry.partial is None and entry.reserved == 0


def test_only_what_left_memory_is_counted_as_gone(tmp_path, monkeypatch):
    from sharedllm.serve.budget import Budget
    from sharedllm.serve.entry import Entry
    from sharedllm.serve.settings import Settings

    monkeypatch.setattr("sharedllm.serve.budget.Context.load", lambda *_: SimpleNamespace(nbytes=100))
    entries = [
        Entry(str(i), tmp_path, context=SimpleNamespace(nbytes=100), loaded=True, saved=i > 0, used=i) for i in range(3)
    ]
    Budget(tiny_llm(), Settings(tmp_path, memory_bytes=200)).fit(entries, {})
    assert [entry.loaded for entry in entries] == [True, False, True], "the first is not on the disk yet"


def test_what_is_read_on_stays_in_memory_since_its_reading_holds_it(tmp_path, monkeypatch):
    from sharedllm.serve.budget import Budget, held_bytes
    from sharedllm.serve.entry import Entry
    from sharedllm.serve.settings import Settings

    context = SimpleNamespace(nbytes=100)
    monkeypatch.setattr("sharedllm.serve.budget.Context.load", lambda *_: context)
    entry = Entry("a", tmp_path, context=context, partial=context, loaded=True, saved=True)
    budget = Budget(tiny_llm(), Settings(tmp_path, memory_bytes=0))
    budget.fit([entry], {})
    assert entry.loaded and held_bytes([entry]) == 100
    entry.partial = None
    budget.fit([entry], {})
    assert not entry.loaded


def test_a_prompt_that_is_known_is_asked_though_memory_could_not_hold_it(tmp_path):
    from sharedllm.serve.entry import Entry
    from sharedllm.serve.failures import ApiError
    from sharedllm.serve.long_prompts import key_of
    from sharedllm.serve.service import Service
    from sharedllm.serve.settings import Settings

    service = Service(tiny_llm(), Settings(tmp_path, memory_bytes=0))
    prompts, ids = service.shelf.prompts, service.llm.reader.token_ids(LONG)
    with pytest.raises(ApiError, match="split it"):
        prompts.check(ids)
    prompts.kept.prompts[key_of(ids)] = Entry(key_of(ids), tmp_path)
    prompts.check(ids)


def test_short_texts_that_are_encoded_take_no_more_disk_than_there_is(tmp_path):
    from sharedllm.serve.budget import Budget
    from sharedllm.serve.service import Service
    from sharedllm.serve.settings import Settings

    llm = tiny_llm()
    most = 2 * Budget(llm, Settings(tmp_path)).bytes_of(100, encoded=True) - 1
    service = Service(llm, Settings(tmp_path, context_disk_bytes=most))
    service.shelf.open()
    entries = [service.shelf.add(f"{i}.txt", llm.reader.token_ids(LONG[i : i + 100])) for i in range(2)]
    while service.engine._work:
        service.engine._advance()
    for entry in entries * 2:
        work = service.shelf.encoded(entry, entry.context)
        with pytest.raises(StopIteration) as end:
            while True:
                next(work)
        assert end.value.value.chunks == -(-100 // 16)
        service.shelf.kept.later(lambda: None).result()
    assert [entry.context.chunks > 0 for entry in entries] == [True, False]
    assert sum(entry.disk_bytes for entry in entries) <= most


def test_files_that_go_while_they_are_counted_take_nothing(tmp_path, monkeypatch):
    from sharedllm.serve.entry import Entry

    (tmp_path / "slots").mkdir()
    for name in ("a", "slots/b"):
        (tmp_path / name).write_bytes(b"four")
    size = os.path.getsize

    def gone(file):
        if str(file).endswith("a"):
            raise FileNotFoundError(file)
        return size(file)

    monkeypatch.setattr(os.path, "getsize", gone)
    assert Entry("x", tmp_path).disk_bytes == 4 and Entry("x", tmp_path / "none").disk_bytes == 0
