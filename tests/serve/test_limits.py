"""What is too slow, too large or too much at once is refused over HTTP, and the server goes on."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from tests.serve.conftest import LONG, started, upload
from tests.serve.test_disk import bomb
from tests.serve.test_wrong import CHAT, CONTEXTS, SAID, assert_refused

httpx = pytest.importorskip("httpx", reason="httpx is not installed")


def raw_answer(url: str, path: str, length: int, body: bytes = b"") -> tuple[int, dict]:
    """Status and body of the answer to a request that declares more than it sends."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        lines = [f"POST {path} HTTP/1.1", f"Host: {place.netloc}", "Content-Type: application/json", f"Content-Length: {length}"]  # fmt: skip
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        told = b""
        while b"\r\n\r\n" not in told or not told.endswith(b"}"):
            piece = connection.recv(65536)
            assert piece, "the connection ended without an answer"
            told += piece
    return int(told.split()[1]), json.loads(told.split(b"\r\n\r\n", 1)[1])


def test_a_body_that_does_not_come_is_refused_in_time(tmp_path):
    running = started(tmp_path, body_seconds=0.3)
    try:
        begun = time.monotonic()
        status, told = raw_answer(running.url, CHAT, 400, b'{"messages": ')
        assert status == 408 and "did not come in time" in told["error"]["message"]
        assert 0.3 <= time.monotonic() - begun < 20
        assert httpx.post(f"{running.url}{CHAT}", json={"messages": SAID, "max_tokens": 1}).status_code == 200
    finally:
        running.stop()


@pytest.mark.parametrize("path", [CHAT, CONTEXTS])
def test_a_body_that_is_declared_too_large_is_refused_before_it_comes(served, path):
    status, told = raw_answer(served.url, path, 100 * 2**20)
    assert status == 413 and "67,108,864 bytes" in told["error"]["message"]


def test_an_upload_in_pieces_that_becomes_too_large_is_refused(http, served, monkeypatch):
    monkeypatch.setitem(vars(served.service.settings), "body_bytes", 20_000)
    head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    pieces = iter([head, *[b"word " * 200] * 40, b"\r\n--edge--\r\n"])
    answer = http.post(CONTEXTS, content=pieces, headers={"Content-Type": "multipart/form-data; boundary=edge"})
    assert_refused(answer, 413, "20,000 bytes")
    monkeypatch.undo()
    upload(http)


def test_an_answer_that_takes_too_long_is_ended(http, served, monkeypatch):
    step = served.service.engine._batch.step
    monkeypatch.setattr(served.service.engine._batch, "step", lambda ids: (time.sleep(0.05), step(ids))[1])
    monkeypatch.setitem(vars(served.service.settings), "seconds", 0.5)
    body = {"messages": SAID, "max_tokens": 200}
    assert_refused(http.post(CHAT, json=body), 504, "longer than this server allows")
    streamed = http.post(CHAT, json={**body, "stream": True})
    last = [line for line in streamed.text.splitlines() if line.startswith("data:")][-1]
    assert streamed.status_code == 200 and json.loads(last[5:])["error"]["code"] == "timeout"
    monkeypatch.undo()
    assert http.post(CHAT, json={"messages": SAID, "max_tokens": 1}).status_code == 200


def test_a_file_made_to_expand_is_refused_over_http(http, served, monkeypatch):
    before = http.get(CONTEXTS).json()
    monkeypatch.setitem(vars(served.service.settings), "file_seconds", 2.0)
    assert_refused(http.post(CONTEXTS, files={"file": ("b.pdf", bomb(400, 100_000))}), 400, "more than 2 s")
    assert http.get(CONTEXTS).json() == before
    monkeypatch.undo()
    upload(http)


def uploading(running, answers) -> list[threading.Thread]:
    """Six uploads at once, whose answers go to a list."""

    def send() -> None:
        files = {"file": ("a.txt", LONG.encode())}
        answers.append(httpx.post(f"{running.url}{CONTEXTS}", files=files, timeout=60))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    return threads


def until_two(done) -> None:
    """Wait until a list has two entries."""
    until = time.monotonic() + 30
    while len(done) < 2 and time.monotonic() < until:
        time.sleep(0.01)


def test_of_many_uploads_few_are_in_memory_and_the_rest_waits_or_is_refused(tmp_path, monkeypatch):
    from starlette.datastructures import UploadFile

    taken, go, answers, read = [], threading.Event(), [], UploadFile.read

    async def reading(self, size=-1):
        taken.append(size)
        return await read(self, size)

    def text_of(_name, raw, *_limits):
        assert go.wait(30)
        return raw.decode()

    monkeypatch.setattr(UploadFile, "read", reading)
    monkeypatch.setattr("sharedllm.serve.routes_contexts.text_of", text_of)
    running = started(tmp_path, queue=2)
    try:
        threads = uploading(running, answers)
        until_two(answers)
        time.sleep(0.2)
        assert len(taken) == 2, "two are in memory, two wait on the disk"
        assert len(answers) == 2
        for refused in answers:
            assert_refused(refused, 429, "too many files wait")
            assert int(refused.headers["Retry-After"]) > 0
        go.set()
        for thread in threads:
            thread.join(30)
        assert sorted(answer.status_code for answer in answers) == [202] * 4 + [429] * 2
    finally:
        go.set()
        running.stop()


def test_uploads_that_wait_for_the_disk_are_few_and_answers_go_on(tmp_path, monkeypatch):
    running = started(tmp_path)
    shelf, disk, adding, answers = running.service.shelf, threading.Event(), [], []
    add = shelf.add
    monkeypatch.setattr("sharedllm.serve.routes_contexts.text_of", lambda _name, raw, *_limits: raw.decode())
    monkeypatch.setattr(shelf, "add", lambda *arguments: (adding.append(1), add(*arguments))[1])
    shelf.kept.later(disk.wait)
    try:
        threads = uploading(running, answers)
        until_two(adding)
        time.sleep(0.5)
        assert len(adding) == 2, "the others have no thread of those that prepare answers"
        answer = httpx.post(f"{running.url}{CHAT}", json={"messages": SAID, "max_tokens": 1}, timeout=60)
        assert answer.status_code == 200 and not answers
        disk.set()
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [202] * 6
    finally:
        disk.set()
        running.stop()


def test_what_the_full_queue_refuses_is_not_split_first(http, served, monkeypatch):
    from sharedllm.serve.failures import ApiError

    engine, split = served.service.engine, []
    monkeypatch.setattr("sharedllm.serve.asking._split", lambda *_: split.append(1))
    monkeypatch.setitem(vars(served.service.settings), "queue", 0)
    monkeypatch.setattr(engine, "_has_room", lambda _choices: False)
    assert_refused(http.post(CHAT, json={"messages": SAID}), 429, "too many requests wait")

    def full():
        raise ApiError(429, "too much is being read already; try again in a moment.")

    monkeypatch.setattr(engine, "check_room", full)
    assert_refused(http.post("/v1/map", json={"messages": SAID}), 429, "too much is being read")
    assert not split


def test_the_log_of_an_error_says_what_and_where_and_never_its_words(caplog):
    import sys

    from sharedllm.serve.failures import as_api_error
    from sharedllm.serve.run import Lines

    secret = "my dear diary"

    def broken(text):
        try:
            int(text)
        except ValueError as error:
            raise RuntimeError(f"cannot read {text}") from error

    with pytest.raises(RuntimeError) as failed:
        broken(secret)
    with caplog.at_level(logging.ERROR, "sharedllm"):
        assert as_api_error(failed.value).status == 500
    ours = caplog.records[-1]
    try:
        broken(secret)
    except RuntimeError:
        theirs = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "failed", None, sys.exc_info())
    for record in (ours, theirs):
        told = json.loads(Lines().format(record))
        assert "diary" not in json.dumps(told)
        assert "ValueError" in told["trace"] and "RuntimeError" in told["trace"] and "in broken" in told["trace"]
    assert "diary" not in str(vars(ours))


@pytest.mark.parametrize(
    ("field", "item", "most", "row"),
    [
        ("messages", {"role": "user", "content": "a"}, 2000, "messages of a request;"),
        ("context", "ctx", 64, "contexts of a request "),
        ("stop", "a", 4, "`stop` "),
    ],
)
def test_lists_of_a_request_are_as_long_as_the_documents_say(field, item, most, row):
    from pathlib import Path

    from pydantic import ValidationError

    from sharedllm.serve.schemas import ChatRequest

    ChatRequest(**{"messages": SAID, field: [item] * most})
    with pytest.raises(ValidationError, match=field):
        ChatRequest(**{"messages": SAID, field: [item] * (most + 1)})
    limits = (Path(__file__).parents[2] / "docs/SERVE.md").read_text().split("## Limits")[1]
    (told,) = (line.split("|")[2] for line in limits.splitlines() if line.startswith(f"| {row}"))
    assert re.findall(r"\d[\d,]*\b", told)[0] == f"{most:,}"


def test_a_message_may_be_as_long_as_a_request():
    from sharedllm.serve.schemas import ChatRequest, CompletionRequest

    long = "a" * 64 * 2**20
    assert len(ChatRequest(messages=[{"role": "user", "content": long}]).messages[0].text) == len(long)
    assert len(CompletionRequest(prompt=long).prompt) == len(long)
