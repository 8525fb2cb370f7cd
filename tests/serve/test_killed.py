"""What the next server finds of one that was killed, of a reading that failed, and of what was deleted or refused."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.contexts import assert_same_chunks, encoded
from tests.serve.conftest import LONG, tiny_llm

pytest.importorskip("fastapi", reason="the server is not installed: pip install sharedllm[serve]")

from sharedllm.files import STALE_SECONDS
from sharedllm.serve.entry import ABOUT, TEXT, new_id
from sharedllm.serve.failures import ApiError
from sharedllm.serve.service import Service
from sharedllm.serve.settings import Settings

C = 16  # tokens of a chunk
CHUNKS = -(-len(LONG) // C)


def opened(folder, **settings):
    """A server whose engine does nothing by itself."""
    service = Service(tiny_llm(), Settings(folder, **settings))
    service.shelf.open()
    return service


def advance(service, slices: int = 10**9) -> None:
    """Do so many slices of what there is to do, each with all that the disk has to do."""
    while service.engine._work and slices:
        service.engine._advance()
        service.shelf.kept.later(lambda: None).result()
        slices -= 1


def add(service) -> str:
    return service.shelf.add("items.txt", service.llm.reader.token_ids(LONG)).id


def failing(service, monkeypatch, error: Exception | type[Exception], at: range) -> list[int]:
    """How many chunks are encoded each time some are; the calls of these numbers fail."""
    rows, calls = service.llm.reader.encode_rows, []

    def encode_rows(ids, *arguments, **options):
        calls.append(len(ids))
        if len(calls) - 1 in at:
            raise error
        return rows(ids, *arguments, **options)

    monkeypatch.setattr(service.llm.reader, "encode_rows", encode_rows)
    return calls


def assert_read(service, key: str) -> None:
    context = service.shelf.ready(key)
    assert context.tokens == len(LONG)
    assert_same_chunks(context, encoded(service.llm, context.ids))


def test_of_a_text_that_a_killed_server_was_reading_the_next_reads_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("sharedllm.serve.keeping.WRITE_SECONDS", 0.0)
    killed = opened(tmp_path)
    key = add(killed)
    advance(killed, 20)
    after = opened(tmp_path)
    assert after.shelf.get(key).status == "reading" and after.shelf.get(key).partial.tokens == 16 * C
    calls = failing(after, monkeypatch, RuntimeError, range(0))
    advance(after)
    assert sum(calls) == CHUNKS - 16
    assert_read(after, key)
    assert_read(opened(tmp_path), key)


def test_what_is_read_is_written_once_at_a_time_however_slow_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("sharedllm.serve.keeping.WRITE_SECONDS", 0.0)
    service, disk, written = opened(tmp_path), threading.Event(), []
    add(service)
    monkeypatch.setattr(service.shelf.kept, "write_part", lambda _entry, part: written.append(part.tokens))
    service.shelf.kept.later(disk.wait)
    try:
        for _ in range(24):
            service.engine._advance()
    finally:
        disk.set()
    service.shelf.kept.later(lambda: None).result()
    assert written == [8 * C]
    advance(service)
    assert len(written) > 1


def test_a_part_is_not_written_over_what_was_read_to_its_end(tmp_path):
    service = opened(tmp_path)
    key = add(service)
    advance(service, 10)
    entry = service.shelf.get(key)
    part = service.shelf.kept.part(entry)
    advance(service)
    service.shelf.kept.later(service.shelf.kept.write_part, entry, part).result()
    assert_read(opened(tmp_path), key)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=["python", "gpu", "cpu", "system"],
)
def test_a_reading_that_memory_cut_off_is_tried_once_more_from_there(tmp_path, monkeypatch, error):
    service = opened(tmp_path)
    key, calls = add(service), failing(service, monkeypatch, error, range(12, 13))
    advance(service)
    assert len(calls) == CHUNKS + 1, "no chunk is read again"
    assert_read(service, key)


def test_a_reading_that_memory_cuts_off_again_fails_and_the_next_server_reads_on(tmp_path, monkeypatch):
    service = opened(tmp_path)
    key, calls = add(service), failing(service, monkeypatch, MemoryError, range(12, 99))
    advance(service)
    entry = service.shelf.get(key)
    assert len(calls) == 14 and entry.status == "failed" and "not enough memory" in entry.error
    assert (entry.partial, entry.context, entry.reserved) == (None, None, 0)
    after = opened(tmp_path)
    assert after.shelf.get(key).partial.tokens == 12 * C
    advance(after)
    assert_read(after, key)


def test_what_was_read_before_something_failed_is_not_lost(tmp_path, monkeypatch):
    service = opened(tmp_path)
    key, calls = add(service), failing(service, monkeypatch, RuntimeError, range(12, 99))
    advance(service)
    assert service.shelf.get(key).status == "failed" and len(calls) == 13
    after = opened(tmp_path)
    assert after.shelf.get(key).status == "reading" and after.shelf.get(key).partial.tokens == 12 * C


def test_what_was_appended_before_something_failed_is_read_on_by_the_next_server(tmp_path, monkeypatch):
    service = opened(tmp_path)
    key = add(service)
    advance(service)
    with monkeypatch.context() as patched:
        failing(service, patched, RuntimeError, range(9, 99))
        service.shelf.append(key, "more.txt", service.llm.reader.token_ids(LONG))
        advance(service)
    assert service.shelf.get(key).status == "failed"
    service.shelf.kept.later(service.shelf.kept._write_left).result()
    after = opened(tmp_path)
    before = after.shelf.get(key).partial.tokens
    advance(after)
    context = after.shelf.ready(key)
    assert before == (len(LONG) // C + 9) * C and context.tokens == 2 * len(LONG)
    assert_same_chunks(context, encoded(after.llm, context.ids))


def test_what_was_deleted_is_found_by_no_server_that_starts(tmp_path):
    service, disk = opened(tmp_path), threading.Event()
    key = add(service)
    advance(service)
    folder = service.shelf.get(key).folder
    service.shelf.kept.later(disk.wait)
    try:
        service.shelf.delete(key)
        assert folder.exists(), "the disk has not come to it"
        assert not opened(tmp_path).shelf.all() and not folder.exists()
    finally:
        disk.set()
    service.shelf.kept.later(lambda: None).result()


def test_what_cannot_be_deleted_is_not_called_deleted(tmp_path, monkeypatch):
    service = opened(tmp_path)
    key = add(service)
    advance(service)

    def refused(_file, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", refused)
        with pytest.raises(ApiError) as error:
            service.shelf.delete(key)
    assert error.value.status == 500
    assert_read(service, key)
    service.shelf.delete(key)
    assert not service.shelf.all()


@pytest.mark.parametrize(("shared", "age", "stays"), [(False, 0, False), (True, 0, True), (True, 2, False)])
def test_what_was_left_of_a_context_is_removed_by_the_next_server(tmp_path, shared, age, stays):
    folder = tmp_path / "contexts" / new_id()
    folder.mkdir(parents=True)
    (folder / TEXT).write_bytes(b"it")
    os.utime(folder, (time.time() - age * STALE_SECONDS,) * 2)
    assert not opened(tmp_path, shared=shared).shelf.all()
    assert folder.exists() == stays, "another server may be about to say what it is"


def test_an_append_that_was_refused_does_not_come_back(tmp_path, monkeypatch):
    service, write = opened(tmp_path), Path.write_bytes
    key = add(service)
    advance(service)

    def full(file, data):
        if file.name.startswith(ABOUT):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_bytes", full)
        with pytest.raises(ApiError) as refused:
            service.shelf.append(key, "more.txt", service.llm.reader.token_ids(" One more."))
    assert refused.value.status == 507
    after = opened(tmp_path)
    assert after.shelf.get(key).documents == ["items.txt"]
    assert_read(after, key)
