"""What is nearest to a question stands before it in the window that the server takes in, as in `ask`."""

from __future__ import annotations

import dataclasses
import time

import pytest

from sharedllm import SharedLLM
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model
from tests.serve.conftest import LONG, started, upload

QUOTING = dataclasses.replace(CONFIG, quoted_tokens=32)


@pytest.fixture
def quoting(tmp_path):
    model = tiny_model(max_position_embeddings=256)
    llm = randomize(SharedLLM.from_pretrained(model, adapter="none", config=QUOTING, tokenizer=byte_tokenizer()))
    running = started(tmp_path, llm)
    yield running
    running.stop()


def test_a_question_about_a_context_is_taken_in_with_its_quotes(quoting, monkeypatch):
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    from sharedllm.serve import engine

    while not quoting.service.engine.tokens_per_second:  # it is measured at the start, by the same function
        time.sleep(0.01)
    shown, take_in = [], engine.take_in

    def noted(llm, ids, *more):
        if llm is quoting.llm:  # another server of this process may still be at work
            shown.append(ids)
        return take_in(llm, ids, *more)

    monkeypatch.setattr(engine, "take_in", noted)
    with httpx.Client(base_url=quoting.url, timeout=60) as http:
        key = upload(http)
        asked = {
            "messages": [{"role": "user", "content": "Item 7 is kept?"}],
            "max_tokens": 4,
            "temperature": 0,
        }
        for context in ([], [key]):
            answer = http.post("/v1/chat/completions", json={**asked, "context": context})
            assert answer.status_code == 200, answer.text
    plain, quoted = (quoting.llm.tokenizer.decode(ids) for ids in shown)
    before, asks = plain.split("Item 7", 1)
    assert quoted.startswith(before) and quoted.endswith(f"\n\nItem 7{asks}")
    assert 32 <= len(shown[1]) - len(shown[0]) <= 256 - 4 - len(shown[0])
    quotes = quoted.removeprefix(before).split("\n\n", 1)[0].split(" ...\n")
    assert all(quote in LONG for quote in quotes) and sum(map(len, quotes)) == 32
