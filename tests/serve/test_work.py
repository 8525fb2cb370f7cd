"""What is done between the tokens of answers: their preparation first, and texts all the same."""

from __future__ import annotations

import time

import pytest

from tests.serve.conftest import tiny_llm

pytest.importorskip("fastapi", reason="the server is not installed: pip install sharedllm[serve]")

from sharedllm.serve.engine import Engine
from sharedllm.serve.failures import ApiError
from sharedllm.serve.metrics import Metrics
from sharedllm.serve.sampling import Sampling
from sharedllm.serve.settings import Settings
from sharedllm.serve.task import Task


@pytest.fixture
def engine(tmp_path):
    """An engine that does nothing by itself."""
    return Engine(tiny_llm(), Settings(tmp_path), Metrics())


def steps(order: list[str], name: str, count: int):
    for _ in range(count):
        order.append(name)
        yield


def advance(engine) -> None:
    while engine._work:
        engine._advance()


def test_a_question_does_not_wait_for_a_chunk_of_every_upload(engine):
    order: list[str] = []
    for i in range(6):
        engine.do(steps(order, f"upload {i}", 5))

    def context():
        yield from steps(order, "question", 9)
        raise RuntimeError("far enough")

    task = Task([1], None, context, Sampling(), 1, 1, (), lambda _event: None, time.monotonic() + 60)
    engine._waiting.append(task)
    engine._admit()
    advance(engine)
    last = len(order) - 1 - order[::-1].index("question")
    assert order[: last + 1].count("question") == 9
    assert last + 1 - 9 <= 3, "one slice of reading to three of the question"
    assert all(order.count(f"upload {i}") == 5 for i in range(6))


def test_questions_do_not_starve_uploads(engine):
    order: list[str] = []
    for i in range(2):
        engine.do(steps(order, f"question {i}", 30), answering=True)
    done = engine.do(steps(order, "upload", 10))
    for _ in range(44):
        engine._advance()
    assert done.done() and order[:40].count("upload") == 10
    assert order[:40].count("question 0") == order[:40].count("question 1") == 15, "they take turns"


def test_a_question_that_waits_for_an_upload_is_not_waited_for(engine):
    """As a prompt that waits until memory is free."""
    read: list[str] = []

    def question():
        while len(read) < 5:
            yield
        return "answered"

    asked = engine.do(question(), answering=True)
    engine.do(steps(read, "chunk", 5))
    advance(engine)
    assert asked.result() == "answered"


def test_all_who_wait_are_told_when_the_engine_ends(engine):
    told: list[tuple[str, int]] = []

    def task(name: str) -> Task:
        def tell(event) -> None:
            told.append((name, event.status))

        def context():
            yield from steps([], name, 9)

        return Task([1], None, context, Sampling(), 1, 1, (), tell, time.monotonic() + 60)

    engine._waiting += [task("begun"), task("not begun")]
    engine._admit()
    engine._advance()
    engine._waiting.append(task("waits"))
    uploaded = engine.do(steps([], "upload", 9))
    engine._end()
    assert sorted(told) == [("begun", 503), ("not begun", 503), ("waits", 503)]
    assert uploaded.cancelled()


def test_works_of_either_kind_count_towards_what_may_wait(tmp_path):
    from sharedllm.serve.failures import ApiError

    engine = Engine(tiny_llm(), Settings(tmp_path, rows=1, queue=1), Metrics())
    engine.do(steps([], "upload", 1))
    engine.check_room()
    engine.do(steps([], "question", 1), answering=True)
    with pytest.raises(ApiError, match="too much is being read") as refused:
        engine.check_room()
    assert refused.value.status == 429


def test_an_engine_that_fails_at_its_start_takes_nothing(tmp_path, monkeypatch):
    engine = Engine(tiny_llm(), Settings(tmp_path, rows=1, queue=1), Metrics())
    early = engine.do(steps([], "upload", 1))

    def fails(*_arguments):
        raise MemoryError

    monkeypatch.setattr("sharedllm.serve.engine.take_in", fails)
    engine.start()
    engine._thread.join(30)
    assert not engine.alive and early.cancelled()
    with pytest.raises(ApiError, match="shutting down"):
        engine.do(steps([], "upload", 1))
