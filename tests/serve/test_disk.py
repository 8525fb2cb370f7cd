"""A disk that is full, contexts that take all they may, and files made to grow or to take for ever."""

from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest

from sharedllm.errors import UsageError
from sharedllm.extract import TooLong, text_of
from tests.serve.conftest import LONG, started, tiny_llm, upload
from tests.serve.test_budget import bytes_of
from tests.serve.test_wrong import CONTEXTS, assert_refused

httpx = pytest.importorskip("httpx", reason="httpx is not installed")


def full(*_args, **_options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_refuses_uploads_and_appends_and_the_server_goes_on(http, served, monkeypatch):
    key, files = upload(http), {"file": ("b.txt", LONG.encode())}

    def about():
        told = http.get(f"{CONTEXTS}/{key}").json()
        return told["documents"], told["tokens"], told["status"]

    before = about()
    served.service.shelf.kept.later(lambda: None).result()  # it is on the disk
    kept = len(list((served.service.settings.folder / "contexts").iterdir()))
    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_bytes", full)
        assert_refused(http.post(CONTEXTS, files=files), 507, "disk is full")
        assert_refused(http.post(f"{CONTEXTS}/{key}", files=files), 507, "disk is full")
    assert about() == before
    assert len(list((served.service.settings.folder / "contexts").iterdir())) == kept
    upload(http)


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 507, "disk is full"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found"), 500, "its log has the reason"),
        (MemoryError(), 503, "not enough memory"),
    ],
)
def test_a_body_that_finds_no_place_to_lie_in_is_not_called_wrong(http, monkeypatch, error, status, words):
    def rollover(_file):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
        assert_refused(http.post(CONTEXTS, files={"file": ("a.txt", b"word " * 220_000)}), status, words)
    upload(http)


def test_a_context_that_cannot_be_written_is_answered_from_memory(http, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("sharedllm.serve.entry.Entry.save", full)
        key = upload(http, LONG[::-1])
    body = {"messages": [{"role": "user", "content": "Why?"}], "context": key, "max_tokens": 2}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert not http.get(f"{CONTEXTS}/{key}").json()["on_disk"]
    assert "sharedllm_disk_errors_total 1.0" in http.get("/metrics").text


def test_what_a_full_disk_did_not_take_is_written_later(tmp_path, monkeypatch):
    from sharedllm.context import Context
    from sharedllm.serve import keeping
    from sharedllm.serve.service import Service
    from sharedllm.serve.settings import Settings

    def opened():
        service = Service(tiny_llm(), Settings(tmp_path))  # its engine does nothing by itself
        service.shelf.open()
        return service

    def read(service, text):
        entry = service.shelf.add("a.txt", service.llm.reader.token_ids(text))
        while service.engine._work:
            service.engine._advance()
        service.shelf.kept.later(lambda: None).result()
        return entry

    service, saves = opened(), []
    with monkeypatch.context() as broken:
        broken.setattr(Context, "save", lambda *_: (saves.append(1), full()))
        entries = [read(service, text) for text in (LONG, LONG[::-1])]
        assert not any(entry.saved for entry in entries) and len(saves) == 2, "it is not tried again at once"
    assert read(service, f"{LONG}!").saved and not any(entry.saved for entry in entries)
    later = service.shelf.kept._retry
    assert later - keeping.time.monotonic() <= keeping.RETRY_SECONDS
    with monkeypatch.context() as waited:
        waited.setattr(keeping.time, "monotonic", lambda: later)
        service.shelf.kept.later(service.shelf.kept.fit).result()
    assert all(entry.saved for entry in entries)
    with monkeypatch.context() as broken:
        broken.setattr(Context, "save", full)
        last = read(service, f"{LONG}?")
    assert not last.saved
    service.shelf.close()
    after = opened().shelf
    assert {key: entry.status for key, entry in after.contexts.items()} == dict.fromkeys(
        service.shelf.contexts, "ready"
    )


def test_contexts_on_the_disk_are_bounded(tmp_path):
    llm = tiny_llm()
    running = started(tmp_path, llm=llm, context_disk_bytes=bytes_of(llm, LONG, tmp_path) * 3 // 2)
    try:
        with httpx.Client(base_url=running.url, timeout=60) as http:
            upload(http)
            assert_refused(http.post(CONTEXTS, files={"file": ("a.txt", LONG.encode())}), 507, "delete some")
            assert len(http.get(CONTEXTS).json()["data"]) == 1
    finally:
        running.stop()


def bomb(pages: int, words: int) -> bytes:
    """A PDF of a few kB that draws the same packed text on every page: pages * words words."""
    text = zlib.compress(b"BT /F 9 Tf " + b"(word ) Tj " * words + b"ET")
    kids = b" ".join(b"%d 0 R" % (5 + i) for i in range(pages))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [%s] >>" % (pages, kids),
        b"<< /Length %d /Filter /FlateDecode >> stream\n%s\nendstream" % (len(text), text),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        *[b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 3 0 R /Resources << /Font << /F 4 0 R >> >> >>"] * pages,
    ]  # fmt: skip
    out, places = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj %s endobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Root 1 0 R /Size %d >>\nstartxref\n%d\n%%%%EOF" % (len(places) + 1, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1) + table + end


def test_a_file_that_takes_too_long_is_ended():
    raw = bomb(400, 100_000)
    assert len(raw) < 100_000
    with pytest.raises(UsageError, match=r"'b.pdf' takes more than 2 s"):
        text_of("b.pdf", raw, 2, 2**31)
    assert text_of("a.pdf", bomb(1, 3), 60, 2**32).split() == ["word"] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is bounded on Linux")
def test_a_file_that_takes_too_much_memory_is_ended():
    page = b"<html><body>" + b"<p>" * 5_000_000
    with pytest.raises(UsageError, match=r"b.html"):
        text_of("b.html", page, 60, 2**28)


def watched(monkeypatch) -> list:
    """What the processes that take out text were given, and what they left."""
    run, seen = subprocess.run, []

    def running(*arguments, **options):
        done = run(*arguments, **options)
        seen.append((options["env"], done))
        return done

    monkeypatch.setattr("sharedllm.extract.subprocess.run", running)
    return seen


def test_a_file_sees_no_key_of_the_server(monkeypatch):
    for name in ("SHAREDLLM_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a long secret")
    seen = watched(monkeypatch)
    assert text_of("a.pdf", bomb(1, 3), 60, 2**32).split() == ["word"] * 3
    assert "a long secret" not in seen[0][0].values() and seen[0][0]["PYTHONPATH"]


def test_text_beyond_the_limit_does_not_leave_its_process(monkeypatch):
    seen = watched(monkeypatch)
    with pytest.raises(TooLong, match=r"'a.txt' holds 11 characters, and 10 of a file are read; split it"):
        text_of("a.txt", b"0123456789a", 60, 2**32, 10)
    assert seen[0][1].stdout == b""
    assert text_of("a.txt", "ä".encode() * 10, 60, 2**32, 10) == "ä" * 10


def test_text_beyond_the_limit_is_refused(http, served):
    limit = served.service.settings.body_bytes
    object.__setattr__(served.service.settings, "body_bytes", 2000)
    try:
        assert_refused(http.post(CONTEXTS, files={"file": ("b.pdf", bomb(1, 900))}), 413, "split it")
    finally:
        object.__setattr__(served.service.settings, "body_bytes", limit)
    upload(http)


def test_the_folder_one_works_in_lends_no_modules(tmp_path, monkeypatch):
    (tmp_path / "token.py").write_text("raise SystemExit('not the module that was meant')")
    monkeypatch.chdir(tmp_path)
    assert text_of("a.txt", b"word", 60, 2**32) == "word"
    monkeypatch.syspath_prepend(tmp_path)  # now it is meant
    with pytest.raises(UsageError, match=r"'a.txt' cannot be read: not the module that was meant"):
        text_of("a.txt", b"word", 60, 2**32)
