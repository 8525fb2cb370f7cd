"""Contexts over HTTP: followed while they are read, mapped, appended to, deleted, and there after a restart."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch

from sharedllm.prompts import Prompt
from tests.conftest import byte_tokenizer
from tests.contexts import assert_same_chunks, encoded
from tests.serve.conftest import LONG, read, started, tiny_llm, upload
from tests.serve.test_budget import bytes_of
from tests.serve.test_wrong import assert_refused

httpx = pytest.importorskip("httpx", reason="httpx is not installed")


def test_a_context_is_followed_listed_appended_to_and_deleted(http, served):
    answer = http.post("/v1/contexts", files={"file": ("../../etc/items.txt", LONG.encode())})
    key = answer.json()["id"]
    assert answer.json()["documents"] == ["items.txt"] and answer.json()["tokens"] == len(LONG)
    lines = [line for line in http.get(f"/v1/contexts/{key}/events").text.splitlines() if line.startswith("data:")]
    told = [json.loads(line[5:]) for line in lines]
    assert told[-1]["status"] == "ready" and told[-1]["read_tokens"] == len(LONG)
    assert [t["read_tokens"] for t in told] == sorted(t["read_tokens"] for t in told)
    assert key in [c["id"] for c in http.get("/v1/contexts").json()["data"]]
    page = "<html><body><article><h1>More</h1><p>Item 99 is kept on the roof of the house.</p></article></body></html>"
    http.post(f"/v1/contexts/{key}", files={"file": ("more.html", page.encode())})
    about = http.get(f"/v1/contexts/{read(http, key)}").json()
    assert about["documents"] == ["items.txt", "more.html"]
    end = http.get(f"/v1/contexts/{key}/text", params={"start": len(LONG)}).json()["text"]
    assert "on the roof" in end and "<p>" not in end
    context = served.service.shelf.get(key).context
    assert_same_chunks(context, encoded(served.llm, context.ids))
    assert http.delete(f"/v1/contexts/{key}").json()["deleted"]
    assert http.get(f"/v1/contexts/{key}").status_code == 404


def test_a_question_is_not_answered_without_what_is_being_appended(http, served, monkeypatch):
    key, go, rows = upload(http), threading.Event(), served.llm.reader.encode_rows
    body = {"messages": [{"role": "user", "content": "Why?"}], "context": key, "max_tokens": 2}
    before = http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    monkeypatch.setattr(served.llm.reader, "encode_rows", lambda *a, **k: (go.wait(60), rows(*a, **k))[1])
    try:
        http.post(f"/v1/contexts/{key}", files={"file": ("more.txt", LONG.encode())})
        for path in ("/v1/chat/completions", "/v1/map"):
            refused = http.post(path, json=body)
            assert_refused(refused, 409, "still being read")
            assert refused.json()["error"]["code"] == "context_not_ready" and int(refused.headers["Retry-After"]) > 0
    finally:
        go.set()
    read(http, key)
    after = http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    assert after == before + len("\n\n") + len(LONG)


def test_all_readings_are_followed_over_one_connection(http, served, monkeypatch):
    rows, told, go = served.llm.reader.encode_rows, {}, threading.Event()
    before = upload(http, "It was read before.")

    def encode_rows(*arguments, **options):
        assert go.wait(60)
        time.sleep(0.03)
        return rows(*arguments, **options)

    monkeypatch.setattr(served.llm.reader, "encode_rows", encode_rows)
    keys = [http.post("/v1/contexts", files={"file": ("items.txt", LONG.encode())}).json()["id"] for _ in range(3)]
    late, gone = [], keys.pop()
    with httpx.stream("GET", f"{served.url}/v1/contexts/events", timeout=60) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data:"):
                continue
            now = json.loads(line[5:])
            told.setdefault(now["id"], []).append(now)
            if not late:
                late.append(http.post("/v1/contexts", files={"file": ("late.txt", LONG.encode())}).json()["id"])
                http.delete(f"/v1/contexts/{gone}")
                go.set()
    assert set(told) == {*keys, *late, gone} and before not in told
    for key in (*keys, *late):
        assert told[key][-1]["status"] == "ready" and len(told[key]) > 1
    assert told[gone][-1] == {"id": gone, "object": "context.deleted", "deleted": True}


def test_a_context_that_cannot_be_looked_at_for_a_moment_is_not_called_deleted(http, served, monkeypatch):
    from sharedllm.serve.failures import ApiError

    key, get, looks = upload(http), served.service.shelf.get, []

    def failing(name):
        looks.append(name)
        if len(looks) in (2, 3):
            raise ApiError(503, "the folder of a context cannot be read now; try again in a moment.")
        return get(name)

    monkeypatch.setattr(served.service.shelf, "get", failing)
    told = [line for line in http.get(f"/v1/contexts/{key}/events").text.splitlines() if line.startswith("data:")]
    assert [json.loads(line[5:])["status"] for line in told] == ["ready"] and len(looks) == 4


def test_passages_hold_no_parts_of_characters():
    from sharedllm.serve.routes_contexts import _passage

    tokenizer, said = byte_tokenizer(), "äö €uro 😀😀 end"
    raw, ids = said.encode(), torch.tensor(tokenizer(said)["input_ids"])
    assert len(ids) == len(raw)
    for start in range(len(raw)):
        for end in range(start + 1, len(raw) + 1):
            assert _passage(tokenizer, ids, start, end) == raw[start:end].decode(errors="ignore")


def test_a_passage_keeps_replacement_characters_that_are_its_own():
    from sharedllm.serve.routes_contexts import _passage

    tokenizer, said = byte_tokenizer(), "\ufffdä\ufffd\ufffd b\ufffd"
    ids = torch.tensor(tokenizer(said)["input_ids"])
    assert _passage(tokenizer, ids, 0, len(ids)) == said
    assert _passage(tokenizer, ids, 3, 11) == "ä\ufffd\ufffd" and _passage(tokenizer, ids, 5, 12) == "\ufffd\ufffd "
    assert _passage(tokenizer, ids, 4, 12) == "\ufffd\ufffd "


def test_the_map_says_what_a_question_reads(http, served):
    key = upload(http)
    asks = {"messages": [{"role": "user", "content": "Where is item 3?"}], "context": key, "max_tokens": 9}
    drawn = http.post("/v1/map", json=asks).json()
    config, C = served.llm.config, 16
    assert drawn["tokens"] == len(LONG) and len(drawn["chunks"]) == -(-len(LONG) // C)
    for chunk in drawn["chunks"]:
        assert chunk["leaves"][0]["start"] == chunk["start"]
        assert chunk["leaves"][-1]["end"] == chunk["start"] + chunk["tokens"]
        assert [a["end"] for a in chunk["leaves"][:-1]] == [b["start"] for b in chunk["leaves"][1:]]
    whole = drawn["chunks"][0]
    assert sorted(leaf["end"] - leaf["start"] for leaf in whole["leaves"]) == [4, 4, 8]
    assert {leaf["level"]: leaf["chosen"] for leaf in whole["leaves"]} == {1: False, 2: True}
    assert whole["slots"] == config.slots_per_chunk
    assert drawn["attention"] is None and drawn["parts"][0]["context"] == key
    answer = http.post("/v1/chat/completions", json=asks).json()
    assert drawn["slots"] == answer["sharedllm"]["slots"]
    full = drawn["full_attention"]
    assert full["bytes"] == len(LONG) * 4 * 2 * 2 * 8 * 4, "4 layers, keys and values of 2 heads of 8 numbers, fp32"
    assert full["bytes"] > drawn["attended_bytes"] > 0 and full["seconds_at_least"] > 0


def test_the_map_says_what_an_answer_attended_to(http, served):
    """As running the model over question and answer at once says, branch by branch."""
    key, llm, said = upload(http), served.llm, "On the roof."
    asks = {"messages": [{"role": "user", "content": "Where is item 3?"}], "context": key, "answer": said}
    drawn = http.post("/v1/map", json=asks).json()
    prompt = Prompt(llm.tokenizer, "Where is item 3?")
    ids, answer = prompt.alone(), llm.tokenizer(said)["input_ids"]
    memory = llm.recall(
        served.service.shelf.get(key).context, torch.tensor([ids]), question_mask=prompt.question_mask()
    )
    heard = []
    with torch.no_grad(), llm.injection.reading(memory, heard.append):
        llm.model(torch.tensor([[*ids, *answer[:-1]]]))
    slots = torch.stack([weights[0, :, len(ids) - 1 :].sum((0, 1)) for weights in heard]).sum(0)
    assert drawn["attention"] == pytest.approx(float(slots[1:].sum() / slots.sum()), rel=1e-3)
    at, leaves = 1, [leaf for chunk in drawn["chunks"] for leaf in chunk["leaves"]]
    for leaf in leaves:
        share = slots[at : at + leaf["slots"]].sum() / slots[1:].sum()
        assert leaf["attention"] == pytest.approx(float(share), rel=1e-3, abs=1e-6)
        at += leaf["slots"]
    assert at == len(slots) and sum(leaf["attention"] for leaf in leaves) == pytest.approx(1)


def test_a_map_of_several_contexts_and_of_what_fits_the_window(http):
    one, two = upload(http), upload(http, LONG[::-1])
    asks = {"messages": [{"role": "user", "content": "Where?"}], "context": [one, two], "answer": "There."}
    drawn = http.post("/v1/map", json=asks).json()
    assert [part["context"] for part in drawn["parts"]] == [one, two]
    assert [chunk["start"] for chunk in drawn["chunks"]].count(len(LONG)) == 1
    folded = {"messages": [{"role": "user", "content": f"{LONG}\n\nWhere?"}]}
    assert http.post("/v1/map", json=folded).json()["parts"] == [
        {"context": None, "tokens": len(LONG), "read_seconds": None}
    ]
    short = http.post("/v1/map", json={**asks, "context": upload(http, "Item 1 is here."), "max_tokens": 9}).json()
    assert not short["compressed"] and short["tokens"] == 15 and short["quoted"] == []
    refused = http.post("/v1/map", json={"messages": asks["messages"]})
    assert refused.status_code == 400 and "nothing to map" in refused.text


def test_reading_does_not_stall_an_answer(http, served):
    """While a text of many chunks is read, an answer gets a token at least every few chunks."""
    engine, order, uploaded = served.service.engine, [], threading.Event()
    step, rows = engine._batch.step, served.llm.reader.encode_rows
    # The answer goes on once the upload is there, however slow the machine is: else it might end before.
    engine._batch.step = lambda ids: (order.append("token"), step(ids), uploaded.wait(20))[1]
    served.llm.reader.encode_rows = lambda *a, **k: (order.append("chunk"), rows(*a, **k))[1]
    body = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 60, "context": []}
    asking = threading.Thread(target=lambda: http.post("/v1/chat/completions", json=body))
    try:
        asking.start()
        while "token" not in order:
            time.sleep(0.001)
        answer = http.post("/v1/contexts", files={"file": ("items.txt", (LONG * 8).encode())})
        uploaded.set()
        read(http, answer.json()["id"])
        asking.join()
    finally:
        del engine._batch.step, served.llm.reader.encode_rows
    both = "".join("t" if what == "token" else "c" for what in order)
    among = both[: both.rindex("t")]
    assert "c" in among, "reading waits for the answer"
    assert max(map(len, among.split("t"))) <= 8, both


def test_short_contexts_asked_together_are_encoded_once_a_chunk_a_step(http, served, monkeypatch):
    keys = [upload(http, LONG[i : i + 100]) for i in range(3)]
    reader, rows, chunks = served.llm.reader, served.llm.reader.encode_rows, []

    def whole(context, *_arguments, **_options):
        assert context.encoded_tokens == context.tokens, "all of it is encoded in one step"

    monkeypatch.setattr(reader, "encode_rows", lambda ids, *a, **k: (chunks.append(len(ids)), rows(ids, *a, **k))[1])
    monkeypatch.setattr(reader, "encode", whole)
    body = {"messages": [{"role": "user", "content": "Why?"}], "context": keys, "max_tokens": 5, "temperature": 0}
    first = http.post("/v1/chat/completions", json=body).json()
    assert first["sharedllm"]["slots"] > 0 and chunks == [1] * (3 * -(-100 // 16))
    again = http.post("/v1/chat/completions", json=body).json()
    assert len(chunks) == 3 * -(-100 // 16), "they are kept encoded"
    assert again["choices"] == first["choices"] and again["usage"] == first["usage"]
    monkeypatch.undo()
    for key in keys:
        context = served.service.shelf.get(key).context
        assert_same_chunks(context, encoded(served.llm, context.ids))
    http.post(f"/v1/contexts/{keys[0]}", files={"file": ("more.txt", LONG.encode())})
    context = served.service.shelf.get(read(http, keys[0])).context
    assert_same_chunks(context, encoded(served.llm, context.ids))


def test_a_map_ends_when_it_is_late_or_nobody_hears_it(http, served, monkeypatch):
    key, ended = upload(http), []

    def endless(*_arguments):
        try:
            while True:
                time.sleep(0.005)
                yield
        finally:
            ended.append(True)

    monkeypatch.setattr("sharedllm.serve.routes_map._map", endless)
    asks = {"messages": [{"role": "user", "content": "Why?"}], "context": key}
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/map", json=asks, timeout=0.5)
    until = time.monotonic() + 20
    while not ended and time.monotonic() < until:
        time.sleep(0.02)
    assert ended == [True]
    monkeypatch.setitem(vars(served.service.settings), "seconds", 0.5)
    late = http.post("/v1/map", json=asks)
    assert late.status_code == 504 and ended == [True, True]


def test_prompts_may_be_forgotten_while_a_known_one_is_sought(http, served, monkeypatch):
    prompts = served.service.shelf.prompts
    asks = [{"messages": [{"role": "user", "content": f"{i} {LONG}\n\nWhy?"}], "max_tokens": 1} for i in range(3)]
    for body in asks[:2]:
        assert http.post("/v1/chat/completions", json=body).status_code == 200

    def forget(_ids, entry):
        prompts.kept.prompts.pop(entry.id, None)
        return 0

    monkeypatch.setattr(prompts, "_shared", forget)
    assert http.post("/v1/chat/completions", json=asks[2]).status_code == 200


def test_memory_is_bounded_and_what_is_kept_survives_a_restart(tmp_path):
    llm = tiny_llm()
    first = started(tmp_path, llm=llm, memory_bytes=bytes_of(llm, LONG * 6, tmp_path))
    with httpx.Client(base_url=first.url, timeout=60) as http:
        key = upload(http)
        half = http.post("/v1/contexts", files={"file": ("long.txt", (LONG * 6).encode())}).json()["id"]
        until = time.monotonic() + 20
        while http.get(f"/v1/contexts/{key}").json()["in_memory"] and time.monotonic() < until:
            time.sleep(0.02)
        body = {"messages": [{"role": "user", "content": "Why?"}], "context": key, "max_tokens": 9, "temperature": 0}
        said = http.post("/v1/chat/completions", json=body).json()
        assert not http.get(f"/v1/contexts/{key}").json()["in_memory"]
    first.stop()
    second = started(tmp_path, llm=first.llm)
    with httpx.Client(base_url=second.url, timeout=60) as http:
        again = http.post("/v1/chat/completions", json=body).json()
        assert again["choices"] == said["choices"] and again["usage"] == said["usage"]
        read(http, half)
        assert http.get(f"/v1/contexts/{half}").json()["tokens"] == len(LONG * 6)
    second.stop()


def test_a_running_answer_ends_well_when_the_server_is_told_to_end(tmp_path):
    running = started(tmp_path)
    body = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 100, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        threading.Thread(target=running.stop).start()
        rest = [line for line in lines if line.startswith("data:")]
    assert rest[-1] == "data: [DONE]" and '"finish_reason": "length"' in rest[-2]
    running.stop()
