"""What is nearest to a question stands before it in the window that the server takes in, as in `ask`; the map tells it."""

from __future__ import annotations

import dataclasses
import time

import pytest

from sharedllm import SharedLLM
from sharedllm.methods.estimate import attended_bytes
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model
from tests.serve.conftest import LONG, started, upload

QUOTING = dataclasses.replace(CONFIG, quoted_tokens=32)
ASKED = {"messages": [{"role": "user", "content": "Item 7 is kept?"}], "max_tokens": 4, "temperature": 0}


@pytest.fixture
def quoting(tmp_path):
    model = tiny_model(max_position_embeddings=256)
    llm = randomize(SharedLLM.from_pretrained(model, adapter="none", config=QUOTING, tokenizer=byte_tokenizer()))
    running = started(tmp_path, llm)
    yield running
    running.stop()


@pytest.fixture
def http(quoting):
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    with httpx.Client(base_url=quoting.url, timeout=60) as client:
        yield client


@pytest.fixture
def shown(quoting, monkeypatch):
    """The windows that answers are written behind, as token ids."""
    from sharedllm.serve import engine

    while not quoting.service.engine.tokens_per_second:  # it is measured at the start, by the same function
        time.sleep(0.01)
    windows, take_in = [], engine.take_in

    def noted(llm, ids, *more):
        if llm is quoting.llm:  # another server of this process may still be at work
            windows.append(ids)
        return take_in(llm, ids, *more)

    monkeypatch.setattr(engine, "take_in", noted)
    return windows


def test_a_question_about_a_context_is_taken_in_with_its_quotes(quoting, http, shown):
    for context in ([], [upload(http)]):
        answer = http.post("/v1/chat/completions", json={**ASKED, "context": context})
        assert answer.status_code == 200, answer.text
    plain, quoted = (quoting.llm.tokenizer.decode(ids) for ids in shown)
    before, asks = plain.split("Item 7", 1)
    assert quoted.startswith(before) and quoted.endswith(f"\n\nItem 7{asks}")
    assert 32 <= len(shown[1]) - len(shown[0]) <= 256 - 4 - len(shown[0])
    quotes = quoted.removeprefix(before).split("\n\n", 1)[0].split(" ...\n")
    assert all(quote in LONG for quote in quotes) and sum(map(len, quotes)) == 32


def test_the_map_tells_what_is_quoted_and_counts_it(quoting, http, shown):
    """Also where a long answer leaves less room than may be quoted."""
    key, sizes, llm = upload(http), [], quoting.llm
    for most in (4, 200):
        about = {**ASKED, "max_tokens": most, "context": key}
        assert http.post("/v1/chat/completions", json=about).status_code == 200
        drawn = http.post("/v1/map", json={**about, "answer": "On the roof."}).json()
        passages = [LONG[span["start"] : span["end"]] for span in drawn["quoted"]]
        assert llm.tokenizer.decode(shown[-1]).startswith(" ...\n".join(passages) + "\n\nItem 7")
        sizes.append(sum(map(len, passages)))
        assert drawn["attended_bytes"] == attended_bytes(llm, drawn["slots"], sizes[-1])
    assert sizes[0] == 32 > sizes[1] > 0
