"""Large requests: a few are split at a time, some wait, and the others are refused, before their bodies come where it can be."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from sharedllm.errors import UsageError
from tests.serve.conftest import started
from tests.serve.test_limits import raw_answer
from tests.serve.test_wrong import CHAT, CONTEXTS, SAID, assert_refused

httpx = pytest.importorskip("httpx", reason="httpx is not installed")

LARGE = 2**20
LONG = {"messages": [{"role": "user", "content": "word " * 300_000}], "max_tokens": 1}
MAP = "/v1/map"


@pytest.fixture
def few(tmp_path):
    """A server that has four places for large requests."""
    running = started(tmp_path, queue=2)
    yield running
    running.stop()


@pytest.fixture
def splitting(monkeypatch):
    """Lets nothing large be split until `go`, and then refuses it; `here` are those at it."""
    from sharedllm.serve import asking
    from sharedllm.serve.failures import ApiError

    split, go, here = asking._split, threading.Event(), []

    def slow(service, ask, contexts):
        if len(ask.messages[0].content) < 1000:
            return split(service, ask, contexts)
        here.append(ask)
        assert go.wait(60)
        raise ApiError(400, "it was split.")

    monkeypatch.setattr(asking, "_split", slow)
    yield here, go
    go.set()


def wait_for(condition) -> None:
    until = time.monotonic() + 30
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("path", [CHAT, MAP])
def test_of_many_large_requests_few_are_split_at_a_time(few, splitting, path):
    here, go = splitting
    answers, url = [], few.url

    def send():
        answers.append(httpx.post(f"{url}{path}", json=LONG, timeout=60))

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(answers) == 2 and len(here) == 2)
    for refused in answers:
        assert_refused(refused, 429, "too many large requests wait")
        assert int(refused.headers["Retry-After"]) > 0
    small = httpx.post(f"{url}{CHAT}", json={"messages": SAID, "max_tokens": 1}, timeout=60)
    assert small.status_code == 200 and len(here) == 2
    assert raw_answer(url, path, 2 * 2**20)[0] == 429, "before its body comes"
    pieces = (b" " * 2**16 for _ in range(20))
    late = httpx.post(f"{url}{path}", content=pieces, headers={"Content-Type": "application/json"}, timeout=60)
    assert_refused(late, 429, "too many large requests wait")
    go.set()
    for thread in threads:
        thread.join(60)
    assert sorted(answer.status_code for answer in answers) == [400] * 4 + [429] * 2
    wait_for(lambda: few.service.texts.taken == 0)  # a place is given back after the answer has gone


def test_a_large_request_that_cannot_be_split_or_goes_gives_its_place_back(few):
    for _ in range(5):
        answer = httpx.post(f"{few.url}{CHAT}", json={**LONG, "model": "gpt-9"}, timeout=60)
        assert_refused(answer, 404, "gpt-9")
        answer = httpx.post(f"{few.url}{CHAT}", json={**LONG, "n": "many"}, timeout=60)
        assert_refused(answer, 400, "n ")
    place = urlsplit(few.url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:  # the rest never comes
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\nContent-Length: {2**22}"
        )
        connection.sendall(f"{head}\r\n\r\n".encode() + b" " * 2**16)
        wait_for(lambda: few.service.texts.taken == 1)
    wait_for(lambda: few.service.texts.taken == 0)


def test_large_uploads_that_are_still_being_sent_have_their_places(few, monkeypatch):
    place, part = urlsplit(few.url), b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    head = [f"POST {CONTEXTS} HTTP/1.1", f"Host: {place.netloc}", f"Content-Type: {kind['Content-Type']}", f"Content-Length: {2**21}"]  # fmt: skip
    with ExitStack() as sending:
        for _ in range(4):
            connection = sending.enter_context(socket.create_connection((place.hostname, place.port), timeout=30))
            connection.sendall("\r\n".join([*head, "", ""]).encode() + part + b"word " * 9)  # the rest never comes
        wait_for(lambda: few.service.files.taken == 4)
        status, told = raw_answer(few.url, CONTEXTS, 2**21)
        assert status == 429 and "too many files wait" in told["error"]["message"]
        pieces = iter([part, *[b"word " * 2**14] * 20])
        late = httpx.post(f"{few.url}{CONTEXTS}", content=pieces, headers=kind, timeout=60)
        assert_refused(late, 429, "too many files wait")
    wait_for(lambda: few.service.files.taken == 0)

    def text_of(*_):
        assert few.service.files.taken == 1, "it has one place"
        raise UsageError("its turn has come.")

    monkeypatch.setattr("sharedllm.serve.routes_contexts.text_of", text_of)
    files = {"file": ("a.txt", b"word " * 2**18)}
    assert_refused(httpx.post(f"{few.url}{CONTEXTS}", files=files, timeout=60), 400, "its turn has come")
    wait_for(lambda: few.service.files.taken == 0)


def test_what_would_be_refused_anyway_is_refused_before_its_body_comes(few, monkeypatch):
    from sharedllm.serve.failures import ApiError

    engine, declared = few.service.engine, 2 * 2**20
    few.service.files.taken = 4
    assert raw_answer(few.url, CONTEXTS, declared)[0] == 429
    few.service.files.taken = 0
    monkeypatch.setitem(vars(few.service.settings), "queue", 0)
    monkeypatch.setattr(engine, "_has_room", lambda _choices: False)
    status, told = raw_answer(few.url, CHAT, declared)
    assert status == 429 and "too many requests wait" in told["error"]["message"]

    def full():
        raise ApiError(429, "too much is being read already; try again in a moment.")

    monkeypatch.setattr(engine, "check_room", full)
    for path in (MAP, CONTEXTS):
        status, told = raw_answer(few.url, path, declared)
        assert status == 429 and "too much is being read" in told["error"]["message"]
    wait_for(lambda: few.service.texts.taken == 0)  # a place is given back after the answer has gone


WRONG = [
    {"messages": SAID, "n": "many"},
    {"messages": SAID, "temperature": 9},
    {"messages": [{"role": "robot", "content": "a"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    {"messages": [], "stream": "yes"},
    [1],
]


@pytest.mark.parametrize("path", [CHAT, MAP])
@pytest.mark.parametrize("body", WRONG)
def test_what_is_wrong_with_a_large_request_is_told_as_of_a_small_one(served, path, body):
    raw, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    small, large = (
        httpx.post(f"{served.url}{path}", content=raw + b" " * spaces, headers=kind, timeout=60)
        for spaces in (0, LARGE)
    )
    assert_refused(large, 400, "")
    assert large.json() == small.json()
    broken = httpx.post(f"{served.url}{path}", content=raw[:-1] + b" " * LARGE, headers=kind, timeout=60)
    assert_refused(broken, 400, "not valid JSON")


def test_others_are_answered_while_a_request_of_many_parts_is_checked(served):
    message = {"role": "user", "content": [{"type": "text", "text": "a"}] * 500}
    raw = json.dumps({"model": "gpt-9", "messages": [message] * 800}).encode()
    answers = []

    def send():
        kind = {"Content-Type": "application/json"}
        answers.append(httpx.post(f"{served.url}{CHAT}", content=raw, headers=kind, timeout=60))

    thread, alive = threading.Thread(target=send), 0
    with httpx.Client(base_url=served.url, timeout=60) as http:
        thread.start()
        while not answers:
            alive += http.get("/health").status_code == 200
            time.sleep(0.01)
    thread.join()
    assert_refused(answers[0], 404, "gpt-9")
    assert alive > 10
